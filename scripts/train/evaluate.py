"""What the model can do, measured on the GPU from the exported checkpoint.

    python3 evaluate.py MODEL_DIR WORK [--limit SECONDS] [--small]

WORK/data holds prepare.py's evaluation rows. Writes MODEL_DIR/eval/*.json, each as soon as it is
known. Greedy answers are read off one pass over the true text: an answer counts when every one of
its tokens, the end mark included, is the most likely one, which is when greedy decoding would write
exactly that answer.
"""
import argparse
import json
import math
import os
import random
import sys
import time
import traceback

import numpy as np
import torch

import attention as att
import batches
import chat
import corpora
import tasks
from ember import BOS, EMBER, EOS
from model import linear, rms
from words import TALK_HELD

cache = {}


def load_rows(folder, name):
    path = os.path.join(folder, name)
    if path not in cache:
        if not os.path.exists(path):
            return None
        a = np.load(path) if path.endswith(".npy") else json.load(open(path))
        cache[path] = a
    return cache[path]


def full_batches(rows, n):
    """Batches of exactly n rows, the last filled up with its first; and how many are real."""
    for i in range(0, len(rows), n):
        part = rows[i: i + n]
        real = len(part)
        if real < n:
            part = torch.cat([part, part[:1].expand(n - real, -1)])
        yield part, real


def as_tensor(model, rows):
    return torch.from_numpy(np.asarray(rows).astype(np.int64)).to(model.embed.device)


@torch.no_grad()
def look_up(model, folder, kind, length, tokens, topk=None, max_rows=None):
    """Share of answers right, over all questions and by tenth of the depth."""
    rows = load_rows(folder, f"eval_{kind}_{length}_0.npy")
    depths = load_rows(folder, f"eval_{kind}_{length}.json")
    if rows is None or depths is None:
        return None
    rows = as_tensor(model, rows[:max_rows])
    by_depth, first, n_rows = [[0, 0] for _ in range(10)], [0, 0], 0
    for part, real in full_batches(rows, max(1, tokens // length)):
        ids, on = part & batches.IDS, part[:, 1:] >= batches.TARGET
        x, _, _ = model.body(ids[:, :-1].contiguous(), topk=topk)
        at = on.reshape(-1).nonzero()[:, 0]
        best = linear(rms(x[at], model.norm), model.head).argmax(-1)
        right = torch.ones_like(on)
        right.view(-1)[at] = best == ids[:, 1:].reshape(-1)[at]
        on, right = on.cpu().numpy(), right.cpu().numpy()
        for r in range(real):
            edges = np.flatnonzero(np.diff(np.concatenate([[0], on[r].astype(np.int8), [0]])))
            for j, (a, b) in enumerate(zip(edges[::2], edges[1::2])):
                good = bool(right[r, a:b].all())
                d = min(9, int(depths[n_rows + r][j] * 10))
                by_depth[d][0] += good
                by_depth[d][1] += 1
                if j == 0:
                    first[0] += good
                    first[1] += 1
        n_rows += real
    good, n = (sum(x[i] for x in by_depth) for i in (0, 1))
    return {"accuracy": round(good / n, 4), "questions": n, "contexts": n_rows,
            "first_question": round(first[0] / first[1], 4),
            "by_depth": [round(a / b, 3) if b else None for a, b in by_depth]}


@torch.no_grad()
def held_out(model, folder, name, length, tokens, topk=None, max_batches=99):
    """Loss in nats a token, and bits a byte, over held-out text cut into rows."""
    flat, size = load_rows(folder, name + "_0.npy"), load_rows(folder, name + ".json")
    if flat is None or size is None:
        return None
    n_rows = max(1, (len(flat) - 1) // length)
    rows = np.zeros((n_rows, length + 1), np.uint16)
    for i in range(n_rows):
        piece = flat[i * length: i * length + length + 1]
        rows[i, : len(piece)] = piece
    rows[:, 0] = BOS  # as in training
    total = count = 0.0
    for k, (part, real) in enumerate(full_batches(as_tensor(model, rows), tokens // length)):
        if k == max_batches:
            break
        ids, w = batches.split(part, torch.ones(len(part), device=part.device))
        w[real:] = 0
        x, _, _ = model.body(ids[:, :-1].contiguous(), topk=topk)
        total += float(model.f["token_loss"](x, model.norm, model.head, ids[:, 1:].reshape(-1),
                                             w.reshape(-1)))
        count += float(w.sum())
    nats = total / count
    return {"nats_per_token": round(nats, 4), "tokens": int(count),
            "bits_per_byte": round(nats / math.log(2) * size["tokens"] / size["bytes"], 4)}


@torch.no_grad()
def recall(model, folder, length, tokens, topks):
    """Share of the dense attention (summed over heads, L1-normalised) on the selected keys, by
    layer, beside the most that any selection of that size could hold."""
    rows = load_rows(folder, f"eval_facts_held_{length}_0.npy")
    if rows is None:
        return None
    ids = as_tensor(model, rows[: max(1, tokens // length)]) & batches.IDS
    if len(ids) < tokens // length:
        ids = ids.repeat(tokens // length // len(ids) + 1, 1)[: tokens // length]
    torch.manual_seed(0)
    positions = torch.randperm(length - 2048, device=ids.device)[:256].sort()[0] + 2048
    out = {k: {"indexer": [], "oracle": []} for k in topks}

    def probe(q, k, v, index, layer):
        lse = att.dense_with_lse(q, k, v, model.scale)[1]
        found = {n: [0.0, 0.0] for n in topks}
        for b in range(q.shape[0]):  # a context at a time, to bound the memory
            one = slice(b, b + 1)
            p = att.attention_target(q[one][:, positions], k[one], lse[one][:, :, positions],
                                     model.scale, positions)
            s = att.index_scores(index[0][one][:, positions], index[1][one],
                                 index[2][one][:, positions], positions)
            for n in topks:
                got = p.gather(-1, s.topk(n, -1)[1]).sum(-1).mean()
                found[n][0] += float(got) / q.shape[0]
                found[n][1] += float(p.topk(n, -1)[0].sum(-1).mean()) / q.shape[0]
        for n in topks:
            out[n]["indexer"].append(round(found[n][0], 4))
            out[n]["oracle"].append(round(found[n][1], 4))

    model.body(ids[:, :-1].contiguous(), probe=probe)
    for n in topks:
        share = [a / b for a, b in zip(out[n]["indexer"], out[n]["oracle"])]
        out[n]["share_of_oracle"] = [round(x, 4) for x in share]
    return out


@torch.no_grad()
def draft_agreement(model, folder, name, length, tokens):
    """How often the MTP layer's most likely token is the one the model itself then prefers."""
    flat = load_rows(folder, name + "_0.npy")
    n = tokens // length
    if flat is None or len(flat) < 2 * length:
        return None
    rows = [flat[i * length: i * length + length + 1]
            for i in range(min(n, (len(flat) - 1) // length))]
    ids, real = next(full_batches(as_tensor(model, rows), n))
    ids = ids & batches.IDS
    ids[:, 0] = BOS
    x, _, _ = model.body(ids[:, :-1].contiguous(), topk=EMBER.index_topk)
    u, _, _ = model.draft(x, ids, topk=EMBER.index_topk)
    x, u = x[: real * length], u[: real * length]
    agree = []
    for i in range(0, len(x), 8192):
        main = linear(rms(x[i: i + 8192], model.norm), model.head).argmax(-1)
        draft = linear(rms(u[i: i + 8192], model.mtp.norm), model.head).argmax(-1)
        agree.append(draft[:-1] == main[1:])
    return round(float(torch.cat(agree).float().mean()), 4)


# ---- writing text ------------------------------------------------------------------------------

@torch.no_grad()
def generate(model, prompts, max_new, tokens, length=512, temperature=0.0, top_p=0.95, seed=0):
    """Continues each prompt (ids) until EOS or max_new tokens; the whole row is computed again for
    each token, which is slow in general and quick enough for a few hundred short prompts."""
    device, out = model.embed.device, []
    n = tokens // length
    g = torch.Generator(device).manual_seed(seed)
    for i in range(0, len(prompts), n):
        part = [p[-(length - max_new):] for p in prompts[i: i + n]]
        ids = torch.zeros(n, length, dtype=torch.long, device=device)
        for j, p in enumerate(part):
            ids[j, : len(p)] = torch.tensor(p, device=device)
        start = torch.tensor([len(p) for p in part] + [1] * (n - len(part)), device=device)
        at, rows = start.clone(), torch.arange(n, device=device)
        ended = torch.zeros(n, dtype=torch.bool, device=device)
        ended[len(part):] = True
        for _ in range(max_new):
            x, _, _ = model.body(ids, topk=EMBER.index_topk)
            x = x.view(n, length, -1)[rows, at - 1]
            z = linear(rms(x, model.norm), model.head).float()
            if temperature > 0:
                p, order = torch.softmax(z / temperature, -1).sort(-1, descending=True)
                p = torch.where(p.cumsum(-1) - p < top_p, p, torch.zeros_like(p))
                token = order.gather(1, torch.multinomial(p, 1, generator=g))[:, 0]
            else:
                token = z.argmax(-1)
            token = torch.where(ended, torch.zeros_like(token), token)
            ids[rows, at.clamp(max=length - 1)] = torch.where(ended, ids[rows, at.clamp(
                max=length - 1)], token)
            at = torch.where(ended, at, at + 1)
            ended |= token == EOS
            if bool(ended.all()):
                break
        for j in range(len(part)):
            out.append(ids[j, start[j]: at[j]].tolist())
    return out


def prompt_ids(tokenizer, row, thinking=None):
    text = "".join(t for t, _ in chat.render(row, thinking, prompt_only=True))
    return tokenizer.encode(text, add_special_tokens=False).ids


def to_text(tokenizer, ids):
    return tokenizer.decode(ids, skip_special_tokens=False)


MARKS = [m for m in chat.FIRST_TOKENS + chat.LAST_TOKENS]


def well_closed(text, thinking):
    """One EOS, at the end; one </think> before it when the prompt opened <think>; no other mark."""
    if not text.endswith(chat.EOS):
        return False
    body = text[: -len(chat.EOS)]
    if thinking:
        if body.count(chat.THINK_END) != 1:
            return False
        body = body.replace(chat.THINK_END, "")
    return not any(m in body for m in MARKS)


def loops(text):
    """True when some run of four words stands there four times."""
    w = text.split()
    runs = [" ".join(w[i: i + 4]) for i in range(len(w) - 3)]
    return any(runs.count(r) >= 4 for r in set(runs))


def unseen_tools(rng):
    """Calls of kinds that training has none of."""
    door, n = rng.choice(tasks.PLACES), rng.randrange(2, 9)
    color, thing = rng.choice(tasks.COLORS), rng.choice(tasks.THINGS)
    return [
        (("open_door", "Open the door of a room.", tasks.schema(room="string")),
         ["Open the door of the {room}."], dict(room=door)),
        (("book_table", "Book a table for some people.", tasks.schema(people="number")),
         ["Book a table for {people} people."], dict(people=n)),
        (("paint", "Paint a thing.", tasks.schema(thing="string", color="string")),
         ["Paint the {thing} {color}."], dict(thing=thing, color=color)),
    ]


def read_calls(text):
    """[(name, arguments)] of a well-formed block of calls at the end of the answer, or None."""
    if not text.endswith(chat.CALLS_END + chat.EOS) or chat.CALLS not in text:
        return None
    block = text.split(chat.CALLS, 1)[1][: -len(chat.CALLS_END + chat.EOS)]
    calls = []
    for part in block.split(chat.CALL)[1:]:
        if not part.endswith(chat.CALL_END) or chat.CALL_SEP not in part:
            return None
        name, arguments = part[: -len(chat.CALL_END)].split(chat.CALL_SEP, 1)
        try:
            calls.append((name, json.loads(arguments)))
        except ValueError:
            return None
    return calls or None


def parse(text):
    try:
        return json.loads(text)
    except ValueError:
        return None


def format_scores(model, tokenizer, data, tokens, n):
    """Chat turns, JSON and tool calls; and samples of text."""
    rng = random.Random(77)
    sets = {"unseen wordings": [({"messages": [tasks.user(t), tasks.assistant("")]}, False)
                                for t in TALK_HELD]}
    held = corpora.rows(data, "heldout.jsonl")
    dialogues = [r["messages"] for r in held if r.get("file") == "chat_selfdialogue.jsonl"]
    sets["held-out dialogues"] = [({"messages": m[:k]}, False) for i, m in enumerate(dialogues)
                                  for k in [2 * (1 + i % 3)] if len(m) >= k][:50]
    sets["small talk"] = [({"messages": tasks.small_talk(rng)}, False) for _ in range(60)]
    sums = [r["messages"] for r in held if r.get("file") == "chat_gsm8k.jsonl"]
    sets["thinking, held-out sums"] = [({"messages": m}, True) for m in sums[:50]]
    out = {"chat": {}, "samples": []}
    sets = {name: rows[:n] for name, rows in sets.items()}
    every = [row for rows in sets.values() for row in rows]
    ids = [prompt_ids(tokenizer, r, thinking) for r, thinking in every]
    every = [to_text(tokenizer, x) for x in generate(model, ids, 200, tokens, 512, 0.6, 0.95)]
    closed_all = []
    for name, rows in sets.items():
        texts, every = every[: len(rows)], every[len(rows):]
        closed = [well_closed(t, th) for t, (_, th) in zip(texts, rows)]
        closed_all += closed
        out["chat"][name] = {
            "prompts": len(rows), "closed": round(sum(closed) / len(closed), 4),
            "loops": round(sum(map(loops, texts)) / len(texts), 4)}
        for (r, _), t in list(zip(rows, texts))[:12]:
            last = [m for m in r["messages"] if m["role"] == "user"][-1]["content"]
            out["samples"].append({"set": name, "user": last[-300:], "answer": t})
    out["chat"]["all"] = {"prompts": len(closed_all),
                          "closed": round(sum(closed_all) / len(closed_all), 4)}
    rng = random.Random(78)
    made = [tasks.json_task(rng) for _ in range(n)]
    ids = [prompt_ids(tokenizer, {"messages": [tasks.user(q), tasks.assistant(a)]})
           for q, a, _ in made]
    texts = [to_text(tokenizer, x) for x in generate(model, ids, 140, tokens)]
    got = [parse(t[: -len(chat.EOS)]) if t.endswith(chat.EOS) else None for t in texts]
    out["json"] = {"prompts": n, "well_formed": round(sum(x is not None for x in got) / n, 4),
                   "right": round(sum(x == json.loads(a)
                                      for x, (_, a, _) in zip(got, made)) / n, 4)}
    for name, cases in (("tools", tasks.tool_cases), ("unseen_tools", unseen_tools)):
        rows, want = [], []
        while len(rows) < n:
            options = cases(rng)
            case = rng.choice(options)
            others = rng.sample([c for c in tasks.tool_cases(rng) if c[0][0] != case[0][0]],
                                rng.randrange(0, 3))
            offered = [tasks.as_tool(c) for c in others + [case]]
            rng.shuffle(offered)
            ask = rng.choice(case[1]).format(**case[2])
            rows.append({"messages": [tasks.user(ask), tasks.assistant("")], "tools": offered})
            want.append((case[0][0], case[2], {t["name"] for t in offered}))
        ids = [prompt_ids(tokenizer, r) for r in rows]
        texts = [to_text(tokenizer, x) for x in generate(model, ids, 80, tokens, 1024)]
        calls = [read_calls(t) for t in texts]
        out[name] = {
            "prompts": n,
            "well_formed": round(sum(bool(c) and all(x[0] in w[2] for x in c)
                                     for c, w in zip(calls, want)) / n, 4),
            "right": round(sum(c == [(w[0], w[1])] for c, w in zip(calls, want)) / n, 4)}
        out["samples"] += [{"set": name, "user": r["messages"][0]["content"], "answer": t}
                           for r, t in list(zip(rows, texts))[:6]]
    stories = ["Once upon a time there was a little rabbit who", "The old house by the sea",
               "It was a cold night, and the children", "The heart is a muscle that"]
    ids = [[0] + tokenizer.encode(s, add_special_tokens=False).ids for s in stories]
    for s, x in zip(stories, generate(model, ids, 150, tokens, 512, 0.7, 0.9)):
        out["samples"].append({"set": "prose", "user": s, "answer": to_text(tokenizer, x)})
    return out


# ---- all of it ---------------------------------------------------------------------------------

LENGTHS = [512, 2048, 4096, 8192, 16384, 32768]
KINDS = ["table", "table_held", "facts", "facts_held"]
TOPKS = [32, 64, 128, 256, 512, 1024, None]


def main():
    p = argparse.ArgumentParser()
    p.add_argument("model")
    p.add_argument("work")
    p.add_argument("data")
    p.add_argument("--limit", type=float, default=1e9)
    p.add_argument("--tokens", type=int, default=65536)
    p.add_argument("--small", action="store_true", help="a trial: little of everything")
    args = p.parse_args()
    import export
    import model as network
    from tokenizers import Tokenizer
    start = time.time()
    net = export.load(args.model)
    torch.set_float32_matmul_precision("high")
    if net.embed.is_cuda:
        net.f = network.compiled()
    net.eval()
    tokenizer = Tokenizer.from_file(os.path.join(args.model, "tokenizer.json"))
    folder, out = os.path.join(args.work, "data"), os.path.join(args.model, "eval")
    os.makedirs(out, exist_ok=True)
    k = EMBER.index_topk

    def left():
        return args.limit - (time.time() - start)

    def write(name, value):
        with open(os.path.join(out, name + ".json"), "w") as f:
            json.dump(value, f, indent=1, ensure_ascii=False)
            f.write("\n")
        print(json.dumps({"t": round(time.time() - start, 1), "wrote": name}), flush=True)

    table, text, found = {}, {}, {}
    rows = 4 if args.small else None

    def language():
        for name, length in (("held_books", 8192), ("held_textbook", 2048),
                             ("held_dialogue", 2048)):
            text[name] = {"length": length,
                          "dense": held_out(net, folder, name, length, args.tokens),
                          f"top-{k}": held_out(net, folder, name, length, args.tokens, k)}
        write("held_out", text)

    def retrieval():
        for length in LENGTHS:
            for kind in KINDS:
                for topk in (None, k):
                    r = look_up(net, folder, kind, length, args.tokens, topk, rows)
                    if r:
                        table.setdefault(kind, {}).setdefault(str(length), {})[
                            f"top-{topk}" if topk else "dense"] = r
            write("retrieval", table)

    def attention_recall():
        for length in (8192, 16384):
            r = recall(net, folder, length, args.tokens, [64, k, 512])
            if r:
                found[str(length)] = r
        write("recall", found)

    def drafts():
        write("mtp", {n: draft_agreement(net, folder, n, 2048, args.tokens)
                      for n in ("held_books", "held_dialogue", "held_textbook")})

    def formats():
        if left() > 90:
            write("formats", format_scores(net, tokenizer, args.data, args.tokens,
                                           8 if args.small else 200))

    def other_topks():
        for topk in TOPKS:
            name = f"top-{topk}" if topk else "dense"
            if left() > 15 and name not in text["held_books"]:
                text["held_books"][name] = held_out(net, folder, "held_books", 8192, args.tokens,
                                                    topk)
            for length in (2048, 8192, 16384, 32768):
                for kind in ("table_held", "facts_held"):
                    at = table.get(kind, {}).get(str(length))
                    if at is not None and name not in at and left() > 15:
                        at[name] = look_up(net, folder, kind, length, args.tokens, topk,
                                           4 if args.small else 16 if length > 16384 else 32)
        write("retrieval", table)
        write("held_out", text)

    for part in (language, retrieval, attention_recall, drafts, other_topks, formats):
        try:
            part()
        except Exception:  # one part's failure must not cost the others
            traceback.print_exc()


if __name__ == "__main__":
    sys.exit(main())
