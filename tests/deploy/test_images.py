"""Images, compose and Kubernetes: what their own tools say, and that greendot means the same."""

import os
import re
import shutil
import subprocess
import sys
import unittest
from pathlib import Path

from server import ENV, PROGRAM, READERS, ROOT, Server, own_port

try:
    import yaml
except ImportError:
    yaml = None

DOCKERFILE = ROOT / "Dockerfile"
COMPOSE = ROOT / "docs/deploy/compose/compose.yaml"
COMPOSE_FLEET = ROOT / "docs/deploy/compose/fleet.yaml"
KUBERNETES = ROOT / "docs/deploy/kubernetes/greendot.yaml"
KUBERNETES_FLEET = ROOT / "docs/deploy/kubernetes/fleet.yaml"
# By tests/proxies/install.
TOOLS = READERS / "images"
# The oldest that the manifests are for, and the newest that the validator knows.
VERSIONS = ("1.30", None)

# A pod that sets another one is refused, unless the kubelet is told to allow it.
SAFE_SYSCTLS = {
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ping_group_range",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_syncookies",
}

needs_yaml = unittest.skipIf(yaml is None, "no PyYAML; see tests/proxies/install")


def tool(name: str):
    there = (TOOLS / "bin" / name).exists()
    return unittest.skipUnless(there, f"no {name}; see tests/proxies/install")


def settings(variables: dict[str, str], *flags: str) -> dict[str, str]:
    """What greendot makes of variables: each name must be a setting, and each value possible."""
    done = subprocess.run(
        [PROGRAM, "config", *flags], env={**ENV, **variables}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return dict(re.findall(r"^(\w+) = (.*?) +# GREENDOT_\w+$", done.stdout, re.MULTILINE))


def asked_at(variables: dict[str, str]) -> str:
    """Where commands ask that are run with a node's variables, of which they read one alone."""
    return variables.get("GREENDOT_URL", "http://127.0.0.1:8080").removeprefix("http://")


def listens(variables: dict[str, str], address: str) -> bool:
    """Whether a node that is told these listens there."""
    port = address.rpartition(":")[2]
    told = [variables.get("GREENDOT_HTTP"), variables.get("GREENDOT_ADMIN")]
    return address in told or f"0.0.0.0:{port}" in told


class Image(unittest.TestCase):
    @tool("hadolint")
    def test_hadolint_has_nothing_to_say(self) -> None:
        command = [str(TOOLS / "bin/hadolint"), "--no-color", str(DOCKERFILE)]
        done = subprocess.run(command, capture_output=True, text=True)
        self.assertEqual((done.returncode, done.stdout + done.stderr), (0, ""))

    def test_it_runs_as_nobody_and_asks_itself_how_it_is(self) -> None:
        last = DOCKERFILE.read_text().rpartition("\nFROM ")[2]
        self.assertTrue(last.startswith("scratch\n"))
        self.assertIn("\nUSER 10001:10001\n", last)
        command = re.search(r'HEALTHCHECK .* CMD \["/greendot", "(\w+)"\]', last)[1]
        with Server() as server:
            asked = [PROGRAM, command, "--http", server.http]
            done = subprocess.run(asked, env=ENV, capture_output=True, text=True)
            self.assertEqual((done.returncode, done.stdout, done.stderr), (0, "ready\n", ""))
        variables = dict(re.findall(r"^ENV (\w+)=(.*)$", last, re.MULTILINE))
        self.assertEqual(settings(variables), {"data_dir": '"/var/lib/greendot"'})

    def test_it_is_built_by_the_rust_that_the_project_asks_for(self) -> None:
        wanted = re.search(r'^rust-version = "(.*)"$', (ROOT / "Cargo.toml").read_text(), re.M)[1]
        self.assertIn(f"/rust:{wanted}-", DOCKERFILE.read_text())


@needs_yaml
class Compose(unittest.TestCase):
    def setUp(self) -> None:
        self.services = yaml.safe_load(COMPOSE.read_text())["services"]

    @unittest.skipIf(shutil.which("docker-compose") is None, "no docker-compose")
    def test_docker_compose_takes_it(self) -> None:
        for file in (COMPOSE, COMPOSE_FLEET):
            command = ["docker-compose", "-f", str(file), "config", "--quiet"]
            env = {**os.environ, "GREENDOT_HOST": "presence.example.com"}
            done = subprocess.run(command, env=env, capture_output=True, text=True)
            self.assertEqual((done.returncode, done.stderr), (0, ""), file)

    def test_nodes_of_a_fleet_differ_in_their_addresses_alone(self) -> None:
        services = yaml.safe_load(COMPOSE_FLEET.read_text())["services"]
        nodes = [one for name, one in services.items() if name.startswith("greendot-")]
        self.assertEqual(len(nodes), 3)
        seen = set()
        for node in nodes:
            variables = {**node["environment"], "GREENDOT_HOST": "presence.example.com"}
            # The server passes over where commands ask.
            told = {name: said for name, said in variables.items() if name != "GREENDOT_URL"}
            self.assertEqual(len(settings(variables)), len(told))
            ip = node["networks"]["fleet"]["ipv4_address"]
            self.assertEqual(variables.pop("GREENDOT_HTTP"), f"{ip}:8080")
            self.assertEqual(variables.pop("GREENDOT_UDP"), f"{ip}:8081")
            seen.add((ip, str(sorted(variables.items())), str(node["secrets"])))
        self.assertEqual(len({ip for ip, *_ in seen}), 3)
        self.assertEqual(len({tuple(rest) for _, *rest in seen}), 1)
        self.assertIn("noeviction", services["redis"]["command"][2])

    def test_commands_in_a_container_find_its_node(self) -> None:
        fleet = yaml.safe_load(COMPOSE_FLEET.read_text())["services"]
        for name, service in [*self.services.items(), *fleet.items()]:
            if name.startswith("greendot"):
                variables = service["environment"]
                # The health check of the image is one of them, and a node that it does not find is
                # unhealthy for ever.
                self.assertNotIn("healthcheck", service)
                self.assertTrue(listens(variables, asked_at(variables)), name)

    def test_a_node_of_a_fleet_is_asked_at_its_operators_address(self) -> None:
        fleet = yaml.safe_load(COMPOSE_FLEET.read_text())["services"]
        variables = fleet["greendot-1"]["environment"]
        admin = variables["GREENDOT_ADMIN"]
        self.assertEqual(asked_at(variables), admin)
        here = f"127.0.0.1:{own_port()}"
        url = variables["GREENDOT_URL"].replace(admin, here)
        with Server(f"--admin={here}", "--host=presence.example.com"):
            for command, told in (("health", "ready\n"), ("top --json --count=1", "{")):
                asked = [PROGRAM, *command.split()]
                env = {**ENV, "GREENDOT_URL": url}
                done = subprocess.run(asked, env=env, capture_output=True, text=True)
                self.assertEqual((done.returncode, done.stderr), (0, ""), command)
                self.assertTrue(done.stdout.startswith(told), done.stdout)

    def test_greendot_takes_its_variables(self) -> None:
        variables = self.services["greendot"]["environment"]
        host = variables["GREENDOT_HOST"]
        self.assertTrue(host.startswith("${GREENDOT_HOST:?"), host)
        variables = {**variables, "GREENDOT_HOST": "presence.example.com"}
        self.assertEqual(len(settings(variables)), len(variables))

    def test_nginx_finds_its_files_and_greendot(self) -> None:
        nginx, greendot = self.services["nginx"], self.services["greendot"]
        self.assertEqual(nginx["network_mode"], "service:greendot")
        mounted = dict(mount.split(":")[:2] for mount in nginx["volumes"])
        (source,) = [name for name, place in mounted.items() if place.endswith(".conf")]
        text = (COMPOSE.parent / source).resolve().read_text()
        self.assertIn(f"server {greendot['environment']['GREENDOT_HTTP']};", text)
        files = re.findall(r"^ +ssl_certificate(?:_key)? (\S+);$", text, re.MULTILINE)
        self.assertEqual(set(files), set(mounted.values()) - {mounted[source]})
        listened = re.findall(r"^ +listen (\d+)", text, re.MULTILINE)
        self.assertEqual(greendot["ports"][:2], [f"{port}:{port}" for port in listened])

    def test_its_folder_is_the_projects(self) -> None:
        build = self.services["greendot"]["build"]
        self.assertEqual((COMPOSE.parent / build).resolve(), ROOT.resolve())


@needs_yaml
class Kubernetes(unittest.TestCase):
    FILE = KUBERNETES
    KIND = "StatefulSet"
    FOLDERS = ("data_dir", "memory", "key_file", "jwt_keys")

    def setUp(self) -> None:
        self.kinds = {}
        for one in yaml.safe_load_all(self.FILE.read_text()):
            self.kinds.setdefault(one["kind"], []).append(one)
        (self.set,) = self.kinds[self.KIND]
        self.pod = self.set["spec"]["template"]["spec"]
        (self.container,) = self.pod["containers"]

    @tool("kubernetes-validate")
    def test_the_schemas_of_kubernetes_take_it(self) -> None:
        program = str(TOOLS / "bin/kubernetes-validate")
        for version in VERSIONS:
            command = [sys.executable, program, "--strict", "--quiet", str(self.FILE)]
            command[3:3] = ["-k", version] if version else []
            env = {**os.environ, "PYTHONPATH": str(TOOLS)}
            done = subprocess.run(command, env=env, capture_output=True, text=True)
            self.assertEqual((done.returncode, done.stdout + done.stderr), (0, ""), version)

    def test_a_kubelet_that_allows_nothing_more_takes_it(self) -> None:
        context = self.pod["securityContext"]
        named = {one["name"] for one in context.get("sysctls", [])}
        self.assertLessEqual(named, SAFE_SYSCTLS)
        for field in ("hostNetwork", "hostPID", "hostIPC"):
            self.assertNotIn(field, self.pod)

    def variables(self) -> dict[str, str]:
        """Of greendot, as Kubernetes fills them in."""
        said = [one for one in self.container["env"] if one["name"].startswith("GREENDOT_")]
        return {one["name"]: one["value"].replace("$(POD_IP)", "10.1.2.3") for one in said}

    def test_greendot_takes_its_variables(self) -> None:
        variables = self.variables()
        told = settings(variables)
        self.assertEqual(len(told), len(variables))
        # What it writes to and reads from is mounted.
        mounts = [mount["mountPath"] for mount in self.container["volumeMounts"]]
        for name in self.FOLDERS:
            path = Path(told[name].strip('[]"'))
            self.assertTrue([place for place in mounts if path.is_relative_to(place)], name)

    def test_ports_are_those_that_greendot_listens_at(self) -> None:
        variables = self.variables()
        ports = {port["name"]: port["containerPort"] for port in self.container["ports"]}
        listens = {"http": "HTTP", "beats": "UDP", "admin": "ADMIN"}
        for name, variable in listens.items():
            self.assertEqual(variables[f"GREENDOT_{variable}"], f"0.0.0.0:{ports[name]}")
        for service in self.kinds["Service"]:
            for port in service["spec"]["ports"]:
                self.assertEqual(ports[port["targetPort"]], port["port"])

    def test_probes_are_answered(self) -> None:
        with Server() as server:
            for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
                asked = self.container[probe]["httpGet"]
                self.assertEqual(asked["port"], "http")
                self.assertIn(server.get(asked["path"]), ("ok\n", "ready\n"))

    def test_keys_are_for_the_group_alone(self) -> None:
        (keys,) = [one for one in self.pod["volumes"] if "secret" in one]
        self.assertEqual(keys["secret"]["defaultMode"], 0o440)
        context = self.pod["securityContext"]
        self.assertEqual(context["fsGroup"], context["runAsUser"])
        self.assertIn(f"\nUSER {context['runAsUser']}:", DOCKERFILE.read_text())

    def test_all_are_of_one_app_and_a_drain_has_its_time(self) -> None:
        labels = self.set["spec"]["template"]["metadata"]["labels"]
        for service in self.kinds["Service"]:
            self.assertEqual(service["spec"]["selector"], labels)
        (budget,) = self.kinds["PodDisruptionBudget"]
        self.assertEqual(budget["spec"]["selector"]["matchLabels"], labels)
        told = subprocess.run([PROGRAM, "config"], env=ENV, capture_output=True, text=True).stdout
        drain_ms = int(re.search(r"^drain_ms = (\d+)", told, re.MULTILINE)[1])
        grace_s = self.pod["terminationGracePeriodSeconds"]
        before_s = self.container["lifecycle"]["preStop"]["sleep"]["seconds"]
        self.assertGreater((grace_s - before_s) * 1_000, drain_ms)


class KubernetesFleet(Kubernetes):
    FILE = KUBERNETES_FLEET
    KIND = "Deployment"
    FOLDERS = ("data_dir", "key_file", "jwt_keys", "cluster_password_file")

    def test_others_reach_a_node_by_its_own_address(self) -> None:
        told = settings(self.variables())
        self.assertEqual(told["advertise_http"], '"10.1.2.3:8080"')
        self.assertEqual(told["advertise_udp"], '"10.1.2.3:8081"')
        self.assertEqual(self.set["spec"]["replicas"], 3)
        self.assertNotIn("volumeClaimTemplates", self.set["spec"])
