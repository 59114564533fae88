"""src/web/openapi.json against a real server, by schemathesis: each call with what it may be given,
and with what it may not. It takes a minute or two, so `tests/long calls` alone asks for it."""

import json
import os
import pathlib
import subprocess
import sys
import unittest

from server import ENV, ROOT, Server, run

from greendot import Greendot

HERE = pathlib.Path(__file__).parent
DESCRIPTION = ROOT / "src/web/openapi.json"

if "CALLS" not in os.environ:
    raise unittest.SkipTest("tests/long calls runs it")

try:
    import schemathesis  # noqa: F401
except ImportError:
    raise unittest.SkipTest("tests/proxies/install has not installed the judges") from None


def strict(description):
    """The description without what stands for any other answer: each status is to be there."""
    for path in description["paths"].values():
        for operation in path.values():
            operation["responses"].pop("default", None)
    return description


def shown(key, is_wanted):
    """Flags: calls that take a service's key, and that key."""
    paths = json.loads(DESCRIPTION.read_text())["paths"].values()
    operations = [operation for path in paths for operation in path.values()]
    wanted = [
        operation["operationId"]
        for operation in operations
        if any("service" in way for way in operation.get("security", []))
        and is_wanted(operation["operationId"])
    ]
    only = [f"--include-operation-id={name}" for name in wanted]
    return [f"--header=Authorization: Bearer {key}", *only]


class Calls(unittest.TestCase):
    def ask(self, server, parameters, *flags):
        description = json.loads(DESCRIPTION.read_text())
        parameters["path.version"] = description["info"]["version"]
        config = (HERE / "schemathesis.toml").read_text() + "\n[parameters]\n"
        config += "".join(f'"{name}" = "{value}"\n' for name, value in parameters.items())
        server.path("schemathesis.toml").write_text(config)
        server.path("openapi.json").write_text(json.dumps(strict(description)))
        command = [sys.executable, "-m", "schemathesis.cli", "--config-file=schemathesis.toml"]
        command += ["run", "openapi.json", f"--url={server.url}", "--no-color", *flags]
        path = os.pathsep.join([str(HERE), *sys.path])
        env = ENV | {"SCHEMATHESIS_HOOKS": "hooks", "PYTHONPATH": path}
        done = subprocess.run(
            command, env=env, cwd=server.folder, capture_output=True, text=True, check=False
        )
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)

    def test_who_reaches_an_open_server(self):
        with Server("--beat-interval-ms=10s", "--offline-after-ms=60s") as server:
            with Greendot(server.url).watch("bob", user="alice") as states:
                next(states)
                self.ask(server, {"path.stream": states.stream})

    def test_a_service_with_every_scope(self):
        scopes = "publish,beat,query,revoke,ticket,metrics,admin"
        key, line = run("key", "new", "--service=all", f"--scopes={scopes}").splitlines()
        files = {"services": f"{line}\n", "app.secret": "s" * 64}
        with Server("--service-keys=services", "--jwt-keys=app.secret", files=files) as server:
            self.ask(server, {}, *shown(key, lambda _: True))

    def test_what_real_time_nodes_alone_take(self):
        key, line = run("key", "new", "--service=all", "--scopes=publish,admin").splitlines()
        files = {"services": f"{line}\n", "fleet.key": "a1" * 32}
        flags = ("--service-keys=services", "--key-file=fleet.key")
        nobody = "--presence=udp://127.0.0.1:9,http://127.0.0.1:9"
        with Server(*flags, nobody, role="realtime", files=files) as server:
            names = ["putPresence", "putPresences", "heldStreams", "endStreams"]
            self.ask(server, {}, *shown(key, names.__contains__))


if __name__ == "__main__":
    unittest.main()
