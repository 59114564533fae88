"""docs/FIRST_NODE.md: its lines, as they stand there, make a node behind nginx with TLS and tokens.

As root, where namespaces can be made: in some of its own, with a network of its own, and with
overlays over what the lines write to. Nothing of the machine is changed. A stand-in plays
systemctl, the package's files are put where the package has them, and a certificate is made where
certbot would.
"""

import fcntl
import os
import re
import shutil
import socket
import stat
import struct
import subprocess
import sys
import tempfile
import tomllib
import unittest
from pathlib import Path

from server import ENV, PROGRAM, ROOT

PAGE = ROOT / "docs/FIRST_NODE.md"
NAME = "presence.example.com"
# Set in the namespaces.
INSIDE = "GREENDOT_FIRST_NODE"
ENTER = ["unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]
ENTER += ["--propagation", "private"]
PROGRAMS = ("nginx", "openssl", "curl", "unshare", "setpriv", "ss", "prometheus", "promtool")
# What downloads, what asks the world, and what is for the kernel of the whole machine.
LEFT_OUT = ("apt ", "certbot ", "sysctl ")
# What the page says of ports 80 and 443 without a line for it.
RENEWED = f"curl -sS http://{NAME}/.well-known/acme-challenge/a"
REDIRECTED = f"curl -sS -o /dev/null -w '%{{http_code}} %{{redirect_url}}' http://{NAME}/a?b"
# What systemctl does for three services, by their units' words.
SYSTEMCTL = """#!/bin/bash
set -e
case "$1 $2" in
  "enable greendot") ;;
  "restart greendot")
    unit=/usr/lib/systemd/system/greendot.service
    said() { sed -n "s/^$1=//p" $unit; }
    install -d -o greendot -g greendot -m "$(said StateDirectoryMode)" \\
      "/var/lib/$(said StateDirectory)" "/run/$(said RuntimeDirectory)"
    as="setpriv --reuid=$(said User) --regid=$(said Group) --clear-groups"
    $as $(said ExecStart) >/var/log/greendot.out 2>/var/log/greendot.log </dev/null &
    for ((n = 0; n < 200; n++)); do
      grep -q ^listening /var/log/greendot.out && exit
      sleep 0.1
    done
    cat /var/log/greendot.log >&2
    exit 1 ;;
  "restart nginx") nginx ;;
  "restart prometheus")
    . /etc/default/prometheus
    # As Debian's unit has it.
    setpriv --reuid=prometheus --regid=prometheus --clear-groups prometheus $ARGS \\
      --config.file=/etc/prometheus/prometheus.yml --storage.tsdb.path=/var/lib/prometheus/data \\
      >/var/log/prometheus.log 2>&1 </dev/null &
    for ((n = 0; n < 200; n++)); do
      curl -sf http://127.0.0.1:9090/-/ready >/dev/null && exit
      sleep 0.1
    done
    cat /var/log/prometheus.log >&2
    exit 1 ;;
  *) echo "no stand-in for systemctl $*" >&2; exit 1 ;;
esac
"""


def commands(prompt: str) -> list[str]:
    """What is typed behind a prompt, with the lines that follow it."""
    found: list[str] = []
    for block in re.findall(r"^```console\n(.*?)^```$", PAGE.read_text(), re.M | re.S):
        mine = False
        for line in block.splitlines():
            if line[:2] in ("# ", "$ "):
                mine = line.startswith(prompt)
                if mine:
                    found.append(line[2:])
            elif mine:
                found[-1] += "\n" + line
    return found


def missing() -> str | None:
    if not Path("/proc/net/if_inet6").exists():
        return "nginx's file takes a kernel with IPv6"
    if os.geteuid() != 0:
        return "only root can make namespaces"
    for program in PROGRAMS:
        if shutil.which(program, path=os.environ["PATH"] + ":/usr/sbin") is None:
            return f"no {program}"
    tried = [*ENTER, "mount", "-t", "tmpfs", "none", "/mnt"]
    if subprocess.run(tried, capture_output=True).returncode != 0:
        return "no namespaces can be made"
    return None


class FirstNode(unittest.TestCase):
    def test_what_is_typed_elsewhere_makes_the_package(self) -> None:
        made = " ".join(commands("$ "))
        self.assertIn("cargo deb --locked --target", made)
        files = "".join(re.findall(r"/usr/share/greendot/[\w.]+", " ".join(commands("# "))))
        packed = [target for _, target in packaged()]
        for file in re.findall(r"/usr/share/greendot/[\w.]+", files):
            self.assertIn(file, packed)

    def test_the_lines_of_the_page_make_a_node(self) -> None:
        if (why := missing()) is not None:
            self.skipTest(why)
        typed = [line for line in commands("# ") if not line.startswith(LEFT_OUT)]
        typed += [RENEWED, REDIRECTED]
        with tempfile.TemporaryDirectory() as folder:
            env = {**ENV, INSIDE: folder, "GREENDOT": PROGRAM}
            done = subprocess.run(
                [*ENTER, sys.executable, __file__], env=env, input="\0".join(typed),
                capture_output=True, text=True, timeout=120,
            )
        self.assertEqual(done.returncode, 0, done.stdout[-3_000:] + done.stderr[-3_000:])
        said = dict(zip(typed, done.stdout.split("\0")))
        self.assertEqual(len(said), len(typed))

        def of(*words: str) -> str:
            (found,) = [
                text for line, text in said.items() if all(word in line for word in words)
            ]
            return found

        settings = of("greendot config")
        for name in ("host", "trusted_proxies", "jwt_keys", "jwt_aud", "service_keys"):
            self.assertRegex(settings, rf"(?m)^{name} = .*greendot\.toml")
        judged = of("greendot doctor")
        self.assertNotIn("FAIL", judged)
        # The unit makes it.
        self.assertRegex(judged, r"(?m)^WARN memory folder +/run/greendot is not there yet")
        self.assertEqual(of("greendot health"), "ready\n")
        stream = of("curl", "/v1/stream")
        self.assertTrue(stream.startswith("event: hello\n"), stream)
        self.assertIn('event: snapshot\n', stream)
        self.assertIn('"user":"bob","status":"offline"', stream)
        self.assertIn('"user":"alice","status":"online"', of("curl", "app.key"))
        asked = [line for line in commands("# ") if "http_code" in line]
        codes = [said[line] for line in asked]
        self.assertEqual(codes, ["401\n", "404\n", "200\n"])
        self.assertEqual(said[RENEWED], "the name is ours\n")
        self.assertEqual(said[REDIRECTED], f"308 https://{NAME}/a?b")
        listening = of("ss -Hlntu").split()
        expected = [f"127.0.0.1:{port}" for port in (8080, 8081, 8082, 9090)]
        expected += [f"{host}:{port}" for host in ("0.0.0.0", "[::]") for port in (80, 443)]
        self.assertEqual(sorted(listening), sorted(expected))


def packaged() -> list[tuple[Path, str]]:
    """Of each file of the package where it comes from and where it goes, documents left out."""
    deb = tomllib.loads((ROOT / "Cargo.toml").read_text())["package"]["metadata"]["deb"]
    files = []
    for source, target, _ in deb["assets"]:
        if "usr/share/doc" in target:
            continue
        if target.endswith("/"):
            target += Path(source).name
        place = Path(PROGRAM) if source.startswith("target/") else ROOT / source
        files.append((place, "/" + target))
    unit = ROOT / "docs/deploy/systemd/greendot.service"
    return [*files, (unit, "/usr/lib/systemd/system/greendot.service")]


def prepare(folder: Path) -> None:
    """What is there before the page begins, or is left out of it."""
    run = lambda *command: subprocess.run(command, check=True, capture_output=True, text=True)
    interface = struct.pack("16sh", b"lo", 1)
    with socket.socket() as any_socket:
        # SIOCSIFFLAGS: up.
        fcntl.ioctl(any_socket, 0x8914, interface)
    run("mount", "-t", "tmpfs", "none", str(folder))
    for place in ("etc", "usr", "var", "root"):
        parts = [folder / place / name for name in ("upper", "work")]
        for part in parts:
            part.mkdir(parents=True)
        upper, work = parts
        options = f"lowerdir=/{place},upperdir={upper},workdir={work}"
        run("mount", "-t", "overlay", "-o", options, "greendot", f"/{place}")
    run("mount", "-t", "tmpfs", "none", "/run")
    # A machine that has nothing of it yet.
    for path in ("/etc/greendot", "/var/lib/greendot", "/etc/nginx/conf.d/greendot.conf"):
        subprocess.run(["rm", "-rf", path], check=True)
    with open("/etc/hosts", "a") as hosts:
        hosts.write(f"127.0.0.1 {NAME}\n")
    # By apt: the package, and its user.
    for source, target in packaged():
        Path(target).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
    os.chmod("/usr/bin/greendot", 0o755)
    for user in ("greendot", "prometheus"):
        if subprocess.run(["id", user], capture_output=True).returncode != 0:
            run("useradd", "--system", "--user-group", "--no-create-home", user)
    shutil.chown("/etc/greendot", group="greendot")
    os.chmod("/etc/greendot", 0o750)
    shutil.chown("/etc/greendot/greendot.toml", group="greendot")
    os.chmod("/etc/greendot/greendot.toml", 0o640)
    for path in ("/etc/prometheus", "/var/lib/prometheus/data"):
        Path(path).mkdir(parents=True, exist_ok=True)
    run("chown", "-R", "prometheus", "/var/lib/prometheus")
    Path("/var/log/nginx").mkdir(exist_ok=True)
    stand_in = Path("/usr/local/bin/systemctl")
    stand_in.write_text(SYSTEMCTL)
    stand_in.chmod(stand_in.stat().st_mode | stat.S_IXUSR)
    # By certbot.
    live = Path("/etc/letsencrypt/live") / NAME
    live.mkdir(parents=True)
    made = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2"
    made += f" -subj /CN={NAME} -addext subjectAltName=DNS:{NAME}"
    made += f" -addext basicConstraints=critical,CA:FALSE -keyout {live}/privkey.pem"
    run(*made.split(), "-out", f"{live}/fullchain.pem")
    challenges = Path("/var/www/html/.well-known/acme-challenge")
    challenges.mkdir(parents=True)
    (challenges / "a").write_text("the name is ours\n")
    os.environ["CURL_CA_BUNDLE"] = f"{live}/fullchain.pem"


def inside(folder: Path) -> int:
    typed = sys.stdin.read().split("\0")
    prepare(folder)
    os.environ["PATH"] = "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"
    # In one shell, as they are typed, up to the first that fails. What curl leaves by itself has
    # not failed. A server that goes on holds none of the pipes.
    script = "set -o pipefail\ncd /root\n"
    for line in typed:
        script += f"{line}\ncode=$?\n[ $code = 0 ] || [ $code = 28 ] || exit\nprintf '\\0'\n"
    return subprocess.run(["bash", "-c", script], stdin=subprocess.DEVNULL).returncode


if __name__ == "__main__":
    sys.exit(inside(Path(os.environ.pop(INSIDE))))
