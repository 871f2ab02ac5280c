"""Corpora and tasks as token arrays on disk, written in the order in which training needs them.

    python3 prepare.py DATA OUT [--scale S] [--processes P]

Tokens are uint16; bit 15 marks a supervised target. OUT gets tokenizer.json, then shards NAME_I.npy
(written whole, then renamed, so a reader never sees half of one):
  prose_I, chat_I         one long line of documents
  task_T_I, tune_T_I      packed rows of T+1 tokens: long tasks and short skills; conversations
  eval_KIND_T_0           one context a row, its questions spread over the depth
  held_NAME_0             held-out text
and `done` at the end. --scale shrinks everything, for trials.
"""
import argparse
import json
import math
import os
import random
import sys
import time
from multiprocessing import Pool

import numpy as np

import chat
import corpora
import tasks
from ember import BOS, EOS, PAD

os.environ["TOKENIZERS_PARALLELISM"] = "false"
TARGET = 1 << 15
state = {}  # of one worker process: the tokenizer and the fillers, made at first use
EVAL_ROWS = {512: 64, 2048: 48, 4096: 32, 8192: 32, 16384: 32, 32768: 32}
EVAL_QUESTIONS = 8


def start_worker(data, out):
    state.update(data=data, out=out)


def tokenizer():
    if "tokenizer" not in state:
        from tokenizers import Tokenizer
        state["tokenizer"] = Tokenizer.from_file(os.path.join(state["out"], "tokenizer.json"))
    return state["tokenizer"]


def filler(held=False):
    key = "held_filler" if held else "filler"
    if key not in state:
        cut = corpora.prose_paragraphs(state["data"], held)
        state[key] = corpora.Filler(cut)
    return state[key]


def encode(text):
    return tokenizer().encode(text, add_special_tokens=False).ids


def encode_chat(row, everything=False):
    out = []
    for text, target in chat.render(row):
        mark = TARGET if target or everything else 0
        out += [i | mark for i in encode(text)]
    return out


def save(name, array):
    path = os.path.join(state["out"], name)
    np.save(path + ".part.npy", array)
    os.rename(path + ".part.npy", path + ".npy")


def fit(rng, room, make, at_least=0.75):
    """A conversation of at most `room` tokens and, if a few tries bring it there, not less than
    at_least of that; made by make(characters)."""
    size, best = room * 2.4, None
    for _ in range(5):
        ids = encode_chat(make(int(size)))
        if len(ids) <= room:
            best = ids
            if len(ids) >= at_least * room:
                break
        size *= (0.96 if len(ids) > room else 0.93) * room / len(ids)
    return best


def pack(length, rng, next_row):
    """Fills one row of length+1 tokens with what next_row(room) gives."""
    row = []
    while len(row) < length + 1:
        ids = next_row(length + 1 - len(row))
        row += ids or encode_chat(tasks.short_task(rng))
    return row[: length + 1]


def task_rows(job):
    name, length, n, seed = job
    rng = random.Random(seed)

    def next_row(room):
        if room < 160 or rng.random() < 0.15:
            return None
        want = room
        if rng.random() < 0.5:
            want = int(math.exp(rng.uniform(math.log(150), math.log(room))))
        questions = rng.randrange(2, 6 + want // 90)
        ids = fit(rng, want, lambda size: tasks.long_task(rng, size, filler(), questions))
        return ids if ids and len(ids) <= room else None

    save(f"{name}_{length}_{seed}",
         np.array([pack(length, rng, next_row) for _ in range(n)], np.uint16))


def tune_rows(job):
    """Rows for chat tuning: only what the assistant says is supervised."""
    name, length, n, seed = job
    rng = random.Random(seed)
    if "chats" not in state:
        share = {"chat_selfdialogue.jsonl": 3, "chat_sgd.jsonl": 2, "chat_gsm8k.jsonl": 0.6,
                 "chat_taskmaster4.jsonl": 0.2, "chat_small.jsonl": 0.5, "qa_fairytale.jsonl": 1,
                 "stories_ccby.jsonl": 0.8}
        state["chats"] = [(corpora.conversations(state["data"], f, seed % 4, 4), w)
                          for f, w in share.items()]
    pools, weights = zip(*state["chats"])

    def next_row(room):
        p = rng.random()
        if p < 0.35:
            ids = encode_chat(rng.choice(rng.choices(pools, weights)[0]))
        elif p < 0.65 or room < 300:
            ids = encode_chat(tasks.short_task(rng))
        else:
            want = int(math.exp(rng.uniform(math.log(200), math.log(room))))
            questions = rng.randrange(1, 4 + want // 120)
            ids = fit(rng, want, lambda size: tasks.long_task(rng, size, filler(), questions))
        return ids if ids and len(ids) <= max(room, 700) else None

    save(f"{name}_{length}_{seed}",
         np.array([pack(length, rng, next_row) for _ in range(n)], np.uint16))


def eval_rows(job):
    """One context a row, as long as fits; questions about facts spread evenly over its depth.
    KIND: table or facts, with _held for unseen key types, wordings and facts. The prose around
    facts is from books never trained on, in both."""
    name, length, n, seed = job
    rng = random.Random(seed)
    kind = name.split("_")[1]
    held = name.endswith("_held")
    out = np.full((n, length + 1), PAD, np.uint16)
    depths, made = [], {}  # made: the last row, whose depths go with the ids if it fitted

    def make(size):
        if kind == "table":
            made["row"] = tasks.table(rng, size, None, EVAL_QUESTIONS, True, held)
        else:
            made["row"] = tasks.facts(rng, size, filler(True), EVAL_QUESTIONS, True, held)
        return made["row"]

    for i in range(n):
        ids = None
        while ids is None or len(ids) < 0.85 * length:
            ids = fit(rng, length + 1, make, 0.85)
        out[i, : len(ids)] = ids
        depths.append(made["row"]["depths"])
    save(f"{name}_{length}_{seed}", out)
    with open(os.path.join(state["out"], f"{name}_{length}.json"), "w") as f:
        json.dump(depths, f)


def corpus(job):
    name, file, part, parts, seed = job
    if file.endswith(".txt"):
        pieces = [[BOS] + encode(d) + [EOS] for d in
                  corpora.documents(state["data"], file, part, parts)]
        ids = [i | TARGET for p in pieces for i in p]
    else:
        found = corpora.conversations(state["data"], file, part, parts)
        random.Random(seed).shuffle(found)
        ids = [i for c in found for i in encode_chat(c, everything=True)]
    save(f"{name}_{seed}", np.array(ids, np.uint16))


def held_text(job):
    """Held-out books, textbook pages and dialogues; prints the bytes a token stands for."""
    name, _, _, _ = job
    pieces, n_bytes = [], 0
    for r in corpora.rows(state["data"], "heldout.jsonl"):
        if name == "held_dialogue":
            if r.get("file") == "chat_selfdialogue.jsonl":
                pieces.append([t for t in encode_chat(r, everything=True)])
                n_bytes += sum(len(m["content"].encode()) for m in r["messages"])
        elif "text" in r and "file" not in r and (
                (r["src"] == "openstax") == (name == "held_textbook")):
            text = "\n\n".join(corpora.unwrap(p) for p in r["text"].split("\n\n"))
            pieces.append([i | TARGET for i in encode(text)])
            n_bytes += len(text.encode())
    ids = [i for p in pieces for i in p]
    save(f"{name}_0", np.array(ids, np.uint16))
    with open(os.path.join(state["out"], name + ".json"), "w") as f:
        json.dump({"tokens": len(ids), "bytes": n_bytes}, f)


JOBS = {"task": task_rows, "tune": tune_rows, "eval": eval_rows, "held": held_text,
        "prose": corpus, "chat": corpus}


def run(job):
    start = time.time()
    JOBS[job[0].split("_")[0]](job)
    return job[0], job[1], time.time() - start


def plan(scale):
    """Jobs in the order of need. Evaluation rows have seeds below 1000, training rows others."""
    seed = [1000]

    def many(name, length, tokens, per=160_000):
        n = max(1, per // length)
        count = max(1, int(tokens * scale / (n * length)))
        seed[0] += count
        return [(name, length, n, seed[0] - i) for i in range(count)]

    def files(name, parts):
        jobs = []
        for f, n in parts:
            for p in range(n if scale == 1 else 1):
                seed[0] += 1
                jobs.append((name, f, p, n if scale == 1 else 40, seed[0]))
        return jobs

    def evals(length):
        n = max(4, int(EVAL_ROWS[length] * min(1, scale * 4)))
        return [("eval_" + k, length, n, 0) for k in ("table", "table_held", "facts", "facts_held")]

    held = [(n, 0, 0, 0) for n in ("held_books", "held_textbook", "held_dialogue")]
    prose = files("prose", [("books_children.txt", 28), ("books_fiction.txt", 14),
                            ("openstax.txt", 5)])
    talk = files("chat", [("chat_selfdialogue.jsonl", 6), ("chat_sgd.jsonl", 8),
                          ("chat_taskmaster4.jsonl", 1), ("chat_gsm8k.jsonl", 2),
                          ("chat_small.jsonl", 1), ("qa_fairytale.jsonl", 4),
                          ("stories_ccby.jsonl", 1)])
    random.Random(0).shuffle(prose)
    random.Random(0).shuffle(talk)
    first = many("task", 512, 30e6)
    jobs = [j for three in zip(prose, first, talk) for j in three]
    jobs += first[len(jobs) // 3:] + prose[len(jobs) // 3:] + talk[len(jobs) // 3:]
    jobs = held + evals(512)[:2] + jobs + evals(2048)
    jobs += many("task", 1024, 30e6) + many("task", 2048, 50e6)
    jobs += evals(512)[2:] + evals(8192) + many("task", 8192, 40e6, 400_000)
    jobs += many("task", 16384, 30e6, 400_000) + evals(16384)
    jobs += many("task", 32768, 30e6, 400_000) + evals(32768) + evals(4096)
    jobs += many("tune", 2048, 24e6) + many("tune", 8192, 16e6, 400_000)
    jobs += many("tune", 16384, 8e6, 400_000)
    jobs += many("task", 16384, 20e6, 400_000) + many("task", 32768, 20e6, 400_000)
    jobs += many("tune", 2048, 16e6)
    return jobs


def main():
    p = argparse.ArgumentParser()
    p.add_argument("data")
    p.add_argument("out")
    p.add_argument("--scale", type=float, default=1)
    p.add_argument("--processes", type=int, default=14)
    args = p.parse_args()
    start = time.time()
    os.makedirs(args.out, exist_ok=True)

    def say(**kw):
        print(json.dumps({"t": round(time.time() - start, 1), **kw}), flush=True)

    if not os.path.exists(os.path.join(args.out, "tokenizer.json")):
        import tokenizer as trainer
        part = os.path.join(args.out, "tokenizer.part.json")
        say(**trainer.train(args.data, part, 12 if args.scale == 1 else 3))
        os.rename(part, os.path.join(args.out, "tokenizer.json"))
    jobs, seen = plan(args.scale), {}
    with Pool(args.processes, start_worker, (args.data, args.out)) as pool:
        for name, length, seconds in pool.imap_unordered(run, jobs):
            key = f"{name} {length}" if name[:4] in ("task", "tune", "eval") else name
            n, total = seen.get(key, (0, 0.0))
            seen[key] = (n + 1, total + seconds)
            if (n + 1) % 40 == 0:
                say(what="shards", of=key, n=n + 1)
    for key, (n, total) in seen.items():
        say(what="made", of=key, shards=n, cpu_seconds=round(total, 1))
    open(os.path.join(args.out, "done"), "w").close()


if __name__ == "__main__":
    sys.exit(main())
