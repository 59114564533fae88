"""Datagrams by the thousand, of kinds that a server refuses, and of one that it takes."""

import os
import socket
import time

from server import PATIENCE_S, Server, run

# linux/udp.h: one call sends many datagrams of one length.
UDP_SEGMENT = 103
SEGMENTS_MAX = 64
BYTES_MAX = 65_000


def caught(server: Server, *users: str) -> bytes:
    """What `greendot beat` would send to the server of these, and does not: it is sent here."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as here:
        here.bind(("127.0.0.1", 0))
        here.settimeout(PATIENCE_S)
        host, port = here.getsockname()
        key = f"--key-file={server.path('data/fleet.key')}"
        run("beat", *(users or ["bob"]), f"--udp={host}:{port}", key)
        return here.recv(65_536)


def kinds(server: Server, skew_ms: int) -> dict[str, bytes]:
    """A datagram of each kind, by the reason for which it is refused; `replayed` is one that was
    taken. The server's --beat-skew-max-ms is `skew_ms`."""
    stale = caught(server)
    forged = bytearray(stale)
    forged[-1] ^= 1
    time.sleep(skew_ms / 1_000 + 0.5)
    good = caught(server)
    forged = good[:-1] + bytes([good[-1] ^ 1])
    garbage = bytes([stale[0] ^ 0xFF]) + os.urandom(len(stale) - 1)
    return {"short": good[:10], "magic": garbage, "mac": forged, "stale": stale, "replayed": good}


class Flood:
    """A socket that sends one datagram again and again, and hears whatever is answered."""

    def __init__(self, server: Server, datagram: bytes, segments: int = SEGMENTS_MAX) -> None:
        host, port = server.udp.rsplit(":", 1)
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.connect((host, int(port)))
        segments = min(segments, BYTES_MAX // len(datagram))
        if segments > 1:
            self._socket.setsockopt(socket.SOL_UDP, UDP_SEGMENT, len(datagram))
        self._many, self._segments = datagram * segments, segments
        self.sent = 0

    def send(self, times: int) -> None:
        """So many calls, of as many datagrams each as were asked for."""
        for _ in range(times):
            # An error here is an answer too: of the server's host, that nobody listens.
            self._socket.send(self._many)
            self.sent += self._segments

    def heard(self) -> bytes | None:
        """What has been answered; None: nothing."""
        self._socket.setblocking(False)
        try:
            return self._socket.recv(65_536)
        except BlockingIOError:
            return None
        finally:
            self._socket.setblocking(True)

    def close(self) -> None:
        self._socket.close()
