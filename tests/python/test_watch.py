"""The watches of docs/clients/python, against the real server and in pieces."""

import gc
import io
import signal
import threading
import unittest

from server import Impostor, Server, run, until

import greendot as module
from greendot import Greendot, Problem, State


def take(states, count=1):
    """The next states: user, status, and whether it is stale."""
    return [(state.user, state.status, state.stale) for _, state in zip(range(count), states)]


class Watches(unittest.TestCase):
    def test_what_is_known_comes_first_and_then_what_changes(self):
        with Server("--offline-after-ms=60s") as server:
            greendot = Greendot(server.url)
            greendot.beat("carol")
            with greendot.watch("bob", "carol") as states:
                first = sorted(take(states, 2))
                self.assertEqual(first, [("bob", "offline", False), ("carol", "online", False)])
                greendot.beat("bob")
                self.assertEqual(next(states), greendot.query("bob")[0])
                greendot.set_status("away", user="carol")
                self.assertEqual(take(states), [("carol", "away", False)])
                greendot.leave("bob")
                self.assertEqual(take(states), [("bob", "offline", False)])

    def test_the_holder_is_online_by_its_own_beats_until_it_closes(self):
        with Server() as server:
            greendot = Greendot(server.url)
            beats = 'greendot_requests_total{call="stream_beat",class="2xx"'
            with greendot.watch(user="alice"), greendot.watch("alice") as states:
                seen = []
                while ("alice", "online", False) not in seen:
                    seen += take(states)
                # More of them than offline_after_ms has room for.
                until("ten beats", lambda: server.metric(beats) >= 10)
                until("alice is here", lambda: greendot.query("alice")[0].online)
            # A watch that is dropped vouches no more.
            dropped = greendot.watch(user="bob")
            until("bob is here", lambda: greendot.query("bob")[0].online)
            del dropped
            gc.collect()
            until("nobody is here", lambda: server.metric("greendot_users_online") == 0)

    def test_a_restart_is_bridged_and_resumed(self):
        with Server("--offline-after-ms=60s") as server:
            greendot = Greendot(server.url)
            greendot.beat("bob")
            with greendot.watch("bob", user="alice") as states:
                self.assertEqual(take(states), [("bob", "online", False)])
                greendot.leave("bob")
                self.assertEqual(take(states), [("bob", "offline", False)])
                server.signal(signal.SIGTERM)
                server.wait()
                server.start()
                resumes = 'greendot_resumes_total{kind="partial"'
                until("a resume", lambda: server.metric(resumes) == 1)
                greendot.beat("bob")
                fresh = next(state for state in states if state.online)
                self.assertEqual((fresh.user, fresh.stale), ("bob", False))

    def test_silence_is_told_as_stale_and_its_end_as_well(self):
        with Server("--offline-after-ms=60s", "--keep-alive-ms=1000") as server:
            greendot = Greendot(server.url)
            greendot.beat("bob")
            with greendot.watch("bob") as states:
                next(state for state in states if not state.stale)
                server.signal(signal.SIGSTOP)
                last = next(state for state in states if state.stale)
                self.assertEqual((last.user, last.status), ("bob", "online"))
                server.signal(signal.SIGCONT)
                fresh = next(state for state in states if not state.stale)
                self.assertEqual((fresh.user, fresh.status), ("bob", "online"))

    def test_a_logout_and_a_goodbye_end_it(self):
        with Server() as server:
            greendot = Greendot(server.url)
            everywhere = greendot.watch("bob", user="alice")
            self.assertEqual(take(everywhere), [("bob", "offline", False)])
            greendot.leave("alice", everywhere=True)
            self.assertEqual(list(everywhere), [])
            one = greendot.watch("bob", user="alice")
            self.assertEqual(take(one), [("bob", "offline", False)])
            greendot.leave(stream=one.stream)
            self.assertEqual((list(one), one.stream), ([], None))
            self.assertEqual(greendot.query("alice")[0].status, "offline")

    def test_who_is_refused_for_load_comes_back(self):
        limits = ("--watches-per-stream-max=1", "--watches-per-shard-max=1")
        with Server(*limits) as server:
            greendot = Greendot(server.url)
            first = greendot.watch("bob")
            self.assertEqual(take(first), [("bob", "offline", False)])
            with greendot.watch("carol") as second:
                refused = 'greendot_limit_hits_total{limit="watches-per-shard-max"'
                until("a refusal", lambda: server.metric(refused) >= 1)
                first.close()
                self.assertEqual(take(second), [("carol", "offline", False)])

    def test_a_fresh_token_is_asked_for_when_one_is_void(self):
        with Server("--jwt-keys=app.secret", files={"app.secret": "s" * 64}) as server:
            secret = server.path("app.secret")

            def token(ttl="3s"):
                return run("token", "--user=alice", f"--ttl={ttl}", f"--key={secret}").strip()

            greendot = Greendot(server.url, token=token)
            with greendot.watch("alice", user="me") as states:
                until("alice is here", lambda: take(states) == [("alice", "online", False)])
                ended = 'greendot_events_total{kind="expired"'
                until("one is void", lambda: server.metric(ended) >= 1)
                opened = 'greendot_requests_total{call="stream",class="2xx"'
                until("another stream is open", lambda: server.metric(opened) >= 2)
            # One that stays the same is refused in the end, and that ends the watch.
            old = Greendot(server.url, token=token("1s"))
            with self.assertRaises(Problem) as caught:
                list(old.watch("alice"))
            self.assertEqual(caught.exception.kind, "unauthorized")
            with self.assertRaises(Problem) as caught:
                next(greendot.watch("bob"))
            self.assertEqual(
                (caught.exception.status, caught.exception.kind), (403, "watch-denied")
            )

    def test_a_proxy_whose_server_is_away_is_asked_again(self):
        with Impostor(502, "<p>bad</p>") as other, self.assertLogs("greendot", "INFO") as logs:
            with Greendot(other.url).watch("bob"):
                until("a refusal", lambda: logs.output)
            self.assertEqual(
                logs.output[0], "INFO:greendot:a stream is refused: 502 about:blank: <p>bad</p>"
            )

    def test_close_ends_who_waits(self):
        with Server("--keep-alive-ms=10m") as server:
            states = Greendot(server.url).watch("bob")
            self.assertEqual(take(states), [("bob", "offline", False)])
            waiting = threading.Thread(target=lambda: list(states))
            waiting.start()
            states.close()
            waiting.join()
            until("the stream has ended", lambda: server.metric("greendot_streams{") == 0)


class Views(unittest.TestCase):
    """Which state holds, over two streams."""

    def setUp(self):
        self.view = module._View()

    def tell(self, status, since, user="bob"):
        self.view.apply(State(user, status, since, since))

    def taken(self):
        return [(s.user, s.status, s.since, s.stale) for s in iter(self.view.take, None)]

    def test_of_one_stream_the_last_word_counts_and_states_between_are_skipped(self):
        self.tell("online", 10)
        self.tell("offline", 11, "carol")
        self.tell("offline", 12)
        self.assertEqual(
            self.taken(), [("bob", "offline", 12, False), ("carol", "offline", 11, False)]
        )
        self.tell("offline", 12)
        self.assertEqual(self.taken(), [])
        self.tell("online", 9)
        self.assertEqual(self.taken(), [("bob", "online", 9, False)])

    def test_unknown_takes_back_nothing(self):
        self.tell("unknown", None)
        self.tell("online", 10)
        self.tell("unknown", None)
        self.assertEqual(self.taken(), [("bob", "online", 10, False)])

    def test_what_is_older_than_a_former_streams_word_waits_for_its_id(self):
        self.tell("online", 10)
        self.view.begin()
        self.tell("offline", 7)
        self.view.told_up_to(9)
        self.assertEqual(self.taken(), [("bob", "online", 10, False)])
        self.view.told_up_to(10)
        self.assertEqual(self.taken(), [("bob", "offline", 7, False)])

    def test_stale_until_the_stream_has_told_all(self):
        self.tell("online", 10)
        self.tell("offline", 11, "carol")
        self.taken()
        self.view.go_stale()
        self.assertEqual(
            self.taken(), [("bob", "online", 10, True), ("carol", "offline", 11, True)]
        )
        self.view.begin()
        self.tell("offline", 12)
        self.assertEqual(self.taken(), [("bob", "offline", 12, False)])
        self.view.settle()
        self.assertEqual(self.taken(), [("carol", "offline", 11, False)])


class Events(unittest.TestCase):
    def read(self, text):
        events = module._events(io.BytesIO(text).readline)
        return [(e.kind, e.data, e.id, e.retry) for e in events]

    def test_the_forms_of_an_event(self):
        text = b"event: a\nretry: 1500\ndata: {}\n\n:comment\n\ndata:x\r\ndata: y\nid: 7\n\n"
        self.assertEqual(self.read(text), [("a", "{}", None, 1.5), ("message", "x\ny", "7", None)])

    def test_what_the_end_cuts_is_no_event(self):
        for text in (b"data: x", b"data: x\n", b"event: a\n\n"):
            self.assertEqual(self.read(text), [])

    def test_a_line_longer_than_the_server_sends_ends_it(self):
        with self.assertRaises(module.Unreachable):
            self.read(b"data: " + b"x" * 70_000)


if __name__ == "__main__":
    unittest.main()
