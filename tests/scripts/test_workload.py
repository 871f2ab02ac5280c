"""Lengths, prompts and conversations are what was asked, and a function of the seed."""

import json
import os
import random
import statistics
import tempfile
import unittest

from loadtest_lib.workload import Lengths, Plan, Source, arrivals, read_dataset


def plan(**more):
    source = more.pop("source", None) or Source(1, tokens_per_word=1.0)
    options = {"chat": True, "stream": True, "prompt": "20", "output": "8", "seed": 1}
    options.update(more)
    return Plan("m", options.pop("chat"), options.pop("stream"), source, **options)


class LengthsTest(unittest.TestCase):
    def draws(self, spec, n=4000):
        rng = random.Random(3)
        lengths = Lengths(spec)
        return [lengths.draw(rng) for _ in range(n)]

    def test_kinds(self):
        self.assertEqual(set(self.draws("128")), {128})
        self.assertEqual(set(self.draws("fixed:3")), {3})
        self.assertEqual(set(self.draws("5-7")), {5, 6, 7})
        self.assertEqual((min(self.draws("uniform:1-9")), max(self.draws("uniform:1-9"))), (1, 9))

    def test_lognormal(self):
        values = self.draws("lognormal:100,0.5,1000", 20000)
        self.assertAlmostEqual(statistics.median(values) / 100, 1, delta=0.03)
        self.assertAlmostEqual(statistics.fmean(values) / 100, 1.133, delta=0.03)  # e^(0.5^2 / 2)
        self.assertEqual(max(self.draws("lognormal:100,3,200")), 200)

    def test_file(self):
        with tempfile.NamedTemporaryFile("w", suffix=".txt") as f:
            f.write("4\n\n9\n")
            f.flush()
            self.assertEqual(set(self.draws("file:" + f.name)), {4, 9})

    def test_refused(self):
        for spec in ("", "x", "7-3", "uniform:5", "lognormal:0,1", "normal:3", "file:/nowhere"):
            with self.assertRaises(ValueError, msg=spec):
                Lengths(spec)


class Prompts(unittest.TestCase):
    def test_same_seed_same_requests(self):
        def bodies(seed):
            return json.dumps([plan(seed=seed).conversation("st", i).body(0) for i in range(5)])

        one, two, other = bodies(1), bodies(1), bodies(2)
        self.assertEqual(one, two)
        self.assertNotEqual(one, other)

    def test_token_ids_are_exact(self):
        p = plan(chat=False, source=Source(1, token_ids=(5, 50)), prompt="37", prefix_tokens=11)
        body, asked = p.conversation("st", 0).body(0)
        self.assertEqual((len(body["prompt"]), asked, body["max_tokens"]), (48, 8, 8))
        self.assertTrue(all(5 <= t < 50 for t in body["prompt"]))

    def test_text_of_a_length(self):
        p = plan(source=Source(1, tokens_per_word=1.25), prompt="100")
        words = p.conversation("st", 0).body(0)[0]["messages"][0]["content"].split()
        self.assertEqual(len(words), 80)

    def test_longer_than_the_stock(self):
        with tempfile.NamedTemporaryFile("w") as f:
            f.write("one two three")
            f.flush()
            source = Source(1, text_path=f.name, tokens_per_word=1.0)
        self.assertEqual(len(source.take(random.Random(1), 50).split()), 50)

    def test_prefixes(self):
        p = plan(prefix_tokens=30, prefix_groups=2)
        firsts = {p.conversation("st", i).body(0)[0]["messages"][0]["content"] for i in range(40)}
        self.assertEqual(len(firsts), 2)
        users = {p.conversation("st", i).body(0)[0]["messages"][1]["content"] for i in range(40)}
        self.assertEqual(len(users), 40)

    def test_conversation_grows(self):
        conversation = plan(turns="3", followup="4").conversation("st", 0)
        self.assertEqual(conversation.turns, 3)
        first = json.dumps(conversation.body(0)[0]["messages"])
        conversation.reply("the answer")
        second = json.dumps(conversation.body(1)[0]["messages"])
        self.assertTrue(second.startswith(first[:-1]))
        roles = [m["role"] for m in conversation.messages]
        self.assertEqual(roles, ["user", "assistant", "user"])

    def test_text_completion_grows(self):
        conversation = plan(chat=False, turns="2").conversation("st", 0)
        first = conversation.body(0)[0]["prompt"]
        conversation.reply(" the answer")
        self.assertTrue(conversation.body(1)[0]["prompt"].startswith(first + " the answer"))

    def test_stream_and_extra(self):
        body, _ = plan(extra={"temperature": 0}).conversation("st", 0).body(0)
        self.assertEqual(body["stream_options"], {"include_usage": True})
        self.assertEqual(body["temperature"], 0)
        self.assertNotIn("stream", plan(stream=False).conversation("st", 0).body(0)[0])

    def test_dataset(self):
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "d.jsonl")
            with open(path, "w") as f:
                f.write('{"prompt":"p","max_tokens":3}\n'
                        '{"messages":[{"role":"user","content":"q"}]}\n')
            rows = read_dataset(path)
            bodies = [plan(dataset=rows).conversation("st", i).body(0)[0] for i in range(20)]
            self.assertEqual({b["messages"][0]["content"] for b in bodies}, {"p", "q"})
            self.assertEqual({b["max_tokens"] for b in bodies}, {3, 8})
            with open(path, "w") as f:
                f.write('[{"text":"x"}]')
            with self.assertRaises(ValueError):
                read_dataset(path)


class Arrivals(unittest.TestCase):
    def test_constant_and_poisson(self):
        constant, poisson = arrivals("constant", 4.0, 1, "s"), arrivals("poisson", 4.0, 1, "s")
        self.assertEqual({next(constant) for _ in range(9)}, {0.25})
        gaps = [next(poisson) for _ in range(20000)]
        self.assertAlmostEqual(statistics.fmean(gaps), 0.25, delta=0.01)
        # An exponential's deviation is its mean.
        self.assertAlmostEqual(statistics.pstdev(gaps), 0.25, delta=0.01)
