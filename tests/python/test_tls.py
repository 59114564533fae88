"""TLS records that keep the rules, bend them and break them (RFC 8446), on the real server. Each
case has one exact outcome, and a stream beside all of them is told what happens to the end.

Where rustls has another alert than the RFC, or none, that is the outcome here: the connection ends
all the same, and is counted."""

import json
import socket
import unittest

from server import Server, certified, until

try:
    from tls_peer import (
        ALERT,
        BAD_RECORD_MAC,
        CCS,
        CLOSE_NOTIFY,
        CONTENT_MAX,
        DATA,
        DECODE_ERROR,
        FATAL,
        HANDSHAKE,
        HEARTBEAT,
        ILLEGAL_PARAMETER,
        NEW_SESSION_TICKET,
        PROTOCOL_VERSION,
        RECORD_OVERFLOW,
        REQUEST,
        UNEXPECTED_MESSAGE,
        USER_CANCELED,
        Unanswered,
        WARNING,
        Peer,
        in_clear,
        key_update,
        message,
        raw,
    )
    from tlslite.errors import TLSAbruptCloseError, TLSLocalAlert, TLSRemoteAlert
except ImportError:
    raise unittest.SkipTest("tests/proxies/install has not installed tlslite-ng") from None

# What a peer is told that has ended well.
ENDED = [(WARNING, CLOSE_NOTIFY), "end"]


def alert(*description):
    """How one ends that has broken a rule."""
    return [(FATAL, *description), "end"]


class Tls(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        flags = ["--https=127.0.0.1:0", "--tls-cert=tls.crt", "--tls-key=tls.key"]
        # No ping and no expiry: a peer hears what its own records are answered.
        flags += ["--keep-alive-ms=1h", "--beat-interval-ms=10m", "--offline-after-ms=30m"]
        cls.server = Server(*flags, files=certified())
        cls.addClassCleanup(cls.server.close)
        cls.beside = Peer(cls.server.https)
        cls.addClassCleanup(cls.beside.socket.close)
        path = b"/v1/stream?watch=bob HTTP/1.1\r\nHost: localhost\r\n\r\n"
        cls.beside.send(cls.beside.sealed(DATA, b"GET " + path))
        cls.told(b"event: snapshot")

    @classmethod
    def told(cls, text):
        """The stream beside is told that next."""
        while text not in cls.beside.read:
            said = cls.beside.next()
            assert said == "data", f"the stream beside ended: {said}"
        cls.beside.read = b""

    def tearDown(self):
        for path, online in (("/v1/beat", b"true"), ("/v1/leave", b"false")):
            with Peer(self.server.https) as peer:
                body = json.dumps({"users": ["bob"]}).encode()
                head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
                head += "Content-Type: application/json\r\n\r\n"
                peer.send(peer.sealed(DATA, head.encode() + body))
                while b"\r\n\r\n" not in peer.read:
                    self.assertEqual(peer.next(), "data")
                self.assertIn(b" 20", peer.read.split(b"\r\n")[0])
            self.told(b'"online":' + online)

    def peer(self, **how):
        return Peer(self.server.https, **how)

    def lives(self, records, updates=0):
        """A peer that sends these records, and then a request, is answered, and goes well."""
        with self.peer() as peer:
            peer.send(*records(peer))
            peer.send(peer.sealed(DATA, REQUEST))
            self.assertTrue(peer.answered())
            self.assertEqual(peer.updates, updates)
            peer.send(peer.sealed(ALERT, bytes([WARNING, CLOSE_NOTIFY])))
            self.assertEqual(peer.outcome(), ENDED)

    def breaks(self, reason, outcome, records):
        """A peer that sends these records ends so, and is counted as that."""
        series = f'greendot_tls_broken_total{{reason="{reason}"'
        before = self.server.metric(series)
        with self.peer() as peer:
            peer.send(*records(peer))
            self.assertEqual(peer.outcome(), outcome)
        until(reason, lambda: self.server.metric(series) > before)
        self.assertEqual(self.server.metric(series), before + 1)

    def misbehaves(self, description, records):
        self.breaks("misbehaved", alert(description), records)

    # Keys

    def test_keys_change_both_ways_with_data_between(self):
        with self.peer() as peer:
            for nth in range(100):
                peer.update_keys(asks=nth % 2)
                peer.send(peer.sealed(DATA, REQUEST))
                self.assertTrue(peer.answered())
            self.assertEqual(peer.updates, 50)

    def test_a_key_update_may_come_in_pieces(self):
        whole = key_update(1)
        for cut in range(1, len(whole)):
            with self.subTest(cut=cut):

                def records(peer, cut=cut):
                    pieces = (whole[:cut], whole[cut:])
                    made = [peer.sealed(HANDSHAKE, piece) for piece in pieces]
                    peer.step_keys()
                    return made

                self.lives(records, updates=1)

    def test_several_updates_asked_for_at_once_are_answered_by_one(self):
        def records(peer):
            for _ in range(20):
                yield peer.sealed(HANDSHAKE, key_update(1))
                peer.step_keys()

        self.lives(records, updates=1)

    def test_updates_without_end_are_refused(self):
        def records(peer):
            for _ in range(33):
                yield peer.sealed(HANDSHAKE, key_update(1))
                peer.step_keys()

        self.breaks("misbehaved", ["end"], records)

    def test_a_key_update_that_is_none_is_refused(self):
        for name, description, content in [
            ("asks for 2", ILLEGAL_PARAMETER, key_update(2)),
            ("is empty", DECODE_ERROR, message(24, b"")),
            ("is too long", DECODE_ERROR, message(24, b"\0\0")),
            ("two in a record", UNEXPECTED_MESSAGE, key_update(0) * 2),
            ("something behind it", UNEXPECTED_MESSAGE, key_update(0) + b"\x18"),
        ]:
            with self.subTest(name):
                self.misbehaves(description, lambda peer: [peer.sealed(HANDSHAKE, content)])

    def test_data_between_the_pieces_of_a_message_is_refused(self):
        def records(peer):
            yield peer.sealed(HANDSHAKE, key_update(0)[:2])
            yield peer.sealed(DATA, REQUEST)

        self.breaks("misbehaved", ["end"], records)

    def test_old_keys_open_nothing_after_an_update(self):
        def records(peer):
            return [peer.sealed(HANDSHAKE, key_update(0)), peer.sealed(DATA, REQUEST)]

        self.breaks("decrypt", alert(BAD_RECORD_MAC), records)

    # Handshake messages where none may stand

    def test_other_handshake_messages_are_refused_when_all_is_agreed(self):
        hello = message(1, b"\3\3" + bytes(32) + b"\0\0\2\x13\1\1\0")
        ticket = bytes(8) + b"\0" + b"\0\4abcd" + b"\0\0"
        for name, description, content in [
            ("a first message again", UNEXPECTED_MESSAGE, hello),
            ("a ticket", UNEXPECTED_MESSAGE, message(NEW_SESSION_TICKET, ticket)),
            ("a ticket that is none", DECODE_ERROR, message(NEW_SESSION_TICKET, bytes(20))),
            ("a Finished", UNEXPECTED_MESSAGE, message(20, bytes(32))),
            ("a certificate", UNEXPECTED_MESSAGE, message(11, bytes(4))),
            ("of no type", UNEXPECTED_MESSAGE, message(99, b"")),
        ]:
            with self.subTest(name):
                self.misbehaves(description, lambda peer: [peer.sealed(HANDSHAKE, content)])

    # ChangeCipherSpec

    def test_a_ccs_after_the_handshake_is_refused(self):
        for name, record in [
            ("in clear", lambda peer: [in_clear(CCS, b"\1")]),
            ("sealed", lambda peer: [peer.sealed(CCS, b"\1")]),
        ]:
            with self.subTest(name):
                self.misbehaves(UNEXPECTED_MESSAGE, record)

    def test_a_ccs_in_the_handshake(self):
        def put(*ccs, before=1):
            return lambda nth, record: [*ccs, record] if nth == before else [record]

        # tlslite-ng sends one of its own, as record 1.
        without = {"rewrite": lambda nth, record: [] if nth == 1 else [record]}
        self.assertEqual(self.shaken(**without), "answered")
        self.assertEqual(self.shaken(rewrite=put(in_clear(CCS, b"\1"))), "answered")
        for name, how, outcome in [
            ("of 2", put(in_clear(CCS, b"\2")), (FATAL, UNEXPECTED_MESSAGE)),
            ("too long", put(in_clear(CCS, b"\1\1")), (FATAL, UNEXPECTED_MESSAGE)),
            ("empty", put(in_clear(CCS, b"")), (FATAL, DECODE_ERROR)),
            ("too many", put(in_clear(CCS, b"\1") * 30), "end"),
            ("first of all", put(in_clear(CCS, b"\1"), before=0), (FATAL, UNEXPECTED_MESSAGE)),
        ]:
            with self.subTest(name):
                self.assertEqual(self.shaken(rewrite=how), outcome)

    def shaken(self, **how):
        """How a handshake ends, and a request after it."""
        try:
            with self.peer(**how) as peer:
                peer.send(peer.sealed(DATA, REQUEST))
                return "answered" if peer.answered() else "refused"
        except TLSAbruptCloseError:
            return "end"
        except TLSLocalAlert as fault:
            return ("ours", fault.description)
        # Ours is over with the last flight, whatever the server says to that.
        except Unanswered as fault:
            return fault.said
        except TLSRemoteAlert as fault:
            return (fault.level, fault.description)

    # Padding

    def test_padding_of_any_length_is_taken_off(self):
        for padding in (1, 2, 15, 16, 255, 256, 1_000, CONTENT_MAX - len(REQUEST)):
            with self.subTest(padding=padding):
                self.lives(lambda peer: [peer.sealed(DATA, REQUEST, padding)])

    def test_a_request_may_come_a_padded_byte_at_a_time(self):
        with self.peer() as peer:
            peer.send(*(peer.sealed(DATA, bytes([byte]), 100) for byte in REQUEST))
            self.assertTrue(peer.answered())

    def test_a_handshake_may_be_padded(self):
        self.assertEqual(self.shaken(padding=1_000), "answered")

    def test_padding_alone_is_no_record(self):
        for zeros in (0, 1, 16, 1_000, CONTENT_MAX + 1):
            with self.subTest(zeros=zeros):
                self.breaks("misbehaved", ["end"], lambda peer: [peer.sealed_as_is(bytes(zeros))])

    # Records of no length

    def test_empty_data_means_nothing(self):
        for padding in (0, 1, CONTENT_MAX):
            with self.subTest(padding=padding):
                self.lives(lambda peer: [peer.sealed(DATA, b"", padding) for _ in range(20)])

    def test_empty_messages_mean_nothing_and_an_empty_alert_is_refused(self):
        self.lives(lambda peer: [peer.sealed(HANDSHAKE, b"") for _ in range(20)])
        self.misbehaves(DECODE_ERROR, lambda peer: [peer.sealed(ALERT, b"")])

    def test_a_record_without_even_a_seal_does_not_open(self):
        for length in (0, 1, 15, 16):
            with self.subTest(length=length):
                record = in_clear(DATA, bytes(length))
                self.breaks("decrypt", alert(BAD_RECORD_MAC), lambda peer: [record])

    # Lengths

    def test_the_longest_records(self):
        # What comes is not to be a request: one that is too long is refused by itself.
        def opened(peer, content, padding=0):
            return [peer.sealed(DATA, content, padding)]

        body = bytes(CONTENT_MAX)
        head = f"POST /v1/beat HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
        head += "Content-Type: application/json\r\n\r\n"
        with self.peer() as peer:
            peer.send(peer.sealed(DATA, head.encode()), peer.sealed(DATA, body))
            while b"\r\n\r\n" not in peer.read:
                self.assertEqual(peer.next(), "data")
            self.assertTrue(peer.read.startswith(b"HTTP/1.1 400 "), peer.read)
        # One byte of content with as much padding as fits, and with one more.
        self.lives(lambda peer: opened(peer, b"", CONTENT_MAX))
        for name, content, padding in [
            ("content", bytes(CONTENT_MAX + 1), 0),
            ("padding", b"", CONTENT_MAX + 1),
        ]:
            with self.subTest(name):
                self.misbehaves(RECORD_OVERFLOW, lambda peer: opened(peer, content, padding))

    def test_a_head_that_says_too_much_is_refused_before_its_body_has_come(self):
        # TLS 1.2 lets a record grow by 2,048: that is where the body is not waited for.
        for length in (CONTENT_MAX + 2_049, 65_535):
            with self.subTest(length=length):
                record = in_clear(DATA, b"", length=length)
                self.misbehaves(DECODE_ERROR, lambda peer: [record])
        record = in_clear(DATA, bytes(CONTENT_MAX + 257))
        self.breaks("decrypt", alert(BAD_RECORD_MAC), lambda peer: [record])

    # Alerts

    def test_a_goodbye_is_answered_and_what_came_before_it_too(self):
        with self.peer() as peer:
            goodbye = peer.sealed(DATA, REQUEST), peer.sealed(ALERT, bytes([WARNING, CLOSE_NOTIFY]))
            peer.send(*goodbye)
            self.assertTrue(peer.answered())
            self.assertEqual(peer.outcome(), ENDED)

    def test_a_goodbye_before_any_request_is_answered(self):
        with self.peer() as peer:
            peer.send(peer.sealed(ALERT, bytes([WARNING, CLOSE_NOTIFY])))
            self.assertEqual(peer.outcome(), ENDED)

    def test_nothing_behind_a_goodbye_is_looked_at(self):
        with self.peer() as peer:
            goodbye = peer.sealed(ALERT, bytes([WARNING, CLOSE_NOTIFY]))
            peer.send(goodbye, peer.sealed(DATA, REQUEST), in_clear(0, b"of no type"))
            self.assertEqual(peer.outcome()[0], (WARNING, CLOSE_NOTIFY))
            self.assertEqual(peer.read, b"")

    def test_an_alert_ends_it(self):
        for name, level, description in [
            ("fatal", FATAL, 80),
            ("fatal, of no description", FATAL, 199),
        ]:
            with self.subTest(name):
                content = bytes([level, description])
                self.breaks("alert", ["end"], lambda peer: [peer.sealed(ALERT, content)])

    def test_a_warning_of_user_canceled_means_nothing(self):
        def records(peer):
            return [peer.sealed(ALERT, bytes([WARNING, USER_CANCELED])) for _ in range(3)]

        self.lives(records)

    def test_alerts_that_are_none_are_refused(self):
        for content in (b"\1", b"\2\0\0"):
            with self.subTest(content):
                self.misbehaves(DECODE_ERROR, lambda peer: [peer.sealed(ALERT, content)])
        def of_no_level(peer):
            return [peer.sealed(ALERT, bytes([0, 80]))]

        self.breaks("alert", alert(ILLEGAL_PARAMETER), of_no_level)

    def test_an_alert_in_clear_is_nobodys(self):
        record = in_clear(ALERT, bytes([FATAL, 80]))
        self.breaks("decrypt", alert(BAD_RECORD_MAC), lambda peer: [record])

    # Records that are none

    def test_a_bit_that_has_changed_is_noticed(self):
        for place in (5, 20, -1):
            with self.subTest(place=place):

                def records(peer, place=place):
                    record = bytearray(peer.sealed(DATA, REQUEST))
                    record[place] ^= 1
                    return [bytes(record)]

                self.breaks("decrypt", alert(BAD_RECORD_MAC), records)

    def test_a_record_comes_once_and_in_its_place(self):
        def again(peer):
            return [peer.sealed(DATA, b"GET ")] * 2

        def turned(peer):
            return [peer.sealed(DATA, part) for part in (b"GE", b"T ")][::-1]

        def without_the_first(peer):
            return [peer.sealed(DATA, part) for part in (b"GE", b"T ")][1:]

        for records in (again, turned, without_the_first):
            with self.subTest(records.__name__):
                self.breaks("decrypt", alert(BAD_RECORD_MAC), records)

    def test_what_is_not_sealed_is_refused(self):
        for name, reason, description, record in [
            ("data", "decrypt", BAD_RECORD_MAC, in_clear(DATA, REQUEST)),
            ("handshake", "decrypt", BAD_RECORD_MAC, in_clear(HANDSHAKE, key_update(0))),
            ("of no type", "misbehaved", DECODE_ERROR, in_clear(0, b"")),
            ("heartbeat", "decrypt", BAD_RECORD_MAC, in_clear(HEARTBEAT, b"\1\0\1a")),
            ("plain HTTP", "misbehaved", DECODE_ERROR, REQUEST),
            ("version 4", "misbehaved", DECODE_ERROR, in_clear(DATA, bytes(40), version=b"\4\0")),
        ]:
            with self.subTest(name):
                self.breaks(reason, alert(description), lambda peer: [record])

    def test_other_types_inside_are_refused(self):
        for kind in (1, 19, HEARTBEAT, 25, 255):
            with self.subTest(kind=kind):
                self.misbehaves(DECODE_ERROR, lambda peer: [peer.sealed(kind, b"\1\0\1a")])

    def test_an_end_in_the_middle_of_a_record_is_an_end(self):
        with self.peer() as peer:
            record = peer.sealed(DATA, REQUEST)
            peer.send(record[:-1])
            peer.socket.shutdown(socket.SHUT_WR)
            self.assertEqual(peer.outcome(), ENDED)

    # Handshakes

    def test_first_messages_in_pieces(self):
        def cut(size, empty=b""):
            def rewrite(nth, record):
                if nth:
                    return [record]
                body = record[5:]
                return [
                    in_clear(HANDSHAKE, body[at : at + size], version=b"\3\1") + empty
                    for at in range(0, len(body), size)
                ]

            return rewrite

        for size in (1, 2, 5, 100):
            with self.subTest(size=size):
                self.assertEqual(self.shaken(rewrite=cut(size)), "answered")
        nothing = in_clear(HANDSHAKE, b"")
        self.assertEqual(self.shaken(rewrite=cut(100, nothing)), (FATAL, DECODE_ERROR))
        other = in_clear(ALERT, bytes([WARNING, USER_CANCELED]))
        self.assertEqual(self.shaken(rewrite=cut(100, other)), "end")

    def test_an_alert_in_the_handshake_ends_it(self):
        refusal = in_clear(ALERT, bytes([FATAL, DECODE_ERROR]))
        for name, content, answer in [
            ("fatal", bytes([FATAL, 42]), b""),
            ("goodbye", bytes([WARNING, CLOSE_NOTIFY]), b""),
            ("empty", b"", refusal),
            ("long", bytes([FATAL, 42, 0]), refusal),
        ]:
            with self.subTest(name):
                said = raw(self.server.https, in_clear(ALERT, content, version=b"\3\1"))
                self.assertEqual(said, answer)

    def test_what_is_changed_on_the_way_is_noticed(self):
        def flip(which, place):
            def rewrite(nth, record):
                if nth != which:
                    return [record]
                changed = bytearray(record)
                changed[place] ^= 1
                return [bytes(changed)]

            return rewrite

        # Of the first message a byte of its random number, which both sides' keys are made of; of
        # the last one its seal.
        self.assertEqual(self.shaken(rewrite=flip(0, 12)), ("ours", BAD_RECORD_MAC))
        self.assertEqual(self.shaken(rewrite=flip(2, -1)), (FATAL, BAD_RECORD_MAC))

    def test_an_older_version_is_refused(self):
        self.assertEqual(self.shaken(version=(3, 3)), (FATAL, PROTOCOL_VERSION))


if __name__ == "__main__":
    unittest.main()
