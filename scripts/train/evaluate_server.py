"""Measures a running OpenAI-compatible server: retrieval by length, chat turns, JSON, tool calls.

    python3 evaluate_server.py http://127.0.0.1:8000 [--model NAME] [--samples N]
                               [--characters 1500,6000,24000] [--only retrieval,chat,json,tools]
                               [--out results.json]

Standard library only. Retrieval is measured twice: on fresh tables of the trained kinds, and on key
types, wordings, and values that training never saw ("unseen"); the other tasks are fresh draws of
the trained kinds. Decoding is greedy. --characters are sizes of the context; ember's tokenizer has
about 1.3 characters a token in tables.
"""
import argparse
import json
import random
import sys
import time
import urllib.request

import tasks


class Client:
    def __init__(self, base, model, timeout):
        self.base, self.timeout = base.rstrip("/"), timeout
        self.model = model or self.get("/v1/models")["data"][0]["id"]
        self.prompt_tokens = 0

    def get(self, path):
        with urllib.request.urlopen(self.base + path, timeout=self.timeout) as r:
            return json.load(r)

    def chat(self, messages, max_tokens, **more):
        body = {"model": self.model, "messages": messages, "max_tokens": max_tokens,
                "temperature": 0, **more}
        request = urllib.request.Request(
            self.base + "/v1/chat/completions", json.dumps(body).encode(),
            {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=self.timeout) as r:
            answer = json.load(r)
        self.prompt_tokens = answer["usage"]["prompt_tokens"]
        return answer["choices"][0]


def retrieval(client, rng, sizes, n, unseen):
    out = {}
    for size in sizes:
        right, tokens, seconds = 0, 0, 0.0
        for _ in range(n):
            row = tasks.table(rng, size, questions=1, spread=True, held=unseen)
            want = row["messages"][1]["content"]
            start = time.time()
            choice = client.chat(row["messages"][:1], 24)
            seconds += time.time() - start
            right += (choice["message"]["content"] or "").strip() == want
            tokens += client.prompt_tokens
        out[str(size)] = {"samples": n, "accuracy": round(right / n, 4),
                          "mean_prompt_tokens": round(tokens / n),
                          "mean_seconds": round(seconds / n, 3)}
    return out


def chat_turns(client, rng, n):
    closed = 0
    for _ in range(n):
        messages = tasks.small_talk(rng)[:-1]
        choice = client.chat(messages, 230)
        text = choice["message"]["content"] or ""
        closed += choice["finish_reason"] == "stop" and "<｜" not in text and "think>" not in text
    return {"samples": n, "closed": round(closed / n, 4)}


def json_answers(client, rng, n):
    formed = right = 0
    for _ in range(n):
        question, answer, _ = tasks.json_task(rng)
        text = client.chat([tasks.user(question)], 160)["message"]["content"] or ""
        try:
            value = json.loads(text)
        except ValueError:
            continue
        formed += 1
        right += value == json.loads(answer)
    return {"samples": n, "well_formed": round(formed / n, 4), "right": round(right / n, 4)}


def tool_calls(client, rng, n):
    formed = right = 0
    for _ in range(n):
        cases = tasks.tool_cases(rng)
        case = rng.choice(cases)
        others = rng.sample([c for c in cases if c is not case], rng.randrange(0, 3))
        tools = [{"type": "function", "function": tasks.as_tool(c)} for c in others + [case]]
        rng.shuffle(tools)
        ask = rng.choice(case[1]).format(**case[2])
        message = client.chat([tasks.user(ask)], 100, tools=tools)["message"]
        calls = message.get("tool_calls") or []
        try:
            got = [(c["function"]["name"], json.loads(c["function"]["arguments"])) for c in calls]
        except ValueError:
            continue
        formed += bool(got)
        right += got == [(case[0][0], case[2])]
    return {"samples": n, "well_formed": round(formed / n, 4), "right": round(right / n, 4)}


def main():
    p = argparse.ArgumentParser()
    p.add_argument("base", help="http://host:port")
    p.add_argument("--model")
    p.add_argument("--samples", type=int, default=20)
    p.add_argument("--characters", default="1000,4000,16000")
    p.add_argument("--only", default="retrieval,chat,json,tools")
    p.add_argument("--timeout", type=float, default=300)
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--out")
    args = p.parse_args()
    client, rng = Client(args.base, args.model, args.timeout), random.Random(args.seed)
    sizes = [int(x) for x in args.characters.split(",")]
    tables = lambda name: retrieval(client, rng, sizes, args.samples, name == "unseen")
    parts = {"retrieval": lambda: {name: tables(name) for name in ("trained", "unseen")},
             "chat": lambda: chat_turns(client, rng, args.samples),
             "json": lambda: json_answers(client, rng, args.samples),
             "tools": lambda: tool_calls(client, rng, args.samples)}
    result = {"model": client.model}
    result.update((name, parts[name]()) for name in args.only.split(","))
    text = json.dumps(result, indent=1)
    print(text)
    if args.out:
        with open(args.out, "w") as f:
            f.write(text + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
