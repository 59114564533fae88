"""The calls of docs/clients/python, against the real server."""

import doctest
import io
import socket
import unittest

from server import ROOT, Impostor, Server, run

import greendot as module
from greendot import Greendot, OwnState, Problem, State, Unreachable


def said(problem):
    return problem.status, problem.kind


class Calls(unittest.TestCase):
    def test_the_examples_of_the_documents_run(self):
        readme = (ROOT / "docs/clients/python/README.md").read_text()
        for text in (module.__doc__, readme):
            with Server() as server:
                text = text.replace("http://127.0.0.1:8080", server.url)
                examples = doctest.DocTestParser().get_doctest(text, {}, "examples", None, None)
                self.assertTrue(examples.examples)
                said = io.StringIO()
                outcome = doctest.DocTestRunner().run(examples, out=said.write)
                self.assertEqual(outcome.failed, 0, said.getvalue())

    def test_queries_beats_goodbyes_and_statuses(self):
        with Server("--offline-after-ms=60s") as server:
            greendot = Greendot(server.url)
            self.assertEqual(
                greendot.query("bob", "häns/é?"),
                [State("bob", "offline", None, None), State("häns/é?", "offline", None, None)],
            )
            self.assertEqual(greendot.beat("bob", "häns/é?"), [])
            self.assertEqual(
                [state.online for state in greendot.query("bob", "häns/é?")], [True] * 2
            )
            own = greendot.set_status("busy", user="bob")
            bob = greendot.query("bob")[0]
            self.assertEqual((own, bob.status), (OwnState(**vars(bob)), "busy"))
            own = greendot.set_status(invisible=True, user="bob")
            self.assertEqual((own.status, own.invisible), ("busy", True))
            self.assertEqual(greendot.query("bob")[0].status, "offline")
            greendot.leave("häns/é?")
            gone = greendot.query("häns/é?")[0]
            self.assertEqual((gone.online, gone.last_active), (False, gone.since))
            self.assertEqual((greendot.query(), greendot.beat()), ([], []))

    def test_users_who_do_not_count_are_named(self):
        with Server("--users-max=1") as server:
            refused = Greendot(server.url).beat("bob", "carol")
            self.assertEqual(refused, [module.RefusedUser("carol", "users_max")])

    def test_a_refusal_says_what_and_why(self):
        with Server("--query-users-max=2") as server:
            with self.assertRaises(Problem) as caught:
                Greendot(server.url).query("a", "b", "c")
            problem = caught.exception
            self.assertEqual(
                (problem.status, problem.type, problem.kind, problem.title, problem.detail),
                (
                    413,
                    "https://greendot.dev/problems/too-many-users",
                    "too-many-users",
                    "The request names too many users",
                    "users names 3 users or more; at most 2 are taken at once",
                ),
            )
            with self.assertRaises(Problem) as caught:
                Greendot(f"{server.url}/nowhere/").query("a")
            self.assertEqual(said(caught.exception), (404, "not-found"))

    def test_a_service_shows_its_key(self):
        key, line = run("key", "new", "--service=shop", "--scopes=query").splitlines()
        files = {"services": f"{line}\n"}
        with Server("--service-keys=services", files=files) as server:
            shop = Greendot(server.url, service_key=key)
            self.assertEqual(shop.query("bob")[0].status, "offline")
            with self.assertRaises(Problem) as caught:
                shop.beat("bob")
            self.assertEqual(said(caught.exception), (403, "not-permitted"))
            with self.assertRaises(Problem) as caught:
                Greendot(server.url, service_key=key[:-1]).query("bob")
            self.assertEqual(said(caught.exception), (401, "unauthorized"))

    def test_what_can_not_be_meant_is_a_value_error(self):
        greendot = Greendot("http://127.0.0.1:9")
        for user, fault in [
            ("", "it is empty"),
            ("é" * 65, "it is longer than 128 bytes"),
            ("a\x85b", "it holds a control character"),
            ("\ud800", "it holds half a surrogate pair"),
            (7, "it is not a string"),
        ]:
            with self.assertRaisesRegex(ValueError, fault):
                greendot.query("bob", user)
        for url in ("localhost:8080", "ftp://a", "http://", "http://a/?token=x", "http://u:p@a"):
            with self.assertRaises(ValueError):
                Greendot(url)
        with self.assertRaises(ValueError):
            Greendot("http://a", token="x", service_key="y")
        with self.assertRaises(ValueError):
            greendot.leave()

    def test_a_server_that_is_not_there_is_unreachable(self):
        # Somebody has the port, and does not listen.
        with socket.socket() as silent:
            silent.bind(("127.0.0.1", 0))
            with self.assertRaises(Unreachable):
                Greendot("http://127.0.0.1:%d" % silent.getsockname()[1]).query("bob")

    def test_what_no_greendot_answers_is_said(self):
        for body in ("<p>hello</p>", "{}", '{"presence":[{"user":"bob"}]}'):
            with Impostor(200, body) as other, self.assertRaises(Unreachable):
                Greendot(other.url).query("bob")
        with Impostor(502, "<p>bad</p>") as other, self.assertRaises(Problem) as caught:
            Greendot(other.url).query("bob")
        self.assertEqual(str(caught.exception), "502 about:blank: <p>bad</p>")


if __name__ == "__main__":
    unittest.main()
