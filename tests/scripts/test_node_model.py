"""tests/bench/node_model.py: its traffic is the engine's, its times are the measured ones, it runs."""

import json
import os
import subprocess
import sys
import tempfile
import unittest

from fixtures import ROOT
from test_operations import GAZE, MODEL, environment, gaze

sys.path.insert(0, os.path.join(ROOT, "tests/bench"))
import node_model  # noqa: E402


def shape_of(folder):
    with open(os.path.join(folder, "config.json"), encoding="utf-8") as f:
        c = json.load(f)
    return dict(layers=c["num_hidden_layers"], dense=c["first_k_dense_replace"],
                hidden=c["hidden_size"], vocab=c["vocab_size"], experts=c["num_experts_per_tok"])


@unittest.skipUnless(os.path.exists(GAZE), "no built server")
class NodeModel(unittest.TestCase):
    def test_traffic_is_the_plans(self):
        m = shape_of(MODEL)
        for tp, dp, ep, form in [(2, 1, 1, "f32"), (4, 1, 1, "f32"), (1, 2, 2, "f32"),
                                 (1, 4, 4, "fp8")]:
            code, out, err = gaze("plan", "--json", "--model", MODEL, "--device", "cpu", "--tp", tp,
                                  "--dp", dp, "--ep", ep, "--experts", form, "--max-seqs", 24)
            self.assertEqual(code, 0, err)
            told = json.loads(out)
            value = node_model.FP8_BYTES if form == "fp8" else 4
            mine = node_model.traffic(m, tp, ep, 24, 24, value)
            for part in ("sum", "logits", "dispatch", "combine"):
                self.assertEqual(told["decode_%s_bytes" % part], int(mine[part + "_bytes"]),
                                 (tp, dp, ep, part))

    def test_times_are_the_measured_ones(self):
        rows = node_model.measured("all_reduce")
        self.assertGreater(len(rows), 5)
        for leaves, us in rows:
            self.assertAlmostEqual(node_model.call_us("all_reduce", leaves, 2), us)
        (b0, t0), (b1, t1) = rows[2:4]
        self.assertAlmostEqual(node_model.call_us("all_reduce", (b0 + b1) / 2, 2), (t0 + t1) / 2)
        most = rows[-1]
        self.assertGreater(node_model.call_us("all_reduce", 2 * most[0], 2), 1.5 * most[1])
        for kind in ("tp", "ep"):  # more rows, more ranks: more time
            m = node_model.SHAPES["deepseek-v3.2"]
            ms = [node_model.comm_ms(m, kind, 8, r, r) for r in (1, 16, 128, 4096)]
            self.assertEqual(ms, sorted(ms))
            self.assertLess(node_model.comm_ms(m, kind, 4, 16, 16), ms[1])

    def test_it_runs(self):
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "rows.jsonl")
            done = subprocess.run(
                [sys.executable, "-B", os.path.join(ROOT, "tests/bench/node_model.py"), GAZE,
                 "--device", "cpu", "--shape", "deepseek-v2-lite", "--shares", "tp8,ep8",
                 "--json", path, "--layers", "2", "--contexts", "96", "--streams", "1",
                 "--repeats", "1", "--modes", "dense", "--max-context", "1024"],
                capture_output=True, text=True, timeout=240, env=environment(), cwd=ROOT)
            self.assertEqual(done.returncode, 0, done.stderr)
            with open(path, encoding="utf-8") as f:
                rows = [json.loads(line) for line in f]
        self.assertEqual([(r["share"], r["case"]) for r in rows],
                         [(s, c) for s in ("tp8", "ep8") for c in ("prefill", "decode")])
        for r in rows:
            self.assertAlmostEqual(r["step_ms"], r["scaled_ms"] + r["comm_ms"], 2)
            self.assertGreater(r["comm_ms"], 0)
            n = (r["context"] if r["case"] == "prefill" else 1) * (8 if r["share"] == "ep8" else 1)
            self.assertAlmostEqual(r["node_tokens_per_s"] / (n / r["step_ms"] * 1000), 1, 1)


if __name__ == "__main__":
    unittest.main()
