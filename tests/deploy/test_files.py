"""Each file of docs/deploy has its row in the README there, and the test that the row names."""

import re
import subprocess
import unittest

from server import ROOT

FOLDER = ROOT / "docs/deploy"


def deployed() -> set[str]:
    """The files there, but the README."""
    command = ["git", "-C", str(FOLDER), "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return set(listed.split()) - {"README.md"}


class Rows(unittest.TestCase):
    def test_each_file_has_a_row_and_each_row_its_test(self) -> None:
        text = (FOLDER / "README.md").read_text()
        rows = re.findall(r"^\| `([^`]+)` \| [^|]+ \| ([^|]+) \|$", text, re.MULTILINE)
        self.assertEqual({name for name, _ in rows}, deployed())
        self.assertEqual(len({name for name, _ in rows}), len(rows))
        for name, judged in rows:
            if judged.startswith("untested: "):
                continue
            test = re.fullmatch(r"`([^`]+)`", judged)[1]
            with self.subTest(name):
                # A test that has the file's name, or builds it of its folder's.
                text = (ROOT / test).read_text()
                self.assertTrue(name.rpartition("/")[2] in text, f"{test} does not name it")
