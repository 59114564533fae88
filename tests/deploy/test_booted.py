"""docs/deploy/systemd under systemd itself, which is booted for it: the unit is started when it
listens, is as closed as it says, reads its keys anew, outlives a kill and a stand-still, and stops;
and so are the services that docs/FIRST_NODE.md puts around it.

`tests/long systemd` asks for it: as root, where namespaces can be made. systemd has some of its own
in which it is process 1, with a network and control groups of its own. Whatever it writes to is an
overlay or in memory, and all else is read-only there: it cleans /tmp and sets the kernel's limits
wherever it finds them. Nothing of the machine is changed.
"""

import json
import os
import re
import resource
import shutil
import stat
import subprocess
import sys
import tempfile
import time
import unittest
from pathlib import Path

from server import ENV, PATIENCE_S, PROGRAM, ROOT, until
from test_first_node import LEFT_OUT, NAME, commands, packaged
from test_systemd import settings

if "BOOTED" not in os.environ and __name__ != "__main__":
    raise unittest.SkipTest("tests/long systemd asks for it")

SYSTEMD = "/lib/systemd/systemd"
ENTER = ["unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]
ENTER += ["--cgroup", "--uts", "--ipc", "--propagation", "private"]
# What a boot and the unit write to.
OVERLAID = ("etc", "usr", "var", "root")
IN_MEMORY = ("/run", "/tmp", "/dev")
DEVICES = {"null": (1, 3), "zero": (1, 5), "full": (1, 7), "random": (1, 8), "urandom": (1, 9)}
DEVICES |= {"tty": (5, 0)}
# Nothing is started that the unit does not need.
TARGET = "[Unit]\nDefaultDependencies=no\nAllowIsolate=yes\n"
# A watchdog that a test can wait for.
HURRIED = "[Service]\nWatchdogSec=3\n"


def missing() -> str | None:
    if os.geteuid() != 0:
        return "only root can make namespaces"
    for program in ("unshare", "nsenter", "systemctl", "journalctl", "systemd-sysusers", "ip"):
        if shutil.which(program) is None:
            return f"no {program}"
    if not os.access(SYSTEMD, os.X_OK):
        return f"no {SYSTEMD}"
    if unified() is None:
        return "no control groups of version 2"
    tried = [*ENTER, "mount", "-t", "tmpfs", "none", "/mnt"]
    if subprocess.run(tried, capture_output=True).returncode != 0:
        return "no namespaces can be made"
    return None


def unified() -> Path | None:
    """The folder of this process's control group of version 2."""
    own = re.search(r"^0::(/.*)$", Path("/proc/self/cgroup").read_text(), re.M)
    mounted = re.search(r"^\S+ (\S+) cgroup2 ", Path("/proc/mounts").read_text(), re.M)
    return Path(mounted[1] + own[1]) if own and mounted else None


class Box:
    """A systemd that runs, until it is closed."""

    def __init__(self) -> None:
        self._home = tempfile.TemporaryDirectory(prefix="greendot-")
        # Its control groups stand below one of their own, and go with it.
        self._group = unified() / f"greendot-{os.getpid()}"
        self._group.mkdir()
        self._log = open(Path(self._home.name) / "log", "w+")
        self._init = ""
        self._process = subprocess.Popen(
            [*ENTER, sys.executable, __file__, self._home.name],
            env={**ENV, "GREENDOT": PROGRAM, "BOOTED": "1"}, stdin=subprocess.DEVNULL,
            stdout=self._log, stderr=self._log,
            preexec_fn=lambda: (self._group / "cgroup.procs").write_text(str(os.getpid())),
        )
        try:
            self._boot()
        except BaseException:
            self.close()
            raise

    def _boot(self) -> None:
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        self._init = until("process 1", lambda: self._alive() and children.read_text().strip())
        until("systemd", lambda: self._alive() and self.run("systemctl", check=False)[0] == 0)

    def _alive(self) -> bool:
        assert self._process.poll() is None, self.log()
        return True

    def log(self) -> str:
        self._log.seek(0)
        return self._log.read()

    def run(self, *command: str, check: bool = True) -> tuple[int, str]:
        """How a command in it ends, and what it says."""
        enter = ["nsenter", f"--target={self._init}", "--all"]
        done = subprocess.run(
            [*enter, *command], env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120,
        )
        said = done.stdout + done.stderr
        if check and done.returncode != 0:
            journal = self.run("journalctl", "--no-pager", "--lines=40", check=False)[1]
            raise AssertionError(f"{command}: {said}\n{self.log()}\n{journal}")
        return done.returncode, said

    def said(self, *command: str) -> str:
        return self.run(*command)[1]

    def write(self, path: str, text: str) -> None:
        place = Path(f"/proc/{self._init}/root{path}")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._log.close()
        # What was of it is being reaped.
        groups = sorted(self._group.glob("**/"), reverse=True)
        for group in groups:
            until(f"{group} is empty", lambda: removed(group))
        self._home.cleanup()


def descriptors() -> int:
    """The unit's limit, or what this machine lets systemd have."""
    asked = int(settings("LimitNOFILE")[0])
    tried = ["prlimit", f"--nofile={asked}", "true"]
    if subprocess.run(tried, capture_output=True).returncode == 0:
        return asked
    return resource.getrlimit(resource.RLIMIT_NOFILE)[1]


def removed(group: Path) -> bool:
    try:
        group.rmdir()
    except OSError:
        return False
    return True


class Booted(unittest.TestCase):
    @classmethod
    def setUpClass(cls) -> None:
        if (why := missing()) is not None:
            raise unittest.SkipTest(why)
        cls.box = Box()
        cls.addClassCleanup(cls.box.close)

    def setUp(self) -> None:
        self.box.said("systemctl", "restart", "greendot")
        self.addCleanup(self.box.run, "systemctl", "stop", "greendot")

    def shown(self, name: str) -> str:
        shown = ["systemctl", "show", "--value", f"--property={name}", "greendot"]
        return self.box.said(*shown).strip()

    def asked(self, path: str, *more: str) -> str:
        return self.box.said("curl", "-sS", *more, f"http://127.0.0.1:8080{path}")

    def comes_back(self, before: str) -> None:
        """It is another process, and serves."""

        def is_back() -> bool:
            return self.shown("MainPID") not in ("0", before) and self.is_ready()

        until("another process serves", is_back)

    def is_ready(self) -> bool:
        return self.box.run("greendot", "health", "--http=127.0.0.1:8080", check=False)[0] == 0

    def beats(self) -> int:
        """Bob beats; since when he is online."""
        data = ["-H", "Content-Type: application/json", "-d", '{"users":["bob"]}']
        self.assertEqual(self.asked("/v1/beat", *data), "")
        return self.since()

    def since(self) -> int:
        bob = json.loads(self.asked("/v1/presence/bob"))
        self.assertEqual(bob["status"], "online")
        return bob["since"]

    def log_has(self, text: str) -> bool:
        return text in self.box.said("journalctl", "--no-pager", "--unit=greendot", "--output=cat")

    def test_it_is_started_when_it_listens(self) -> None:
        # `restart` came back, so it serves.
        self.assertEqual(self.box.said("greendot", "health", "--http=127.0.0.1:8080"), "ready\n")
        self.assertEqual(self.shown("ActiveState"), "active")
        self.assertEqual(self.shown("NRestarts"), "0")

    def test_the_process_is_as_closed_as_the_unit_says(self) -> None:
        pid = self.shown("MainPID")
        status = self.box.said("cat", f"/proc/{pid}/status")
        told = dict(re.findall(r"^(\w+):\s+(.*)$", status, re.M))
        for name, value in {
            "NoNewPrivs": "1", "Seccomp": "2", "CapEff": "0" * 16, "CapBnd": "0" * 16,
        }.items():
            self.assertEqual(told[name], value, name)
        # The first number is of who runs it.
        self.assertEqual(told["Uid"].split()[0], self.box.said("id", "-u", "greendot").strip())
        limits = self.box.said("cat", f"/proc/{pid}/limits")
        self.assertRegex(limits, rf"(?m)^Max open files +{descriptors()} +{descriptors()} ")
        for path in ("/var/lib/greendot", "/run/greendot"):
            said = self.box.said("stat", "-c", "%U:%G:%a", path)
            self.assertEqual(said, "greendot:greendot:700\n")
        self.assertTrue(self.log_has("the store's cells are in memory in /run/greendot"))
        # Where the process is, the machine's files are not to be written.
        inside = ["nsenter", f"--target={pid}", "--mount", "sh", "-c", "echo x >/etc/x"]
        code, said = self.box.run(*inside, check=False)
        self.assertNotEqual(code, 0)
        self.assertIn("Read-only file system", said)

    def test_doctor_judges_the_unit_and_not_the_shell(self) -> None:
        doctor = "ulimit -n 1000; greendot doctor --config /etc/greendot/greendot.toml"
        said = self.box.said("sh", "-c", doctor)
        self.assertRegex(said, r"(?m)^OK   whose limits +those of greendot.service, as systemd ")
        asked = settings("LimitNOFILE")[0]
        self.assertRegex(said, rf"(?m)^OK   nofile +{asked}$")
        self.assertRegex(said, r"(?m)^OK   memory folder +/run/greendot is on a tmpfs")
        pid = self.shown("MainPID")
        said = self.box.said("sh", "-c", f"{doctor} --pid {pid}")
        self.assertRegex(said, rf"(?m)^OK   whose limits +those of process {pid}$")

    def test_it_reads_its_settings_anew(self) -> None:
        pid = self.shown("MainPID")
        self.box.said("systemctl", "reload", "greendot")
        until("the log says so", lambda: self.log_has("the files of keys were read anew"))
        asked = "asked process %s to read" % pid
        config = "--config=/etc/greendot/greendot.toml"
        self.assertIn(asked, self.box.said("greendot", "reload", config))
        self.assertEqual(self.shown("MainPID"), pid)

    def test_a_restart_and_a_kill_take_nobody_offline(self) -> None:
        since = self.beats()
        self.box.said("systemctl", "restart", "greendot")
        self.assertEqual(self.since(), since)
        pid = self.shown("MainPID")
        self.box.said("kill", "-KILL", pid)
        self.comes_back(pid)
        self.assertEqual(self.since(), since)
        self.assertEqual(self.shown("NRestarts"), "1")

    def test_it_is_started_again_however_often_it_ends(self) -> None:
        # More than five times in ten seconds, after which systemd leaves others alone.
        for _ in range(7):
            pid = self.shown("MainPID")
            self.box.said("kill", "-KILL", pid)
            self.comes_back(pid)
        self.assertEqual(self.shown("ActiveState"), "active")

    def test_one_that_stands_still_is_ended_by_the_watchdog(self) -> None:
        self.box.write("/etc/systemd/system/greendot.service.d/hurried.conf", HURRIED)
        self.box.said("systemctl", "daemon-reload")
        self.box.said("systemctl", "restart", "greendot")
        since, pid = self.beats(), self.shown("MainPID")
        # It says that it is well for longer than the limit.
        time.sleep(5)
        self.assertEqual(self.shown("MainPID"), pid)
        self.box.said("kill", "-STOP", pid)
        self.comes_back(pid)
        self.assertEqual(self.since(), since)
        journal = self.box.said("journalctl", "--no-pager", "--output=cat", "UNIT=greendot.service")
        self.assertIn("Watchdog timeout", journal)

    def test_it_stops_in_good_order(self) -> None:
        self.beats()
        self.box.said("systemctl", "stop", "greendot")
        self.assertEqual(self.shown("ActiveState"), "inactive")
        self.assertEqual(self.shown("Result"), "success")
        self.box.said("systemctl", "start", "greendot")
        self.assertTrue(self.log_has("1 users known, 1 held online"))
        self.assertTrue(self.log_has("it was closed cleanly"))


# What certbot makes, and a name that leads here.
CERTIFIED = """
echo "127.0.0.1 {name}" >>/etc/hosts
mkdir -p {live} /etc/nginx/conf.d
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN={name} \\
  -addext subjectAltName=DNS:{name} -addext basicConstraints=critical,CA:FALSE \\
  -keyout {live}/privkey.pem -out {live}/fullchain.pem
"""


class FirstNode(unittest.TestCase):
    """The lines of docs/FIRST_NODE.md, which test_first_node.py types with a stand-in."""

    def test_its_lines_make_a_node_under_systemd(self) -> None:
        needed = ["nginx", "prometheus", "promtool", "openssl", "curl", "ss"]
        path = os.environ["PATH"] + ":/usr/sbin"
        lacking = [name for name in needed if shutil.which(name, path=path) is None]
        if (why := missing() or ", ".join(f"no {name}" for name in lacking)) != "":
            self.skipTest(why)
        box = Box()
        self.addCleanup(box.close)
        live = f"/etc/letsencrypt/live/{NAME}"
        box.said("bash", "-ec", CERTIFIED.format(name=NAME, live=live))
        script = f"set -o pipefail\ncd\nexport CURL_CA_BUNDLE={live}/fullchain.pem\n"
        typed = [line for line in commands("# ") if not line.startswith(LEFT_OUT)]
        for line in typed:
            # What curl leaves by itself has not failed.
            script += f"{line}\ncode=$?\n[ $code = 0 ] || [ $code = 28 ] || exit 1\necho '\a'\n"
        told = box.said("env", "HOME=/root", "bash", "-c", f"exec 2>&1\n{script}").split("\a\n")
        said = dict(zip(typed, told))
        self.assertEqual(len(told), len(typed) + 1)
        judged = said["greendot doctor --config greendot.toml"]
        self.assertNotIn("FAIL", judged)
        self.assertIn("those of greendot.service, as systemd has it", judged)
        self.assertEqual(said["greendot health --http 127.0.0.1:8080"], "ready\n")
        expected = [f"127.0.0.1:{port}" for port in (8080, 8081, 8082, 9090)]
        expected += [f"{host}:{port}" for host in ("0.0.0.0", "[::]") for port in (80, 443)]
        self.assertEqual(told[-2].split(), sorted(expected))
        for unit in ("greendot", "nginx", "prometheus"):
            self.assertEqual(box.said("systemctl", "is-active", unit), "active\n")


def run(*command: str) -> None:
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)


def closed() -> None:
    """Everything that is mounted can only be read from here on, in this namespace."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        # proc(5): spaces and the like are in octal.
        place = re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), line.split()[4])
        # One that another covers can not be reached, nor remounted. Processes are of a namespace.
        if place != "/proc":
            subprocess.run(["mount", "-o", "remount,bind,ro", place], capture_output=True)
    probe = subprocess.run(["touch", "/greendot-probe"], capture_output=True)
    assert probe.returncode != 0, "the machine's files can be written"


def prepare(folder: Path) -> None:
    closed()
    run("mount", "-t", "tmpfs", "none", str(folder))
    for place in OVERLAID:
        parts = [folder / place / name for name in ("upper", "work")]
        for part in parts:
            part.mkdir(parents=True)
        upper, work = parts
        options = f"lowerdir=/{place},upperdir={upper},workdir={work}"
        run("mount", "-t", "overlay", "-o", options, "greendot", f"/{place}")
    # As dpkg would, on a machine that has nothing of it yet.
    for path in ("/etc/greendot", "/var/lib/greendot"):
        shutil.rmtree(path, ignore_errors=True)
    sysusers = ROOT / "docs/deploy/systemd/greendot.sysusers"
    for source, target in [*packaged(), (sysusers, "/usr/lib/sysusers.d/greendot.conf")]:
        Path(target).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
    os.chmod("/usr/bin/greendot", 0o755)
    os.chmod("/etc/greendot/greendot.toml", 0o640)
    run("sh", str(ROOT / "docs/deploy/debian/postinst"), "configure")
    for path in IN_MEMORY:
        run("mount", "-t", "tmpfs", "-o", "mode=755", "none", path)
    for name, number in DEVICES.items():
        os.mknod(f"/dev/{name}", stat.S_IFCHR | 0o666, os.makedev(*number))
        os.chmod(f"/dev/{name}", 0o666)
    os.chmod("/tmp", 0o1777)
    Path("/dev/shm").mkdir()
    Path("/dev/ptmx").symlink_to("pts/ptmx")
    # What is not of a namespace is the machine's, and read-only.
    run("mount", "-t", "sysfs", "-o", "ro", "none", "/sys")
    run("mount", "-t", "cgroup2", "none", "/sys/fs/cgroup")
    run("mount", "--bind", "/proc/sys", "/proc/sys")
    run("mount", "-o", "remount,bind,ro", "/proc/sys")
    run("ip", "link", "set", "lo", "up")
    target = Path("/run/systemd/system/box.target")
    target.parent.mkdir(parents=True)
    target.write_text(TARGET)


def boot(folder: Path) -> None:
    assert os.getpid() == 1, "a process 1 in namespaces of its own"
    prepare(folder)
    flags = ["--log-target=journal", "--show-status=false", "--unit=box.target"]
    # It believes that it is in a container, and leaves the machine alone.
    environment = {"container": "greendot", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
    os.chdir("/")
    os.execve(SYSTEMD, [SYSTEMD, *flags], environment)


if __name__ == "__main__":
    boot(Path(sys.argv[1]))
