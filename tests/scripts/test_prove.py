"""scripts/prove at a small size, so that it still runs when somebody needs it."""

import json
import os
import subprocess
import sys
import tempfile
import unittest

from fixtures import ROOT

GAZE = os.path.join(ROOT, os.environ.get("GAZE_BUILD", "build/release"), "gaze")
MODEL = os.path.join(ROOT, "tests/fixtures/v32-bf16")


@unittest.skipUnless(os.path.exists(GAZE), "no built server")
class Prove(unittest.TestCase):
    def run_it(self, *arguments):
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "deep", "out.json")
            done = subprocess.run(
                [sys.executable, "-B", os.path.join(ROOT, "scripts/prove"), "--gaze", GAZE,
                 "--model", MODEL, "--out", path] + [str(a) for a in arguments],
                capture_output=True, text=True, timeout=120)
            with open(path, encoding="utf-8") as f:
                return done, json.load(f)

    def test_vanish(self):
        done, results = self.run_it("vanish", "--vanishing", 600)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        self.assertEqual(results["vanish"]["numbers"]["clients"], 600)
        self.assertEqual(set(results["vanish"]["holds"].values()), {True})
        self.assertIn("commit", results["vanish"]["machine"])

    def test_crowd_and_hostile(self):
        """What so short a run says of memory and of the 99th percentile is not held against it."""
        _, results = self.run_it("crowd", "hostile", "--clients", 40, "--seconds", 9, "--pairs", 1,
                                 "--hostile-seconds", 3, "--slow", 20, "--flood", 20)
        crowd, hostile = results["crowd"], results["hostile"]
        for holds in ("no error", "the slowest client gets half the median", "exit code 0"):
            self.assertTrue(crowd["holds"][holds], crowd)
        self.assertTrue(hostile["holds"]["no error for the others"], hostile)
        self.assertGreater(hostile["numbers"]["pairs"][0]["attack"]["flood_requests"], 10)


if __name__ == "__main__":
    unittest.main()
