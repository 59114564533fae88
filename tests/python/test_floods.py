"""Floods of datagrams, on the real server: each is counted, none is answered, and whoever watches
is told all the same. benches/floods has what they cost."""

import time
import unittest

from flood import SEGMENTS_MAX, Flood, kinds
from server import Server, until

from greendot import Greendot

SKEW_MS = 1_000
# Calls for each kind, of 64 datagrams.
CALLS = 1_000


class Floods(unittest.TestCase):
    def test_each_is_counted_and_none_is_answered(self):
        flags = [f"--beat-skew-max-ms={SKEW_MS}", "--offline-after-ms=30m"]
        flags += ["--beat-interval-ms=10m"]
        with Server(*flags) as server:
            greendot = Greendot(server.url)
            took = {}
            with greendot.watch("carol") as states:
                self.assertEqual(next(states).status, "offline")
                for reason, datagram in kinds(server, SKEW_MS).items():
                    with self.subTest(reason):
                        began = time.monotonic()
                        self.flood(server, reason, datagram)
                        took[reason] = time.monotonic() - began
                        greendot.beat("carol")
                        self.assertEqual(next(states).status, "online")
                        greendot.leave("carol")
                        self.assertEqual(next(states).status, "offline")
            log = server.path("log").read_text()
        # Each reason has a line a second; a datagram that is taken has none.
        lines = [line for line in log.splitlines() if "a beat datagram from 127." in line]
        for reason, seconds in took.items():
            of_it = [line for line in lines if f" was refused ({reason}): it " in line]
            least, most = (0, 0) if reason == "replayed" else (1, 1 + int(seconds))
            self.assertTrue(least <= len(of_it) <= most, log)
            self.assertEqual(sum(" WARN " in line for line in of_it), least, log)
            lines = [line for line in lines if line not in of_it]
        self.assertEqual(lines, [], log)

    def flood(self, server, reason, datagram):
        """All that were sent have been received or were dropped by the kernel, which is counted."""
        received, lost = "greendot_datagrams_received_total", "greendot_datagrams_lost_total"
        refused = f'greendot_datagrams_refused_total{{reason="{reason}"'
        if reason == "replayed":
            refused = 'greendot_beats_total{source="udp"'
        before = [server.metric(name) for name in (received, lost, refused)]
        flood = Flood(server, datagram)
        flood.send(CALLS)

        def counts():
            after = [server.metric(name) for name in (received, lost, refused)]
            return [now - then for now, then in zip(after, before)]

        def accounted():
            # The kernel drops as one what was sent as one. What has come may wait for its turn.
            came, dropped, bad = counts()
            return came + dropped * SEGMENTS_MAX >= flood.sent and bad >= came

        until(f"{reason}: all are accounted for", accounted)
        came, dropped, bad = counts()
        self.assertEqual((came + dropped * SEGMENTS_MAX, bad), (flood.sent, came))
        self.assertEqual(flood.sent, CALLS * SEGMENTS_MAX)
        self.assertIsNone(flood.heard())
        flood.close()


if __name__ == "__main__":
    unittest.main()
