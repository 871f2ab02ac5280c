"""Statistics against numbers worked out by hand."""

import statistics
import unittest
from array import array

from loadtest_lib.client import Answer
from loadtest_lib.stats import Sample, compare, meets, quantile, stage_summary, summary


def sample(client=0, start=0.0, sent=None, times=(), end=None, tokens=None, error=None, turn=0,
           prompt=10, cached=4):
    s = Sample(client, turn, start, 8)
    a = s.answer = Answer()
    a.sent = start if sent is None else sent
    a.times = array("d", times)
    a.chunks = len(times)
    if times:
        a.first, a.last = times[0], times[-1]
    a.end = end if end is not None else (times[-1] if times else start)
    a.output_tokens, a.prompt_tokens, a.cached_tokens, a.error = tokens, prompt, cached, error
    return s


class Quantiles(unittest.TestCase):
    def test_known(self):
        self.assertEqual(quantile([1.0], 0.99), 1.0)
        self.assertEqual(quantile([1, 2, 3, 4], 0.5), 2.5)
        self.assertAlmostEqual(quantile([10, 20, 30], 0.9), 28.0)
        self.assertIsNone(quantile([], 0.5))

    def test_against_the_standard_library(self):
        values = [((i * 7919) % 1009) / 3 for i in range(500)]
        cuts = statistics.quantiles(values, n=100, method="inclusive")
        got = summary(values)
        for p in (50, 90, 99):
            self.assertAlmostEqual(got["p%d" % p], cuts[p - 1])
        self.assertAlmostEqual(got["mean"], statistics.fmean(values))
        self.assertEqual((got["min"], got["max"]), (min(values), max(values)))
        self.assertEqual(got["curve"][50], got["p50"])
        self.assertEqual(summary([]), {"n": 0})


class Samples(unittest.TestCase):
    def test_times(self):
        s = sample(start=1.0, sent=1.5, times=(2.0, 2.1, 2.4), end=2.5, tokens=5)
        got = s.times_ms()
        self.assertAlmostEqual(got["ttft_ms"], 1000)  # from the due time, not from the sending
        self.assertAlmostEqual(got["tpot_ms"], 100)   # 0.4 s for the 4 tokens after the first
        self.assertAlmostEqual(got["e2e_ms"], 1500)
        for want, gap in zip((100, 300), s.gaps_ms()):
            self.assertAlmostEqual(want, gap)

    def test_goodput(self):
        s = sample(times=(0.1, 0.2, 0.5), tokens=3)
        self.assertTrue(meets(s, {"ttft_ms": 101, "itl_ms": 201}))
        self.assertFalse(meets(s, {"ttft_ms": 99}))
        self.assertFalse(meets(s, {"tpot_ms": 199}))
        # Not streamed: there is no such time to miss.
        self.assertTrue(meets(sample(end=1.0, tokens=1), {"ttft_ms": 5}))

    def test_stage(self):
        left = sample(client=3, times=(0.5,), end=0.6)
        left.left = True
        samples = [sample(0, times=(1.0, 2.0), tokens=4),        # 4 tokens within the window
                   sample(1, times=(1.0, 3.0), tokens=2),        # 1 of its 2 pieces within
                   sample(2, end=0.1, error="timeout"), left]
        got = stage_summary(samples, 0.0, 2.0, {"ttft_ms": 1500, "e2e_ms": 2500}, True)
        self.assertEqual((got["begun"], got["completed"], got["failed"], got["left"]), (4, 2, 1, 1))
        self.assertEqual(got["errors"], {"timeout": 1})
        self.assertAlmostEqual(got["throughput"]["requests_per_s"], 0.5)
        self.assertAlmostEqual(got["throughput"]["output_tokens_per_s"], (4 + 1 + 1) / 2)
        self.assertAlmostEqual(got["goodput"]["share"], 1 / 3)
        self.assertEqual(got["tokens"]["prompt"], 20)
        self.assertEqual(got["tokens"]["cached"], 8)
        self.assertEqual(got["ttft_ms"]["n"], 2)
        self.assertAlmostEqual(got["itl_ms"]["mean"], 1500)
        self.assertEqual(got["clients"]["n"], 4)
        self.assertEqual(got["clients"]["tokens_min"], 0)
        self.assertEqual(got["series"]["running"], [4, 2])  # at some moment of each second
        self.assertEqual(sum(t * 1.0 for t in got["series"]["tokens_per_s"]), 6)

    def test_without_usage_pieces_count(self):
        got = stage_summary([sample(times=(1.0, 2.0, 3.0), prompt=None)], 0.0, 4.0, None, False)
        self.assertEqual((got["tokens"]["output"], got["tokens"]["counted_by"]), (3, "pieces"))

    def test_turns(self):
        got = stage_summary([sample(times=(1.0, 2.0), turn=t, tokens=2) for t in (0, 0, 1)],
                            0.0, 4.0, None, False)
        self.assertEqual([(t["turn"], t["n"]) for t in got["by_turn"]], [(1, 2), (2, 1)])


class Compare(unittest.TestCase):
    def run_of(self, rate, p99, failed=0):
        return {"stages": [{"name": "s", "failed": failed, "throughput": {"requests_per_s": rate},
                            "ttft_ms": {"n": 1, "p99": p99}}, {"name": str(rate)}]}

    def test_verdicts(self):
        rows = compare(self.run_of(10.0, 100.0), self.run_of(12.0, 103.0, failed=1), 0.05)
        got = {r["what"]: (round(r["change"], 3) if r["change"] is not None else None, r["verdict"])
               for r in rows}
        self.assertEqual(got, {"requests/s": (0.2, "better"), "failed": (None, "worse"),
                               "time to first token p99, ms": (0.03, "same")})

    def test_lower_latency_is_better(self):
        rows = compare(self.run_of(10.0, 100.0), self.run_of(9.0, 50.0))
        self.assertEqual({r["what"]: r["verdict"] for r in rows},
                         {"requests/s": "worse", "time to first token p99, ms": "better",
                          "failed": "same"})
