"""Measures a running OpenAI-compatible server: retrieval by length, chat turns, JSON, tool calls.

    python3 evaluate_server.py http://127.0.0.1:8000 [--model NAME] [--samples N] [--data DATA]
                               [--characters 1500,6000,24000] [--only retrieval,chat,json,tools]
                               [--sampling greedy,default] [--at-once N] [--out results.json]

Standard library only. Retrieval is measured twice: on fresh tables of the trained kinds, and on key
types, wordings, and values that training never saw ("unseen"). Chat is small talk in trained and in
unseen wordings and, where DATA holds heldout.jsonl.xz, held-out dialogues, and sums with thinking.
The other tasks are fresh draws of the trained kinds. "greedy" asks for temperature 0; "default"
for no sampling of its own, so that the model's defaults hold, with another seed in every request
of a kind.
--characters are sizes of the context; ember's tokenizer has about 1.3 characters a token in tables.
"""
import argparse
import json
import random
import sys
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import corpora
import tasks
from words import TALK_HELD

ANSWER_TOKENS = 200  # within which a chat turn has to close


class Client:
    def __init__(self, base, model, timeout, at_once):
        self.base, self.timeout, self.greedy = base.rstrip("/"), timeout, True
        self.pool = ThreadPoolExecutor(at_once)
        self.model = model or self.get("/v1/models")["data"][0]["id"]

    def get(self, path):
        with urllib.request.urlopen(self.base + path, timeout=self.timeout) as r:
            return json.load(r)

    def chat(self, seed, body):
        sampling = {"temperature": 0} if self.greedy else {"seed": seed}
        request = urllib.request.Request(
            self.base + "/v1/chat/completions",
            json.dumps({"model": self.model, **sampling, **body}).encode(),
            {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=self.timeout) as r:
            answer = json.load(r)
        return {**answer["choices"][0], "prompt_tokens": answer["usage"]["prompt_tokens"]}

    def answers(self, prompts, max_tokens, **more):
        """The choices for all prompts, (messages, tools or None), in their order."""
        bodies = [{"messages": m, "max_tokens": max_tokens, **({"tools": t} if t else {}), **more}
                  for m, t in prompts]
        return list(self.pool.map(self.chat, range(len(bodies)), bodies))


def text_of(choice):
    return choice["message"]["content"] or ""


def retrieval(client, rng, sizes, n, unseen):
    out = {}
    for size in sizes:
        rows = [tasks.table(rng, size, questions=1, spread=True, held=unseen)["messages"]
                for _ in range(n)]
        choices = client.answers([(row[:1], None) for row in rows], 24)
        right = sum(text_of(c).strip() == row[1]["content"] for c, row in zip(choices, rows))
        out[str(size)] = {"samples": n, "accuracy": round(right / n, 4),
                          "mean_prompt_tokens": round(sum(c["prompt_tokens"]
                                                          for c in choices) / n)}
    return out


def chat_sets(rng, n, data):
    """By name, n conversations that wait for an answer, and whether it begins with thinking."""
    sets = {"small talk": ([tasks.small_talk(rng)[:-1] for _ in range(n)], False),
            "unseen wordings": ([[tasks.user(TALK_HELD[i % len(TALK_HELD)])] for i in range(n)],
                                False)}
    if data:
        held = corpora.rows(data, "heldout.jsonl")
        of = lambda name: [r["messages"] for r in held if r.get("file") == name]
        turns = [m[:k] for m in of("chat_selfdialogue.jsonl") for k in range(1, len(m), 2)]
        sums = [m[:-1] for m in of("chat_gsm8k.jsonl")]
        sets["held-out dialogues"] = rng.sample(turns, min(n, len(turns))), False
        sets["thinking, held-out sums"] = [sums[i % len(sums)] for i in range(n)], True
    return sets


def chat_turns(client, rng, n, data):
    """How many turns close; of the others, how many are cut off, and how many are empty (thinking
    that never came to an answer) or leak a mark of the format."""
    out = {}
    for name, (prompts, thinking) in chat_sets(rng, n, data).items():
        choices = client.answers([(p, None) for p in prompts], ANSWER_TOKENS,
                                 chat_template_kwargs={"thinking": thinking})
        cut = sum(c["finish_reason"] == "length" for c in choices)
        closed = sum(c["finish_reason"] == "stop" and text_of(c) != "" and
                     not any(mark in text_of(c) for mark in ("<｜", "think>")) for c in choices)
        out[name] = {"samples": len(choices), "closed": round(closed / len(choices), 4),
                     "cut_off": cut, "malformed": len(choices) - closed - cut}
    return out


def json_answers(client, rng, n):
    made = [tasks.json_task(rng)[:2] for _ in range(n)]
    formed = right = 0
    choices = client.answers([([tasks.user(question)], None) for question, _ in made], 160)
    for choice, (_, answer) in zip(choices, made):
        try:
            value = json.loads(text_of(choice))
        except ValueError:
            continue
        formed += 1
        right += value == json.loads(answer)
    return {"samples": n, "well_formed": round(formed / n, 4), "right": round(right / n, 4)}


def tool_calls(client, rng, n):
    prompts, want = [], []
    for _ in range(n):
        cases = tasks.tool_cases(rng)
        case = rng.choice(cases)
        others = rng.sample([c for c in cases if c is not case], rng.randrange(0, 3))
        tools = [{"type": "function", "function": tasks.as_tool(c)} for c in others + [case]]
        rng.shuffle(tools)
        prompts.append(([tasks.user(rng.choice(case[1]).format(**case[2]))], tools))
        want.append([(case[0][0], case[2])])
    formed = right = 0
    for choice, calls in zip(client.answers(prompts, 100), want):
        try:
            got = [(c["function"]["name"], json.loads(c["function"]["arguments"]))
                   for c in choice["message"].get("tool_calls") or []]
        except ValueError:
            continue
        formed += bool(got)
        right += got == calls
    return {"samples": n, "well_formed": round(formed / n, 4), "right": round(right / n, 4)}


def main():
    p = argparse.ArgumentParser()
    p.add_argument("base", help="http://host:port")
    p.add_argument("--model")
    p.add_argument("--samples", type=int, default=20)
    p.add_argument("--characters", default="1000,4000,16000")
    p.add_argument("--only", default="retrieval,chat,json,tools")
    p.add_argument("--sampling", default="greedy", help="greedy, default, or both")
    p.add_argument("--data", help="folder of the corpora")
    p.add_argument("--at-once", type=int, default=8)
    p.add_argument("--timeout", type=float, default=300)
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--out")
    args = p.parse_args()
    client = Client(args.base, args.model, args.timeout, args.at_once)
    sizes = [int(x) for x in args.characters.split(",")]
    tables = lambda rng, name: retrieval(client, rng, sizes, args.samples, name == "unseen")
    parts = {"retrieval": lambda rng: {name: tables(rng, name) for name in ("trained", "unseen")},
             "chat": lambda rng: chat_turns(client, rng, args.samples, args.data),
             "json": lambda rng: json_answers(client, rng, args.samples),
             "tools": lambda rng: tool_calls(client, rng, args.samples)}
    result = {"model": client.model}
    for sampling in args.sampling.split(","):
        client.greedy = {"greedy": True, "default": False}[sampling]
        result[sampling] = {name: parts[name](random.Random(args.seed))
                            for name in args.only.split(",")}
    text = json.dumps(result, indent=1)
    print(text)
    if args.out:
        with open(args.out, "w") as f:
            f.write(text + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
