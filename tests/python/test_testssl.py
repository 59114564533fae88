"""What testssl.sh finds wrong with the server's TLS: nothing above "low". TESTSSL=both has it look
at a server that speaks TLS 1.2 as well, which takes a minute more."""

import json
import os
import shutil
import subprocess
import unittest

from server import Server, certified

PROGRAM = shutil.which("testssl") or shutil.which("testssl.sh")
# That of the certificate is its authority's to say, and the authority of a test says nothing.
EXCEPTED = {"cert_revocation"}
# Fewer findings than that are no look at all.
FINDINGS_MIN = 60
LIMIT_S = 240


@unittest.skipUnless(PROGRAM, "there is no testssl (apt-get install testssl.sh)")
class Testssl(unittest.TestCase):
    def findings(self, server):
        port = server.https.rsplit(":", 1)[1]
        out = server.path("findings.json")
        command = [PROGRAM, "--quiet", "--warnings=off", "--color=0", "--nodns=none"]
        command += ["--ip=127.0.0.1", "--add-ca", str(server.path("ca.crt"))]
        command += ["--jsonfile", str(out), f"https://localhost:{port}"]
        limits = {"stdin": subprocess.DEVNULL, "timeout": LIMIT_S}
        done = subprocess.run(command, capture_output=True, text=True, **limits)
        self.assertTrue(out.exists(), done.stdout + done.stderr)
        return {found["id"]: found for found in json.loads(out.read_text())}

    def judge(self, *flags):
        files = ["--tls-cert=tls.crt", "--tls-key=tls.key"]
        with Server("--https=127.0.0.1:0", *files, *flags, files=certified()) as server:
            found = self.findings(server)
        self.assertGreater(len(found), FINDINGS_MIN, found)
        self.assertIn("passed", found["cert_chain_of_trust"]["finding"])
        self.assertEqual(found["TLS1_3"]["severity"], "OK")
        fine = ("OK", "INFO", "LOW")
        bad = [one for name, one in found.items() if name not in EXCEPTED]
        self.assertEqual([one for one in bad if one["severity"] not in fine], [])
        return found

    def test_tls_1_3_alone(self):
        found = self.judge()
        self.assertEqual(found["TLS1_2"]["finding"], "not offered")

    @unittest.skipUnless(os.environ.get("TESTSSL") == "both", "TESTSSL=both has it")
    def test_tls_1_2_too(self):
        found = self.judge("--tls-min=1.2")
        self.assertEqual(found["TLS1_2"]["severity"], "OK")


if __name__ == "__main__":
    unittest.main()
