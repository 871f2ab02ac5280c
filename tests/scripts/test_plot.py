"""scripts/plot reads every kind of file the project writes, and what it draws is well-formed."""

import json
import os
import subprocess
import sys
import tempfile
import unittest
import xml.etree.ElementTree as ET

from fixtures import ROOT
from loadtest_lib.svg import Axis, line_chart, log_ticks, number, ticks

BENCH = """# commit 0123456789ab, some CPU, 2 CPUs
## bench_attend
sparse attention    heads 8, 1024 keys        100.0 us      90.0..110.0     1.00 GB/s  10.0 %
sparse attention    heads 8, 4096 keys        200.0 us     190.0..220.0     2.00 GB/s  20.0 %
indexer             heads 8, 4096 keys        50.0 us      49.0..51.0      3.00 GB/s  30.0 %
"""


def plot(text, *arguments, check=0):
    done = subprocess.run([sys.executable, "-B", os.path.join(ROOT, "scripts/plot"), "-"]
                          + list(arguments), input=text, capture_output=True, text=True)
    if done.returncode != check:
        raise AssertionError(done.stdout + done.stderr)
    return done.stdout


def marks(svg, tag="circle"):
    """The notes of the marks of a chart: what was drawn, in words."""
    root = ET.fromstring(svg)
    ns = "{http://www.w3.org/2000/svg}"
    titles = [m.find(ns + "title") for m in root.iter(ns + tag)]
    return [t.text for t in titles if t is not None]


class Plot(unittest.TestCase):
    def test_bench_rows(self):
        svg = plot(BENCH, "--x", r"(\d+) keys", "--y", "us", "--by", "name", "--log", "xy")
        self.assertEqual(marks(svg), ["sparse attention 1024: 100", "sparse attention 4096: 200",
                                      "indexer 4096: 50"])
        svg = plot(BENCH, "--grep", "4096", "--y", "GB/s", "--kind", "bar")
        self.assertEqual(marks(svg, "rect"), ["sparse attention GB/s: 2".replace(" GB/s", " "),
                                              "indexer : 3"])

    def test_json_and_lines(self):
        rows = [{"step": i, "loss": {"train": 4 - i, "dev": 5 - i}} for i in range(3)]
        for text in (json.dumps(rows), json.dumps({"rows": rows, "x": 1}),
                     "\n".join(map(json.dumps, rows))):
            svg = plot(text, "--y", "loss.train,loss.dev")
            self.assertEqual(marks(svg)[:3], ["loss.train %d: %d" % (i, 4 - i) for i in range(3)])
            self.assertEqual(len(marks(svg)), 6)

    def test_csv(self):
        svg = plot("n,rate\n1,10\n2,20\n", "--x", "n", "--y", "rate", "--title", "a < b & c")
        self.assertEqual(marks(svg), ["1: 10", "2: 20"])

    def test_load_test(self):
        stages = [{"name": "%d clients" % n, "value": n, "itl_ms": {"p50": n / 2}} for n in (1, 4)]
        svg = plot(json.dumps({"format": "gaze-loadtest-1", "stages": stages}), "--y", "itl_ms.p50")
        self.assertEqual(marks(svg), ["1: 0.5", "4: 2"])

    def test_several_files_to_a_file(self):
        with tempfile.TemporaryDirectory() as folder:
            for name, v in (("old", 1), ("new", 2)):
                with open(os.path.join(folder, name + ".json"), "w") as f:
                    json.dump([{"name": "row", "us": v}], f)
            out = os.path.join(folder, "out.svg")
            subprocess.run([sys.executable, "-B", os.path.join(ROOT, "scripts/plot"),
                            folder + "/old.json", folder + "/new.json", "--y", "us", "-o", out],
                           check=True)
            with open(out) as f:
                self.assertEqual(marks(f.read(), "rect"), ["row old: 1", "row new: 2"])

    def test_refused(self):
        plot("[]", check=1)
        plot(BENCH, "--y", "furlongs", check=1)
        plot("{not json", check=2)
        plot(BENCH, "--kind", "line", check=2)


class Axes(unittest.TestCase):
    def test_ticks(self):
        self.assertEqual(ticks(0, 10), [0, 2, 4, 6, 8, 10])
        self.assertEqual(ticks(0.13, 0.87), [0, 0.2, 0.4, 0.6, 0.8, 1.0])
        self.assertEqual(ticks(5, 5)[0], 5)
        self.assertEqual(log_ticks(1, 64), [1, 2, 5, 10, 20, 50, 100])
        for low, high in ((1e-9, 1e9), (3, 3), (0.02, 0.021), (7, 4096)):
            at = log_ticks(low, high)
            self.assertTrue(at[0] <= low * 1.001 and at[-1] >= high * 0.999, (low, high, at))

    def test_axis(self):
        axis = Axis([1, 1000], 0, 300, log=True)
        self.assertAlmostEqual(axis.px(10), 100)
        self.assertAlmostEqual(Axis([0, 50], 0, 100).px(25), 50)

    def test_number(self):
        self.assertEqual([number(v) for v in (0, 0.25, 1234, 20000, 2.5e6, 3e9, 1e-5)],
                         ["0", "0.25", "1234", "20k", "2.5M", "3G", "1.0e-05"])

    def test_empty_and_gaps(self):
        ET.fromstring(line_chart([]))
        svg = line_chart([("a", [(1, 1), (2, None), (3, 3)])], log_x=True, log_y=True)
        self.assertEqual(len(marks(svg)), 2)
