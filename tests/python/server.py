"""Servers for tests: the real one, and one that is none."""

import http.client
import http.server
import os
import pathlib
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

ROOT = pathlib.Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "docs/clients/python"))
TARGET = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")).resolve()
# GREENDOT names another program.
PROGRAM = os.path.abspath(os.environ.get("GREENDOT", TARGET / "debug/greendot"))
# Where tests/proxies/install puts what is judged by.
READERS = TARGET / "readers"
# A test's folder has no settings of the machine's.
ENV = {name: value for name, value in os.environ.items() if not name.startswith("GREENDOT")}
# Longest wait for what must come.
PATIENCE_S = 20.0

# The curve of certificates.
EC = "ec_paramgen_curve:P-256"

FAST = (
    "--beat-interval-ms=500",
    "--offline-after-ms=1500",
    "--sweep-interval-ms=50",
    # A machine that stands still for a second or two makes nothing stale.
    "--keep-alive-ms=10s",
    "--retry-ms=100",
    "--drain-ms=500",
)


def run(*args: str) -> str:
    """What the program prints."""
    done = subprocess.run([PROGRAM, *args], env=ENV, check=True, capture_output=True, text=True)
    return done.stdout


def certified() -> dict[str, str]:
    """What a server needs that speaks TLS, `tls.crt` and `tls.key`, and `ca.crt`, who vouches."""

    def issue(name: str, subject: str, *more: str) -> None:
        command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", EC, "-nodes"]
        command += ["-days", "90", "-subj", f"/CN={subject}"]
        command += ["-out", f"{name}.crt", "-keyout", f"{name}.key", *more]
        subprocess.run(command, check=True, capture_output=True, cwd=folder)

    with tempfile.TemporaryDirectory() as folder:
        issue("ca", "an authority")
        names = "subjectAltName=DNS:localhost,IP:127.0.0.1"
        extensions = [names, "basicConstraints=critical,CA:FALSE", "extendedKeyUsage=serverAuth"]
        extensions += ["keyUsage=critical,digitalSignature"]
        added = [word for extension in extensions for word in ("-addext", extension)]
        issue("tls", "localhost", "-CA", "ca.crt", "-CAkey", "ca.key", *added)
        files = ("tls.crt", "tls.key", "ca.crt")
        return {name: pathlib.Path(folder, name).read_text() for name in files}


def own_port() -> int:
    """Nobody's, now and while a server is down that is started again: the kernel gives others
    higher ones by itself."""
    while True:
        port = random.randrange(10_000, 32_768)
        with socket.socket() as probe:
            try:
                probe.bind(("", port))
                return port
            except OSError:
                pass


class Server:
    """`files` are put into its folder, where it runs, by their names."""

    def __init__(
        self, *flags: str, role: str = "serve", files: dict[str, str] | None = None
    ) -> None:
        self._home = tempfile.TemporaryDirectory(prefix="greendot-")
        self.folder = pathlib.Path(self._home.name)
        for name, text in (files or {}).items():
            self.path(name).touch(0o600)
            self.path(name).write_text(text)
        named = {flag.partition("=")[0]: flag for flag in (*FAST, *flags)}
        self._flags = list(named.values())
        self._role = role
        self.http = f"127.0.0.1:{own_port()}"
        self.start()

    def start(self) -> None:
        """Starts it, after a first time where it was."""
        command = [PROGRAM, self._role, f"--http={self.http}", "--udp=127.0.0.1:0", "--shards=1"]
        command += [f"--data-dir={self.folder}/data", "--memory=off", *self._flags]
        self._log = open(self.path("log"), "ab")
        self._process = subprocess.Popen(
            command, env=ENV, cwd=self.folder, stdout=subprocess.PIPE, stderr=self._log
        )
        line = self._process.stdout.readline().decode()
        found = re.match(r"listening http=(\S+)(?: udp=(\S+))?(?: https=(\S+))?", line)
        assert found, f"{line}\n{(self.folder / 'log').read_text()}"
        self.http, self.udp, self.https = found.groups()

    def path(self, name: str) -> pathlib.Path:
        return self.folder / name

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def url(self) -> str:
        return f"http://{self.http}"

    def signal(self, what: signal.Signals) -> None:
        self._process.send_signal(what)

    def wait(self) -> None:
        self._process.wait(PATIENCE_S)
        self._process.stdout.close()
        self._log.close()

    def close(self) -> None:
        self._process.kill()
        self.wait()
        self._home.cleanup()

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def get(self, path: str) -> str:
        """What it answers there."""
        connection = http.client.HTTPConnection(self.http, timeout=PATIENCE_S)
        connection.request("GET", path)
        text = connection.getresponse().read().decode()
        connection.close()
        return text

    def memory(self) -> str:
        """What the kernel says of its memory, in sum."""
        return pathlib.Path(f"/proc/{self._process.pid}/smaps_rollup").read_text()

    def metric(self, name: str) -> float:
        """The sum over the shards of one metric; its labels may follow the name."""
        lines = [line for line in self.get("/metrics").splitlines() if line.startswith(name)]
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines)


def until(what: str, look):
    """What `look` finds, as soon as it is something."""
    end = time.monotonic() + PATIENCE_S
    while not (found := look()):
        assert time.monotonic() < end, f"waited in vain: {what}"
        time.sleep(0.02)
    return found


class Impostor:
    """Some other server, which answers every request so."""

    def __init__(self, status: int, body: str) -> None:
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body.encode())

            def log_message(self, *_: object) -> None:
                pass

        self._server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()
        self.url = "http://127.0.0.1:%d" % self._server.server_address[1]

    def __enter__(self) -> "Impostor":
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
