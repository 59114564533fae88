"""docs/asyncapi.yaml against what a real server sends on its streams."""

import http.client
import json
import signal
import unittest

from server import PATIENCE_S, READERS, ROOT, Server, run

from greendot import Greendot

try:
    import jsonschema
    import yaml
except ImportError:
    raise unittest.SkipTest("tests/proxies/install has not installed the judges") from None

FILE = ROOT / "docs/asyncapi.yaml"
ASYNCAPI = "specifications/node_modules/@asyncapi/specs/schemas/3.0.0-without-$id.json"


def resolved(value, document, folder):
    """`value` with what it refers to in its place; no schema here refers to itself."""
    if isinstance(value, list):
        return [resolved(item, document, folder) for item in value]
    if not isinstance(value, dict):
        return value
    if "$ref" in value:
        name, _, place = value["$ref"].partition("#/")
        if name:
            path = (folder / name).resolve()
            document, folder = yaml.safe_load(path.read_text()), path.parent
        found = document
        for part in place.split("/"):
            found = found[part]
        return resolved(found, document, folder)
    return {name: resolved(item, document, folder) for name, item in value.items()}


def closed(schema):
    """A schema that takes no member that it does not describe: each is to be in the file."""
    if isinstance(schema, list):
        return [closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    schema = {name: closed(item) for name, item in schema.items()}
    if "properties" in schema and schema.get("type") == "object":
        schema["unevaluatedProperties"] = False
    return schema


class Stream:
    """A stream as it comes: each event's fields, and its data."""

    def __init__(self, server, path, headers=None):
        self._connection = http.client.HTTPConnection(server.http, timeout=PATIENCE_S)
        self._connection.request("GET", path, headers=headers or {})
        self._response = self._connection.getresponse()
        assert self._response.status == 200, self._response.read()
        self._events = self._read()

    def __iter__(self):
        return self._events

    def _read(self):
        with self._response:
            fields = {}
            while line := self._response.readline().decode():
                if line == "\n":
                    yield fields, json.loads(fields.pop("data"))
                    fields = {}
                else:
                    name, value = line.removesuffix("\n").split(": ", 1)
                    fields[name] = int(value) if name == "retry" else value

    def until(self, kind):
        """All up to the first of this kind."""
        told = []
        for fields, data in self:
            told.append((fields, data))
            if fields["event"] == kind:
                break
        return told


class Events(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        text = yaml.safe_load(FILE.read_text())
        cls.document = resolved(text, text, FILE.parent)
        cls.messages = cls.document["components"]["messages"]
        # The data of each kind that came last.
        cls.seen = {}

    def check(self, told):
        """Each is as the file says; what is told last."""
        for fields, data in told:
            message = self.messages[fields["event"]]
            for part, value in (("headers", fields), ("payload", data)):
                jsonschema.Draft202012Validator(closed(message[part])).validate(value)
            self.seen[fields["event"]] = data
        return told[-1][1]

    def test_the_file_is_asyncapi(self):
        path = READERS / ASYNCAPI
        if not path.exists():
            self.skipTest("tests/proxies/install has not installed @asyncapi/specs")
        specification = json.loads(path.read_text())
        jsonschema.Draft7Validator(specification).validate(yaml.safe_load(FILE.read_text()))

    def test_its_version_is_that_of_the_calls(self):
        calls = json.loads((ROOT / "src/web/openapi.json").read_text())
        self.assertEqual(self.document["info"]["version"], calls["info"]["version"])

    def test_its_examples_are_what_it_describes(self):
        for name, message in self.messages.items():
            for example in message["examples"]:
                self.assertEqual(example["headers"]["event"], name)
                self.check([(example["headers"], example["payload"])])

    def test_all_that_a_stream_may_say_is_as_described(self):
        parted = [
            self.told_by_an_open_server(),
            self.told_where_tokens_are_asked_for(),
            self.told_by_an_operator(),
        ]
        expected = [["left", {}, "watches", "draining"], [{}, "stream-life"], "ended"]
        self.assertEqual(parted, expected)
        self.assertEqual(sorted(self.seen), sorted(self.messages))

    def told_by_an_open_server(self):
        flags = ["--watches-per-stream-max=3", "--watches-per-shard-max=3"]
        # Bob is there until he says goodbye.
        with Server(*flags, "--offline-after-ms=60s") as server:
            greendot = Greendot(server.url)
            greendot.beat("bob")
            asked = "/v1/stream?user=alice&watch=bob&watch=carol&watch=&vouch=self&wacth=x"
            stream = Stream(server, asked)
            self.check(stream.until("ping"))
            hello = self.seen["hello"]
            self.assertEqual(
                (hello["watching"], hello["vouch"], hello["refused_total"], hello["ignored"]),
                (2, "self", 1, ["wacth"]),
            )
            greendot.leave("bob")
            gone = self.check(stream.until("presence"))
            self.assertEqual((gone["user"], gone["status"]), ("bob", "offline"))
            greendot.leave(stream=hello["stream"])
            left = self.check(list(stream))["reason"]
            stream = Stream(server, "/v1/node/stream")
            self.check(stream.until("figures"))
            stream = Stream(server, "/v1/stream?user=alice")
            self.check(stream.until("hello"))
            greendot.leave("alice", everywhere=True)
            bye = self.check(list(stream))
            stream = Stream(server, "/v1/stream?watch=bob")
            self.check(stream.until("snapshot"))
            refused = Stream(server, "/v1/stream?watch=bob&watch=carol&watch=dave")
            overloaded = self.check(list(refused))["reason"]
            server.signal(signal.SIGTERM)
            return [left, bye, overloaded, self.check(list(stream))["reason"]]

    def told_where_tokens_are_asked_for(self):
        # A server each: a token's end and a stream's longest life may be at the same moment.
        return [
            self.check(self.told_with_a_token("3s")),
            self.check(self.told_with_a_token("1h", "--stream-life-ms=2500"))["reason"],
        ]

    def told_by_an_operator(self):
        key, line = run("key", "new", "--service=ops", "--scopes=admin").splitlines()
        files = {"services": f"{line}\n", "key": key}
        with Server("--service-keys=services", files=files) as server:
            stream = Stream(server, "/v1/stream?user=alice")
            id = self.check(stream.until("hello"))["stream"]
            by = [f"--http={server.url}", f"--service-key={server.path('key')}"]
            run("streams", "end", id, *by)
            return self.check(list(stream))["reason"]

    def told_with_a_token(self, ttl, *flags):
        files = {"app.secret": "s" * 64}
        with Server("--jwt-keys=app.secret", *flags, files=files) as server:
            key = server.path("app.secret")
            token = run("token", "--user=alice", f"--ttl={ttl}", f"--key={key}").strip()
            headers = {"Authorization": f"Bearer {token}"}
            return list(Stream(server, "/v1/stream?user=me", headers))


if __name__ == "__main__":
    unittest.main()
