"""Crowds that say as little as they can: slow heads, slow bodies, handshakes that are not finished,
readers that do not read. Each is let go in its time and counted, costs little while it waits, and
nobody beside it notices.

SLOW says how many there are of each, 1,000 by default; tests/long says 15,000. How long everything
took is printed and asserted nowhere.
"""

import contextlib
import errno
import json
import multiprocessing
import os
import re
import resource
import select
import selectors
import shutil
import socket
import ssl
import statistics
import subprocess
import time
import unittest

from server import Server, certified, until

COUNT = int(os.environ.get("SLOW", "1000"))
SLOWHTTPTEST = shutil.which("slowhttptest")
# It has one thread: with more than that some of its handshakes are let go before it gets to them.
SLOWHTTPTEST_COUNTS = {"http": 4_000, "https": 1_000}
# User memory of one that waits, in bytes: of a request or half a first message, of a handshake that
# has said nothing, and of a request over TLS.
PENDING_MAX = 2_048
SILENT_MAX = 512
SEALED_MAX = 4_608 + PENDING_MAX
# What does not depend on how many there are: tables that grow by doubling, an allocator's rounding.
SLACK_BYTES = 1 << 20
# Longest wait for all of a crowd to be let go, far beyond what any machine needs.
PATIENCE_S = 120
HEAD = b"GET /v1/stream?watch=bob HTTP/1.1\r\nHost: localhost\r\n"
POST = b"POST /v1/beat HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
BODY = POST + b"Content-Length: 60000\r\n\r\n{"
# A first message that says it has 512 bytes.
HALF_HELLO = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"


def bystander(address, stop, answered):
    """Asks again and again; how long each answer took."""
    host, port = address.rsplit(":", 1)
    took = []
    while not stop.is_set():
        began = time.monotonic()
        with socket.create_connection((host, int(port)), timeout=PATIENCE_S) as conn:
            conn.sendall(b"GET /v1/presence/bob HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert conn.recv(4_096).startswith(b"HTTP/1.1 200 OK\r\n")
        took.append(time.monotonic() - began)
        time.sleep(0.02)
    answered.put(took)


@contextlib.contextmanager
def beside(server):
    """Somebody is answered all the time; the list has how long it took, in ms, afterwards."""
    fork = multiprocessing.get_context("fork")
    stop, answered, took = fork.Event(), fork.Queue(), []
    process = fork.Process(target=bystander, args=(server.http, stop, answered))
    process.start()
    try:
        yield took
        stop.set()
        took.extend(1_000 * one for one in answered.get(timeout=PATIENCE_S))
    finally:
        process.kill()
        process.join()


class Crowd:
    """Connections that have begun in some way and go on a little every second, until each is let
    go."""

    def __init__(self, begin, go_on=b"") -> None:
        self._begin, self._go_on = begin, go_on
        self._selector = selectors.DefaultSelector()
        self.said, self.longest_s, self.resets = [], 0.0, 0

    def come(self, count):
        for _ in range(count):
            began = time.monotonic()
            conn = self._begin()
            conn.setblocking(False)
            self._selector.register(conn, selectors.EVENT_READ, [began, b""])
            self.look(0)

    def look(self, wait_s):
        """Takes note of who has been let go."""
        for key, _ in self._selector.select(wait_s):
            conn, (began, _) = key.fileobj, key.data
            try:
                more = conn.recv(4_096)
            except (BlockingIOError, ssl.SSLWantReadError):
                continue
            except (ConnectionResetError, ssl.SSLError):
                self.resets += 1
                more = b""
            key.data[1] += more
            if not more:
                self.longest_s = max(self.longest_s, time.monotonic() - began)
                self.said.append(key.data[1])
                self._selector.unregister(conn)
                conn.close()

    def wait(self):
        """Until all have been let go."""
        end = time.monotonic() + PATIENCE_S
        next_s = time.monotonic() + 1
        while self._selector.get_map():
            assert time.monotonic() < end, f"{len(self._selector.get_map())} are still there"
            self.look(0.1)
            if self._go_on and time.monotonic() >= next_s:
                next_s += 1
                for key in list(self._selector.get_map().values()):
                    # Of one that has been let go the next look takes note.
                    with contextlib.suppress(OSError):
                        key.fileobj.send(self._go_on)

    def close(self):
        for key in list(self._selector.get_map().values()):
            key.fileobj.close()
        self._selector.close()


class Slow(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        before = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
        cls.addClassCleanup(resource.setrlimit, resource.RLIMIT_NOFILE, before)
        cls.assertGreater(cls(), limit, COUNT + 500, "descriptors (ulimit -n)")

    def serve(self, conns=200, handshakes=200):
        """A server with room for so many, and no more: each of them is a descriptor."""
        named = ["--https=127.0.0.1:0", "--tls-cert=tls.crt", "--tls-key=tls.key"]
        named += [f"--conns-max={conns}", f"--tls-handshakes-max={handshakes}"]
        # The deadlines are the defaults.
        named += ["--keep-alive-ms=1h", "--beat-interval-ms=10m", "--offline-after-ms=30m"]
        self.server = Server(*named, files=certified())
        self.addCleanup(self.server.close)

    def connect(self, address, say=b""):
        host, port = address.rsplit(":", 1)
        conn = socket.create_connection((host, int(port)), timeout=PATIENCE_S)
        conn.sendall(say)
        return conn

    def anonymous_bytes(self):
        rollup = self.server.memory()
        return 1_024 * int(re.search(r"^Anonymous:\s+(\d+) kB$", rollup, re.M)[1])

    def waits(self, name, series, crowd, each_max):
        """The crowd comes, waits, is counted as that, and has gone; what each cost at most."""
        # Buffers and tables of the first have been made.
        first = Crowd(crowd._begin)
        first.come(50)
        first.close()
        until("the first have gone", lambda: self.server.metric("greendot_conns{") <= 1)
        until("the same", lambda: self.server.metric("greendot_tls_handshakes_pending") == 0)
        before, counted = self.anonymous_bytes(), self.server.metric(series)
        with beside(self.server) as took:
            began = time.monotonic()
            crowd.come(COUNT)
            came_s = time.monotonic() - began
            pending = COUNT - len(crowd.said)
            each = (self.anonymous_bytes() - before) / pending
            crowd.wait()
        self.assertEqual(len(crowd.said), COUNT)
        self.assertEqual(self.server.metric(series), counted + COUNT)
        self.assertLessEqual(each, each_max + SLACK_BYTES / pending)
        self.assertGreater(len(took), 10)
        print(
            f"\n{name}: {COUNT} came in {came_s:.1f} s, {each:.0f} bytes each of {pending}, gone"
            f" {crowd.longest_s:.2f} s after they came at the latest; a GET beside them took"
            f" {statistics.median(took):.1f} ms (median of {len(took)}, {max(took):.0f} at most)"
        )
        crowd.close()

    def answers(self, crowd, status):
        """All were told why, in these words."""
        told = sum(said.startswith(b"HTTP/1.1 " + status) for said in crowd.said)
        self.assertEqual(told + crowd.resets, COUNT, crowd.said[:3])
        # What was on the way when the server closed may reset one or the other.
        self.assertGreater(told, COUNT // 2)

    DEADLINE = 'greendot_limit_hits_total{limit="request-deadline-ms"'
    TIMED_OUT = 'greendot_tls_handshakes_failed_total{reason="timed_out"'

    def test_slow_heads(self):
        self.serve(conns=COUNT + 200)
        crowd = Crowd(lambda: self.connect(self.server.http, HEAD), b"X: y\r\n")
        self.waits("slow heads", self.DEADLINE, crowd, PENDING_MAX)
        self.answers(crowd, b"408 ")

    def test_slow_bodies(self):
        self.serve(conns=COUNT + 200)
        crowd = Crowd(lambda: self.connect(self.server.http, BODY), b" ")
        self.waits("slow bodies", self.DEADLINE, crowd, PENDING_MAX)
        self.answers(crowd, b"408 ")

    def test_handshakes_that_say_nothing(self):
        self.serve(handshakes=COUNT + 200)
        crowd = Crowd(lambda: self.connect(self.server.https))
        self.waits("silent handshakes", self.TIMED_OUT, crowd, SILENT_MAX)
        self.assertEqual(set(crowd.said), {b""})

    def test_handshakes_that_say_half_a_message(self):
        self.serve(handshakes=COUNT + 200)
        crowd = Crowd(lambda: self.connect(self.server.https, HALF_HELLO), b"\0")
        self.waits("half a first message", self.TIMED_OUT, crowd, PENDING_MAX)
        self.assertEqual(set(crowd.said), {b""})

    def test_slow_heads_over_tls(self):
        self.serve(conns=COUNT + 200)
        context = ssl.create_default_context(cafile=self.server.path("ca.crt"))
        plain = self.connect

        def connect():
            conn = plain(self.server.https)
            sealed = context.wrap_socket(conn, server_hostname="localhost")
            sealed.sendall(HEAD)
            return sealed

        crowd = Crowd(connect, b"X: y\r\n")
        self.waits("slow heads over TLS", self.DEADLINE, crowd, SEALED_MAX)
        self.answers(crowd, b"408 ")

    @unittest.skipUnless(COUNT > 1_000, "it takes half a minute; tests/long has it")
    def test_readers_that_never_read(self):
        count = 200
        self.serve(conns=2 * count + 200)
        context = ssl.create_default_context(cafile=self.server.path("ca.crt"))
        names = [f"{n:0>128}" for n in range(1_000)]
        body = json.dumps({"watch": names}).encode()
        head = POST.replace(b"/v1/beat", b"/v1/stream")
        request = head + b"Content-Length: %d\r\n\r\n" % len(body) + body
        poll, waits = select.poll(), {}
        for nth in range(2 * count):
            host, port = [self.server.http, self.server.https][nth % 2].rsplit(":", 1)
            conn = socket.socket()
            # Before it connects, so that its window is never wide.
            conn.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
            conn.settimeout(PATIENCE_S)
            conn.connect((host, int(port)))
            if nth % 2:
                conn = context.wrap_socket(conn, server_hostname="localhost")
            # The server's own clock.
            began = time.clock_gettime(time.CLOCK_BOOTTIME)
            conn.sendall(request)
            # A reset is told although nothing else is asked for.
            poll.register(conn, 0)
            waits[conn.fileno()] = conn, began, nth % 2
        took = [], []
        while waits:
            told = poll.poll(1_000 * PATIENCE_S)
            now = time.clock_gettime(time.CLOCK_BOOTTIME)
            self.assertTrue(told, f"{len(waits)} are still there")
            for fd, _ in told:
                conn, began, sealed = waits.pop(fd)
                error = conn.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                self.assertEqual(error, errno.ECONNRESET)
                took[sealed].append(now - began)
                poll.unregister(fd)
                conn.close()
        for name, took in zip(("plaintext", "TLS"), took):
            self.assertEqual(len(took), count)
            self.assertGreaterEqual(min(took), 30.0, name)
            # How much later is a tick of the server, and what the machine takes.
            print(
                f"\nreaders that never read, {name}: {count} were reset {min(took):.3f} to"
                f" {max(took):.3f} s after they had asked"
            )
        evicted = 'greendot_conns_evicted_total{reason="write_stall"'
        self.assertEqual(self.server.metric(evicted), 2 * count)

    def slowhttptest(self, url, *flags, count, seconds):
        """What Debian's slowhttptest says of so many connections."""
        command = [SLOWHTTPTEST, *flags, "-c", str(count), "-r", str(count), "-i", "1", "-p", "5"]
        command += ["-l", str(seconds), "-u", url]
        limits = {"stdin": subprocess.DEVNULL, "timeout": PATIENCE_S}
        done = subprocess.run(command, capture_output=True, text=True, **limits)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        said = re.sub(r"\x1b\[[0-9;]*\w", "", done.stdout)
        # It says so each few seconds.
        available = re.findall(r"service available: +(YES|NO)", said)
        self.assertEqual(set(available), {"YES"}, said)
        return said

    @unittest.skipUnless(SLOWHTTPTEST, "there is no slowhttptest (apt-get install slowhttptest)")
    @unittest.skipUnless(COUNT > 1_000, "it takes two minutes; tests/long has it")
    def test_what_slowhttptest_does(self):
        self.serve(conns=COUNT + 200, handshakes=1_024)
        heads = ["-H"], "/v1/stream?watch=bob", self.DEADLINE, 30
        bodies = ["-B", "-t", "POST", "-f", "application/json"], "/v1/beat", self.DEADLINE, 30
        # A window that is never as wide as the answer, and is next to never read.
        narrow = ["-X", "-w", "512", "-y", "1024", "-n", "5", "-z", "32"]
        evicted = 'greendot_conns_evicted_total{reason="write_stall"'
        reads = narrow, "/openapi.json", evicted, 45
        faults = 'greendot_conns_closed_total{reason="fault"'
        bases = {"http": self.server.http, "https": self.server.https}
        for flags, path, series, seconds in (heads, bodies, reads):
            for scheme, address in bases.items():
                with self.subTest(flags[0], scheme=scheme):
                    count, before = SLOWHTTPTEST_COUNTS[scheme], self.server.metric(series)
                    answered = self.server.metric(faults)
                    url = f"{scheme}://{address}{path}"
                    said = self.slowhttptest(url, *flags, count=count, seconds=seconds)
                    if flags is not narrow:
                        self.assertIn("No open connections left", said)
                        # Each has been answered why.
                        self.assertEqual(self.server.metric(faults), answered + count)
                    # Over TLS it begins some requests, up to one in a hundred, with a header line
                    # of its follow-up, and the request line comes behind: refused with 400.
                    most = before + 0.98 * count
                    until(series, lambda: self.server.metric(series) >= most)


if __name__ == "__main__":
    unittest.main()
