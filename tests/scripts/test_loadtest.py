"""The whole program against a stand-in server whose times and mistakes are known."""

import os
import subprocess
import sys
import tempfile
import unittest

from fixtures import ROOT, StandIn, check_html, loadtest


class Load(unittest.TestCase):
    def test_ladder(self):
        with StandIn(first_ms=40, token_ms=10) as server:
            result, text = loadtest("--url", server.url, "--ladder", "1,4", "--requests", 8,
                                    "--output", 6, "--goodput", "ttft:1000,tpot:500", "--warmup", 2)
        self.assertEqual([s["name"] for s in result["stages"]], ["1 client", "4 clients"])
        for stage in result["stages"]:
            self.assertEqual((stage["completed"], stage["failed"]), (8, 0))
            self.assertEqual(stage["tokens"]["output"], 48)
            self.assertEqual(stage["tokens"]["counted_by"], "usage")
            self.assertEqual(stage["itl_ms"]["n"], 40)
            # Lower bounds hold on any machine, however busy it is.
            self.assertGreaterEqual(stage["ttft_ms"]["min"], 39)
            self.assertGreaterEqual(stage["tpot_ms"]["mean"], 9)
            self.assertGreaterEqual(stage["e2e_ms"]["min"], 88)
            self.assertEqual(stage["goodput"]["share"], 1.0)
            self.assertEqual(stage["server"]["delta"]["vllm:generation_tokens_total"], 48)
            self.assertEqual(stage["server"]["delta"]["vllm:prompt_tokens_total"],
                             stage["tokens"]["prompt"])
        self.assertIn("time to first token", text)

    def test_open_loop_keeps_its_rate(self):
        with StandIn() as server:
            result, _ = loadtest("--url", server.url, "--rate", 40, "--arrivals", "constant",
                                 "--requests", 40, "--output", 3)
        stage = result["stages"][0]
        self.assertEqual((stage["completed"], stage["arrivals"]), (40, "constant"))
        self.assertGreater(stage["seconds"], 39 / 40)

    def test_sweep(self):
        with StandIn() as server:
            result, _ = loadtest("--url", server.url, "--sweep", "20,60", "--seconds", 1,
                                 "--output", 2, "--new-connections")
        self.assertEqual([s["kind"] for s in result["stages"]], ["rate", "rate"])
        self.assertTrue(all(s["completed"] and not s["failed"] for s in result["stages"]))

    def test_many_streams(self):
        with StandIn(first_ms=400, token_ms=100) as server:
            result, _ = loadtest("--url", server.url, "--clients", 400, "--requests", 400,
                                 "--output", 4, "--ramp", 0.5)
        stage = result["stages"][0]
        self.assertEqual((stage["completed"], stage["failed"], stage["tokens"]["output"]),
                         (400, 0, 1600))
        self.assertEqual((stage["clients"]["n"], stage["clients"]["slowest_share"]), (400, 1.0))

    def test_turns_and_prefixes(self):
        with StandIn() as server:
            result, text = loadtest("--url", server.url, "--clients", 2, "--requests", 12,
                                    "--turns", 3, "--prefix-tokens", 20, "--think-time", "1-5",
                                    "--output", 3)
        turns = result["stages"][0]["by_turn"]
        self.assertEqual([t["turn"] for t in turns], [1, 2, 3])
        self.assertGreater(turns[2]["prompt_tokens"] / turns[2]["n"],
                           turns[0]["prompt_tokens"] / turns[0]["n"])
        self.assertIn("prefix cache", text)

    def test_token_ids_text_and_whole_answers(self):
        with StandIn() as server:
            result, _ = loadtest("--url", server.url, "--token-ids", "5-90", "--prompt", 33,
                                 "--requests", 3, "--clients", 1, "--output", 2)
            self.assertEqual(result["stages"][0]["tokens"]["prompt_length"]["p50"], 33)
            result, _ = loadtest("--url", server.url, "--endpoint", "completions", "--text",
                                 os.path.join(ROOT, "README.md"), "--requests", 3, "--no-stream")
        stage = result["stages"][0]
        counts = (stage["completed"], stage["ttft_ms"]["n"], stage["e2e_ms"]["n"])
        self.assertEqual(counts, (3, 0, 3))

    def test_seconds_and_drain(self):
        with StandIn(token_ms=50) as server:
            result, _ = loadtest("--url", server.url, "--clients", 3, "--seconds", 1,
                                 "--output", 1000, "--drain", 0.2, "--warmup", 0, check=1)
        stage = result["stages"][0]
        self.assertEqual((stage["left"], stage["failed"]), (3, 0))
        self.assertGreater(stage["throughput"]["output_tokens_per_s"], 3)


class Mistakes(unittest.TestCase):
    def kinds(self, server, how, *more, check=1):
        result, _ = loadtest("--url", server.url, "--clients", 1, "--requests", 2, "--warmup", 0,
                             "--output", 4, "--extra", '{"stand_in": "%s"}' % how, *more,
                             check=check)
        return result["stages"][0]

    def test_kinds(self):
        with StandIn(token_ms=1) as server:
            for how, kind in (("status:500", "http 500 asked_for"), ("cut", "answer cut off"),
                              ("close", "closed without an answer"),
                              ("no_done", "stream without [DONE]"),
                              ("no_reason", "stream without finish_reason"),
                              ("error_event", "error in the stream step_failed"),
                              ("bad_json", "invalid JSON in an event"),
                              ("bad_utf8", "invalid UTF-8 in an event")):
                stage = self.kinds(server, how)
                self.assertEqual(stage["errors"], {kind: 2}, how)
            self.assertEqual(self.kinds(server, "split", check=0)["completed"], 2)
            stage = self.kinds(server, "silent", "--timeout", 0.3)
            self.assertEqual(stage["errors"], {"timeout": 2})

    def test_retry(self):
        with StandIn() as server:
            stage = self.kinds(server, "busy_once", "--retries", 2, check=0)
            self.assertEqual((stage["completed"], stage["retried"]), (2, 1))

    def test_vanish(self):
        with StandIn(token_ms=100) as server:
            stage = self.kinds(server, "", "--vanish", 1, "--vanish-after", 0.1, check=1)
            self.assertEqual((stage["left"], stage["failed"]), (2, 0))

    def test_nobody_there(self):
        with StandIn() as server:
            url = server.url
        _, text = loadtest("--url", url, "--requests", 2, check=1)
        self.assertIn("is the server up?", text)
        result, _ = loadtest("--url", url, "--model", "m", "--requests", 2, "--clients", 1,
                             "--warmup", 0, check=1)
        self.assertEqual(result["stages"][0]["errors"], {"connection refused": 2})

    def test_usage(self):
        for wrong in (["--clients", "2", "--rate", "3"], ["--ladder", "0"], ["--goodput", "x:1"],
                      ["--token-ids", "9-2"], ["--token-ids", "2-9", "--turns", "2"]):
            loadtest(*wrong, check=2)


class Reports(unittest.TestCase):
    def test_html_and_compare(self):
        with tempfile.TemporaryDirectory() as folder, StandIn(token_ms=3) as server:
            paths = [os.path.join(folder, n) for n in ("a.json", "b.json", "a.html", "c.html")]
            run = [sys.executable, "-B", os.path.join(ROOT, "scripts/loadtest")]
            for path, tokens in ((paths[0], 10), (paths[1], 40)):
                subprocess.run(run + ["--url", server.url, "--ladder", "1,3", "--requests", "6",
                                      "--output", str(tokens), "--json", path, "--html", paths[2],
                                      "--model", "<a & 'b'>", "--quiet"], check=True,
                               capture_output=True)
            with open(paths[2], encoding="utf-8") as f:
                page = f.read()
            count = check_html(page)
            self.assertGreaterEqual(count["svg"], 9)
            self.assertGreaterEqual(count["tr"], 6)
            self.assertIn("&lt;a &amp;", page)
            compare = run + ["--compare", paths[0], paths[1], "--html", paths[3]]
            done = subprocess.run(compare + ["--fail"], capture_output=True, text=True)
            self.assertEqual(done.returncode, 1)  # four times the tokens: a later end
            self.assertRegex(done.stdout, r"end-to-end latency p50, ms .*\+\d.* worse")
            with open(paths[3], encoding="utf-8") as f:
                check_html(f.read())
            same = subprocess.run(run + ["--compare", paths[0], paths[0], "--fail"],
                                  capture_output=True, text=True)
            self.assertEqual(same.returncode, 0)
            self.assertIn("0 worse", same.stdout)

    def test_compare_refuses_other_files(self):
        with tempfile.NamedTemporaryFile("w", suffix=".json") as f:
            f.write("{}")
            f.flush()
            loadtest("--compare", f.name, f.name, check=1)
