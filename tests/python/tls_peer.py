"""A TLS client, on tlslite-ng, that may break rules: each record is sealed and read one by one."""

import socket

from server import PATIENCE_S

from tlslite.api import HandshakeSettings, TLSConnection
from tlslite.errors import TLSAbruptCloseError

# Types of records (RFC 8446, section 5.1).
CCS, ALERT, HANDSHAKE, DATA, HEARTBEAT = range(20, 25)
WARNING, FATAL = 1, 2
# Alerts (section 6).
CLOSE_NOTIFY, UNEXPECTED_MESSAGE, BAD_RECORD_MAC, RECORD_OVERFLOW = 0, 10, 20, 22
ILLEGAL_PARAMETER, DECODE_ERROR, PROTOCOL_VERSION, USER_CANCELED = 47, 50, 70, 90
# Handshake messages (section 4).
NEW_SESSION_TICKET, KEY_UPDATE = 4, 24
# Longest content of a record.
CONTENT_MAX = 1 << 14

REQUEST = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n"


def message(kind: int, body: bytes) -> bytes:
    """A handshake message."""
    return bytes([kind]) + len(body).to_bytes(3, "big") + body


def key_update(asks: int) -> bytes:
    return message(KEY_UPDATE, bytes([asks]))


def in_clear(kind: int, content: bytes, version: bytes = b"\3\3", length: int | None = None):
    """A record that is not sealed, whose head may lie about its length."""
    length = len(content) if length is None else length
    return bytes([kind]) + version + length.to_bytes(2, "big") + content


class Unanswered(Exception):
    """In the place of an answer this came."""

    def __init__(self, said) -> None:
        super().__init__(f"no answer, but {said}")
        self.said = said


class Rewriting:
    """A socket on which what a handshake writes is rewritten, a record at a time."""

    def __init__(self, plain, rewrite) -> None:
        self._plain, self._rewrite, self._nth, self._unsent = plain, rewrite, 0, b""

    def __getattr__(self, name: str):
        return getattr(self._plain, name)

    def send(self, data: bytes) -> int:
        self._unsent += data
        out = b""
        while len(self._unsent) >= 5:
            end = 5 + int.from_bytes(self._unsent[3:5], "big")
            if len(self._unsent) < end:
                break
            record, self._unsent = self._unsent[:end], self._unsent[end:]
            out += b"".join(self._rewrite(self._nth, record)) if self._rewrite else record
            self._nth += 1
        self._plain.sendall(out)
        return len(data)

    def sendall(self, data: bytes) -> None:
        self.send(data)


class Peer:
    """A connection whose handshake is over. `rewrite` is given the number of each record that the
    handshake writes, and the record, and answers what is to be sent in its place; `padding` is how
    many zeros each sealed one has."""

    def __init__(self, at: str, rewrite=None, padding: int = 0, version=(3, 4)) -> None:
        host, port = at.rsplit(":", 1)
        self.socket = socket.create_connection((host, int(port)), timeout=PATIENCE_S)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._tls = TLSConnection(Rewriting(self.socket, rewrite))
        self._layer = self._tls._recordLayer
        settings = HandshakeSettings()
        settings.minVersion = settings.maxVersion = version
        settings.padding_cb = (lambda *_: bytearray(padding)) if padding else None
        try:
            self._tls.handshakeClientCert(settings=settings, alpn=[b"http/1.1"])
        except BaseException:
            self.socket.close()
            raise
        self._layer.padding_cb = None
        self.read = b""
        # Key updates that the server has said.
        self.updates = 0

    def __enter__(self) -> "Peer":
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def sealed(self, kind: int, content: bytes, padding: int = 0) -> bytes:
        """A record as it is on the wire."""
        return self.sealed_as_is(content + bytes([kind]) + bytes(padding))

    def sealed_as_is(self, inner: bytes) -> bytes:
        """One with this inside, its type and padding too."""
        body = bytes(self._layer._encryptThenSeal(bytearray(inner), DATA))
        return in_clear(DATA, body)

    def sealed12(self, kind: int, content: bytes) -> bytes:
        """A record of TLS 1.2."""
        return in_clear(kind, bytes(self._layer._encryptThenSeal(bytearray(content), kind)))

    def send(self, *records: bytes) -> None:
        """All in one write: the server may have gone before a second."""
        self.socket.sendall(b"".join(records))

    def step_keys(self) -> None:
        """What we seal has the next keys."""
        session = self._tls.session
        session.cl_app_secret, session.sr_app_secret = self._layer.calcTLS1_3KeyUpdate_reciever(
            session.cipherSuite, session.cl_app_secret, session.sr_app_secret
        )

    def update_keys(self, asks: int = 0) -> None:
        self.send(self.sealed(HANDSHAKE, key_update(asks)))
        self.step_keys()

    def _record(self):
        """The next record of the server's: its type and content."""
        for result in self._layer.recvRecord():
            if not isinstance(result, int):
                header, parser = result
                return header.type, bytes(parser.bytes)
        raise AssertionError("the socket blocks")

    def next(self):
        """What the server says next: data, an alert, or how it ended."""
        while True:
            try:
                kind, content = self._record()
            except ConnectionResetError:
                return "reset"
            except TLSAbruptCloseError:
                return "end"
            if kind == DATA:
                self.read += content
                return "data"
            if kind == ALERT:
                return tuple(content)
            assert kind == HANDSHAKE, kind
            if content[0] == KEY_UPDATE:
                assert content == key_update(0), content
                self.updates += 1
                session = self._tls.session
                session.cl_app_secret, session.sr_app_secret = (
                    self._layer.calcTLS1_3KeyUpdate_sender(
                        session.cipherSuite, session.cl_app_secret, session.sr_app_secret
                    )
                )
            else:
                assert content[0] == NEW_SESSION_TICKET, content

    def answered(self) -> bool:
        """The server answers a request with 200."""
        before = len(self.read)
        while b"\r\n\r\n" not in self.read[before:]:
            if (said := self.next()) != "data":
                raise Unanswered(said)
        return self.read[before:].startswith(b"HTTP/1.1 200 OK\r\n")

    def outcome(self):
        """All that the server says, to its end: its alerts, and how it ended."""
        said = []
        while not said or said[-1] not in ("end", "reset"):
            if (word := self.next()) != "data":
                said.append(word)
        return said


def raw(at: str, data: bytes) -> bytes:
    """All that the server says to these bytes, behind which nothing comes."""
    host, port = at.rsplit(":", 1)
    with socket.create_connection((host, int(port)), timeout=PATIENCE_S) as plain:
        plain.sendall(data)
        plain.shutdown(socket.SHUT_WR)
        said = b""
        try:
            while more := plain.recv(65536):
                said += more
        except ConnectionResetError:
            said += b"reset"
        return said


