"""docs/examples/webhook.py against the real server, and in pieces: another implementation of the
signature than the server's own."""

import base64
import http.client
import http.server
import json
import signal
import ssl
import subprocess
import sys
import threading
import time
import unittest

from server import ROOT, Server, until

sys.path.insert(0, str(ROOT / "docs/examples"))
import webhook  # noqa: E402
from greendot import Greendot  # noqa: E402

try:
    import jsonschema
except ImportError:
    jsonschema = None

# The example of Standard Webhooks' own libraries.
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
OTHER = "whsec_" + base64.b64encode(bytes(32)).decode()
HEADERS = {
    "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
    "webhook-timestamp": "1614265330",
    "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
}
BODY = b'{"test": 2432232314}'


class Verifying(unittest.TestCase):
    def test_a_known_signature(self):
        now = 1614265330
        keys = webhook.secrets(f"# new\n{OTHER}\n\n{SECRET}\n")
        self.assertTrue(webhook.verify(keys, HEADERS, BODY, now))
        self.assertTrue(webhook.verify(keys, HEADERS, BODY, now + 300))
        old = {**HEADERS, "webhook-signature": "v1,AAAA " + HEADERS["webhook-signature"]}
        self.assertTrue(webhook.verify(keys, old, BODY, now))

    def test_what_is_not_signed_is_refused(self):
        now, keys = 1614265330, webhook.secrets(SECRET)
        self.assertFalse(webhook.verify(webhook.secrets(OTHER), HEADERS, BODY, now))
        self.assertFalse(webhook.verify(keys, HEADERS, BODY + b" ", now))
        self.assertFalse(webhook.verify(keys, HEADERS, BODY, now + 301))
        for name in HEADERS:
            for value in ("", "1", "v1,", "\u00b2"):
                changed = {**HEADERS, name: value}
                self.assertFalse(webhook.verify(keys, changed, BODY, now), changed)
            missing = {other: HEADERS[other] for other in HEADERS if other != name}
            self.assertFalse(webhook.verify(keys, missing, BODY, now), missing)

    def test_the_readme_shows_it_as_it_is(self):
        whole = (ROOT / "docs/examples/webhook.py").read_text()
        start = whole.index("def verify(")
        shown = whole[start : whole.index("\n\n\n", start)]
        self.assertIn(f"```python\n{shown}\n```", (ROOT / "README.md").read_text())

    def test_an_older_state_is_no_news(self):
        presence = webhook.Presence()
        record = {"user": "bob", "status": "online", "since": 2}
        self.assertEqual(presence.take({"presence": [record]}), [record])
        self.assertEqual(presence.take({"presence": [record, {**record, "since": 1}]}), [])


class Example:
    """The example as a process of its own."""

    def __init__(self, file):
        path = str(ROOT / "docs/examples/webhook.py")
        self._process = subprocess.Popen(
            [sys.executable, path, file, "127.0.0.1:0"], stdout=subprocess.PIPE, text=True
        )
        self.address = self._process.stdout.readline().split("=")[1].strip()
        self.lines = []
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self):
        for line in self._process.stdout:
            self.lines.append(line.split()[:2])

    def close(self):
        self._process.kill()
        self._process.wait()
        self._thread.join()
        self._process.stdout.close()


class Told(unittest.TestCase):
    def example(self, *lines):
        folder = self.enterContext(Server("--offline-after-ms=60s")).folder
        file = folder / "receiver.secret"
        file.write_text("\n".join(lines))
        example = Example(str(file))
        self.addCleanup(example.close)
        return example

    def server(self, url, *flags):
        named = [f"--webhook={url}", "--webhook-secret-file=hook.secret", "--webhook-private"]
        return self.enterContext(
            Server(
                *named,
                "--webhook-retry-max-ms=200",
                "--offline-after-ms=60s",
                *flags,
                files={"hook.secret": f"{SECRET}\n"},
            )
        )

    def test_the_example_prints_who_comes_and_goes(self):
        example = self.example(OTHER, SECRET)
        server = self.server(f"http://{example.address}/hook")
        greendot = Greendot(server.url)
        expected = []
        for status, act in (
            ("online", lambda: greendot.beat("bob")),
            ("away", lambda: greendot.set_status("away", user="bob")),
            ("offline", lambda: greendot.leave("bob")),
        ):
            act()
            expected.append(["bob", status])
            until(f"bob is {status}", lambda: example.lines == expected)
        # The next life of the server signs by the same secret, and tells nothing twice.
        server.signal(signal.SIGKILL)
        server.wait()
        server.start()
        Greendot(server.url).beat("carol")
        until("carol is here", lambda: example.lines == [*expected, ["carol", "online"]])

    def test_another_secret_is_refused_and_the_message_kept(self):
        example = self.example(OTHER)
        server = self.server(f"http://{example.address}/hook")
        Greendot(server.url).beat("bob")
        refused = 'greendot_webhook_failures_total{reason="4xx"}'
        until("it is refused", lambda: server.metric(refused) >= 1)
        server.path("hook.secret").write_text(f"{OTHER}\n{SECRET}\n")
        server.signal(signal.SIGHUP)
        until("bob is here", lambda: example.lines == [["bob", "online"]])

    def test_the_example_takes_no_endless_body(self):
        example = self.example(SECRET)
        connection = http.client.HTTPConnection(example.address, timeout=20)
        connection.putrequest("POST", "/hook")
        connection.putheader("Content-Length", str(1 << 40))
        connection.endheaders()
        self.assertEqual(connection.getresponse().status, 413)
        connection.close()

    def receiver(self, seal=None):
        """A receiver that verifies all, and the headers and the message of each request."""
        seen = []

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                keys = webhook.secrets(SECRET)
                assert webhook.verify(keys, self.headers, body, time.time())
                seen.append((self.headers, json.loads(body)))
                self.send_response(204)
                self.end_headers()

            def log_message(self, *_):
                pass

        receiver = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        if seal is not None:
            receiver.socket = seal.wrap_socket(receiver.socket, server_side=True)
        thread = threading.Thread(target=receiver.serve_forever)
        thread.start()
        self.addCleanup(receiver.server_close)
        self.addCleanup(thread.join)
        self.addCleanup(receiver.shutdown)
        scheme = "http" if seal is None else "https"
        return f"{scheme}://127.0.0.1:{receiver.server_address[1]}/hook", seen

    @unittest.skipIf(jsonschema is None, "tests/proxies/install has not installed the judges")
    def test_it_is_told_what_openapi_says(self):
        described = json.loads((ROOT / "src/web/openapi.json").read_text())
        (hook,) = described["webhooks"].values()
        asked = hook["post"]["requestBody"]["content"]["application/json"]
        schema = {**asked["schema"], "components": described["components"]}
        judge = jsonschema.Draft202012Validator(schema)
        judge.validate(asked["example"])
        url, seen = self.receiver()
        greendot = Greendot(self.server(url).url)
        for status, act in (
            ("online", lambda: greendot.beat("bob")),
            ("busy", lambda: greendot.set_status("busy", user="bob")),
            ("offline", lambda: greendot.leave("bob")),
        ):
            already = len(seen)
            act()
            until(f"it is told: {status}", lambda: len(seen) > already)
            headers, message = seen[-1]
            judge.validate(message)
            self.assertEqual([record["status"] for record in message["presence"]], [status])
            for parameter in hook["post"]["parameters"]:
                self.assertRegex(headers[parameter["name"]], parameter["schema"]["pattern"])

    def test_a_receiver_is_believed_by_its_certificate_alone(self):
        folder = self.enterContext(Server("--offline-after-ms=60s")).folder
        for name in ("ours", "theirs"):
            command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes"
            command += f" -keyout {name}.key -out {name}.crt -days 2 -subj /CN={name}"
            command += " -addext subjectAltName=IP:127.0.0.1"
            command += " -addext basicConstraints=critical,CA:FALSE"
            subprocess.run(command.split(), cwd=folder, check=True, capture_output=True)
        seal = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        seal.load_cert_chain(folder / "ours.crt", folder / "ours.key")
        url, seen = self.receiver(seal)
        stranger = self.server(url, f"--tls-ca={folder}/theirs.crt")
        Greendot(stranger.url).beat("alice")
        failed = 'greendot_webhook_failures_total{reason="tls"}'
        until("it is not believed", lambda: stranger.metric(failed) >= 1)
        server = self.server(url, f"--tls-ca={folder}/ours.crt")
        Greendot(server.url).beat("bob")
        told = lambda: [record["user"] for _, message in seen for record in message["presence"]]
        until("bob is told of", lambda: told() == ["bob"])
