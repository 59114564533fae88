"""The alerts and the dashboard speak of what a node counts, and the handbook of each alert."""

import json
import re
import shutil
import subprocess
import unittest

from server import ROOT, Server

FOLDER = ROOT / "docs/deploy/prometheus"
ALERTS = FOLDER / "alerts.yml"
DASHBOARD = ROOT / "docs/deploy/grafana/dashboard.json"
# What Prometheus makes itself.
OF_PROMETHEUS = {"up"}

try:
    import yaml
except ImportError:
    yaml = None


def promtool(*args: str) -> subprocess.CompletedProcess:
    command = ["promtool", *args]
    return subprocess.run(command, cwd=FOLDER, capture_output=True, text=True, timeout=120)


def alerts() -> list[dict]:
    groups = yaml.safe_load(ALERTS.read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def queries() -> list[str]:
    """What the dashboard asks for."""
    board = json.loads(DASHBOARD.read_text())
    panels = [panel for panel in board["panels"] if panel["type"] != "row"]
    asked = [target["expr"] for panel in panels for target in panel["targets"]]
    asked += [annotation["expr"] for annotation in board["annotations"]["list"]]
    variables = board["templating"]["list"]
    asked += [variable["query"]["query"] for variable in variables if variable["type"] == "query"]
    return asked


def named(query: str) -> dict[str, list[tuple[str, str]]]:
    """The metrics of a query, each with the labels that are asked of it."""
    found: dict[str, list[tuple[str, str]]] = {}
    pattern = r"\b((?:greendot|process)_\w+|up)\b(?:\{([^}]*)\})?"
    for name, labels in re.findall(pattern, query):
        found.setdefault(name, []).extend(re.findall(r'(\w+)!?=~?"([^"]*)"', labels))
    return found


class Metrics(unittest.TestCase):
    """Each name, and each value of a label that is chosen by, is on a real node's page."""

    @classmethod
    def setUpClass(cls) -> None:
        with Server() as server:
            cls.page = server.get("/metrics")

    def series(self, name: str) -> list[str]:
        lines = self.page.splitlines()
        return [line for line in lines if re.match(rf"{name}(\{{| )", line)]

    def judge(self, query: str) -> int:
        names = named(query)
        for name, labels in names.items():
            if name in OF_PROMETHEUS:
                continue
            series = self.series(name)
            self.assertTrue(series, f"{name} of {query}")
            for label, values in labels:
                # Whom Prometheus has asked.
                if label in ("job", "instance"):
                    continue
                for value in values.split("|"):
                    wanted = f'{label}="{value}"'
                    self.assertTrue([one for one in series if wanted in one], f"{wanted}: {query}")
        return len(names)

    @unittest.skipIf(yaml is None, "no PyYAML; see tests/proxies/install")
    def test_of_the_alerts(self) -> None:
        self.assertGreater(sum(self.judge(rule["expr"]) for rule in alerts()), 25)

    def test_of_the_dashboard(self) -> None:
        self.assertGreater(sum(self.judge(query) for query in queries()), 30)


class Alerts(unittest.TestCase):
    @unittest.skipIf(shutil.which("promtool") is None, "no promtool (apt-get install prometheus)")
    def test_each_fires_when_it_should_and_not_else(self) -> None:
        for args in (("check", "config", "prometheus.yml"), ("test", "rules", "alerts_test.yml")):
            done = promtool(*args)
            self.assertEqual(done.returncode, 0, done.stdout + done.stderr)

    @unittest.skipIf(yaml is None, "no PyYAML; see tests/proxies/install")
    def test_each_has_a_test_that_fires_and_one_that_does_not(self) -> None:
        tests = yaml.safe_load((FOLDER / "alerts_test.yml").read_text())["tests"]
        fires = {True: set(), False: set()}
        for test in tests:
            for judged in test["alert_rule_test"]:
                fires[bool(judged["exp_alerts"])].add(judged["alertname"])
        names = {rule["alert"] for rule in alerts()}
        self.assertEqual((fires[True], fires[False]), (names, names))

    @unittest.skipIf(yaml is None, "no PyYAML; see tests/proxies/install")
    def test_each_has_its_section_of_the_handbook(self) -> None:
        handbook = (ROOT / "docs/OPERATIONS.md").read_text()
        _, _, rest = handbook.partition("\n## Alerts\n")
        sections = rest.partition("\n## ")[0].split("\n#### ")[1:]
        written = {section.partition("\n")[0]: section.partition("\n")[2] for section in sections}
        self.assertEqual(list(written), [rule["alert"] for rule in alerts()])
        links = []
        for rule in alerts():
            page, _, anchor = rule["annotations"]["runbook_url"].partition("#")
            self.assertTrue(page.endswith("/docs/OPERATIONS.md"), page)
            links.append(anchor)
            self.assertIn(rule["labels"]["severity"], ("critical", "warning"))
            # What it means, what to look at, what to do.
            text = written[rule["alert"]]
            for part in ("**Means**", "**Look**", "**Do**"):
                self.assertIn(part, text, rule["alert"])
        self.assertEqual(links, [name.lower() for name in written])


class Dashboard(unittest.TestCase):
    def test_panels_lie_beside_each_other(self) -> None:
        panels = json.loads(DASHBOARD.read_text())["panels"]
        self.assertEqual(len({panel["id"] for panel in panels}), len(panels))
        taken = set()
        for panel in panels:
            at = panel["gridPos"]
            self.assertLessEqual(at["x"] + at["w"], 24)
            cells = {
                (x, y)
                for x in range(at["x"], at["x"] + at["w"])
                for y in range(at["y"], at["y"] + at["h"])
            }
            self.assertFalse(cells & taken, panel["title"])
            taken |= cells
