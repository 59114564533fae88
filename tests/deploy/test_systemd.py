"""docs/deploy/systemd: the unit is as closed as it says, and lets through what the server does."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import tempfile
import unittest
import urllib.request
from pathlib import Path

from server import ENV, PATIENCE_S, PROGRAM, ROOT, run

FOLDER = ROOT / "docs/deploy/systemd"
UNIT = FOLDER / "greendot.service"
# Of 10: "exposure level" as systemd-analyze counts it.
EXPOSURE_MAX = 2.0


def settings(name: str) -> list[str]:
    """What the unit says of one setting, in its order."""
    lines = UNIT.read_text().splitlines()
    return [line.partition("=")[2] for line in lines if line.startswith(f"{name}=")]


def needs(program: str):
    missing = shutil.which(program) is None
    return unittest.skipIf(missing, f"no {program}; what needs it is skipped")


def syscalls(group: str) -> set[str]:
    """The calls of a group of systemd's, those of its groups among them."""
    command = ["systemd-analyze", "syscall-filter", group]
    listed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    names = set()
    for line in listed.splitlines()[1:]:
        name = line.strip()
        if name.startswith("@"):
            names |= syscalls(name)
        elif name and not name.startswith("#"):
            names.add(name)
    return names


class Unit(unittest.TestCase):
    @needs("systemd-analyze")
    def test_it_is_closed(self) -> None:
        command = ["systemd-analyze", "security", "--offline=true", "--no-pager", str(UNIT)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        level = re.search(r"Overall exposure level for greendot.service: ([0-9.]+)", done.stdout)
        self.assertLess(float(level[1]), EXPOSURE_MAX)

    @needs("systemd-analyze")
    def test_systemd_knows_all_of_its_words(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            # The program may be installed nowhere on this machine.
            text = UNIT.read_text().replace("/usr/bin/greendot", PROGRAM)
            copy = Path(folder) / UNIT.name
            copy.write_text(text)
            command = ["systemd-analyze", "verify", "--recursive-errors=no", str(copy)]
            done = subprocess.run(command, capture_output=True, text=True)
        self.assertEqual((done.returncode, done.stderr), (0, ""))

    @needs("strace")
    @needs("systemd-analyze")
    def test_its_filter_lets_through_what_the_server_calls(self) -> None:
        allow, deny = settings("SystemCallFilter")
        self.assertEqual(deny[:1], "~")
        allowed = syscalls(allow) - syscalls(deny[1:])
        self.assertGreater(len(allowed), 100)
        with tempfile.TemporaryDirectory(prefix="greendot-") as folder:
            log = Path(folder) / "calls"
            command = ["strace", "-f", "-qq", "-o", str(log), PROGRAM, "serve", "--memory=off"]
            command += ["--http=127.0.0.1:0", "--udp=127.0.0.1:0", "--drain-ms=0", "--shards=2"]
            command += [f"--data-dir={folder}/data"]
            pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
            with subprocess.Popen(command, env=ENV, **pipe) as traced:
                try:
                    http = re.match(r"listening http=(\S+)", traced.stdout.readline())[1]
                    server = int(log.read_text().split()[0])
                    stream = f"http://{http}/v1/stream?user=bob&watch=alice"
                    with urllib.request.urlopen(stream, timeout=PATIENCE_S) as events:
                        self.assertEqual(events.readline(), b"event: hello\n")
                    os.kill(server, signal.SIGHUP)
                    os.kill(server, signal.SIGTERM)
                    self.assertEqual(traced.wait(PATIENCE_S), 0)
                finally:
                    traced.kill()
            made = set(re.findall(r"^\d+ +([a-z_0-9]+)\(", log.read_text(), re.MULTILINE))
        self.assertIn("epoll_wait", made)
        self.assertEqual(made - allowed, set())

    def test_it_stops_no_sooner_than_a_drain_takes(self) -> None:
        told = dict(re.findall(r"^(\w+) = (\S+)", run("config"), re.MULTILINE))
        self.assertGreater(int(settings("TimeoutStopSec")[0]) * 1_000, int(told["drain_ms"]))

    def test_its_settings_are_some(self) -> None:
        command = shlex.split(settings("ExecStart")[0])
        self.assertEqual(command[:2], ["/usr/bin/greendot", "serve"])
        config = FOLDER / "greendot.toml"
        self.assertEqual(command[2:], ["--config", f"/etc/greendot/{config.name}"])
        # As it is, and with all that it proposes.
        proposed = re.sub(r"^# (\w+ = )", r"\1", config.read_text(), flags=re.MULTILINE)
        with tempfile.TemporaryDirectory() as folder:
            for text in (config.read_text(), proposed):
                path = Path(folder) / config.name
                path.write_text(text)
                said = run("config", "--config", str(path))
                for name, value in re.findall(r"^(\w+) = (.*)$", text, re.MULTILINE):
                    self.assertRegex(said, rf"(?m)^{name} = {re.escape(value)} +# .*{config.name}")
        self.assertNotEqual(proposed, config.read_text())

    def test_its_folders_are_those_of_the_settings(self) -> None:
        config = (FOLDER / "greendot.toml").read_text()
        places = {"StateDirectory": "/var/lib", "RuntimeDirectory": "/run"}
        for (name, under), key in zip(places.items(), ("data_dir", "memory")):
            self.assertIn(f'\n{key} = "{under}/{settings(name)[0]}"\n', config)
        (user,), (group,) = settings("User"), settings("Group")
        words = shlex.split((FOLDER / "greendot.sysusers").read_text(), comments=True)
        self.assertEqual(words[:2], ["u", user])
        self.assertEqual(group, user)
        self.assertEqual(words[-1], "/var/lib/" + settings("StateDirectory")[0])


class Machine(unittest.TestCase):
    def test_the_kernels_limits_are_those_of_the_handbook(self) -> None:
        handbook = (ROOT / "docs/OPERATIONS.md").read_text()
        lines = (FOLDER / "greendot.sysctl").read_text().splitlines()
        limits = [line.split(" = ") for line in lines if line and not line.startswith("#")]
        self.assertGreater(len(limits), 3)
        for name, value in limits:
            quoted = f'"{value}"' if " " in value else value
            self.assertIn(f"`sysctl -w {name}={quoted}`", handbook)
