#!/usr/bin/env python3
"""A receiver of greendot's webhooks: checks who calls, and prints who came and who went.

    python3 webhook.py hook.secret 127.0.0.1:9000

Python 3.9 or newer, and no package. `verify` is what a receiver of your own needs.
"""

import base64
import hmac
import http.server
import json
import sys
import time

# Older messages may have been recorded by somebody, and sent again.
SKEW_S = 300
BODY_BYTES_MAX = 1 << 20


def secrets(text):
    """The secrets of a file, one a line, as greendot reads it."""
    lines = (line.strip() for line in text.splitlines())
    return [
        base64.b64decode(line.removeprefix("whsec_") + "==")
        for line in lines
        if line and not line.startswith("#")
    ]


def verify(keys, headers, body, now):
    """Whether one of the keys has signed this body, a moment ago."""
    identity = headers.get("webhook-id", "")
    timestamp = headers.get("webhook-timestamp", "")
    if not timestamp.isdecimal() or abs(now - int(timestamp)) > SKEW_S:
        return False
    message = f"{identity}.{timestamp}.".encode() + body
    wanted = [b"v1," + base64.b64encode(hmac.digest(key, message, "sha256")) for key in keys]
    shown = headers.get("webhook-signature", "").encode().split()
    return any(hmac.compare_digest(one, other) for one in wanted for other in shown)


class Presence:
    """The last state of each user. A message may come twice, and never an older state after."""

    def __init__(self):
        self.states = {}

    def take(self, message):
        """The records of a message that are news."""
        news = []
        for record in message["presence"]:
            known = self.states.get(record["user"])
            if known is None or known["since"] < record["since"]:
                self.states[record["user"]] = record
                news.append(record)
        return news


class Receiver(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    keys = []
    presence = Presence()

    def handle(self):
        try:
            super().handle()
        except ConnectionError:
            pass  # A server that stops says no goodbye.

    def do_POST(self):
        length = int(self.headers.get("content-length", 0))
        if length > BODY_BYTES_MAX:
            self.close_connection = True
            return self.answer(413)
        body = self.rfile.read(length)
        if not verify(self.keys, self.headers, body, time.time()):
            return self.answer(401)
        message = json.loads(body)
        if message["version"] != 1 or message["type"] != "presence":
            return self.answer(400)
        for record in self.presence.take(message):
            print(record["user"], record["status"], record["since"], flush=True)
        # Only once it is safe: after this greendot does not tell it again.
        self.answer(204)

    def answer(self, status):
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


def main(file, address):
    host, _, port = address.rpartition(":")
    with open(file, encoding="ascii") as lines:
        Receiver.keys = secrets(lines.read())
    server = http.server.ThreadingHTTPServer((host, int(port)), Receiver)
    print(f"listening http={host}:{server.server_address[1]}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main(*sys.argv[1:])
