"""The corpora as texts and conversations. What each is, and its licence: the model card.

Files lie in one folder as NAME.xz. A .txt holds documents that begin with "<|doc|>Title"; a .jsonl
holds one row a line. heldout.jsonl is for evaluation only.
"""
import json
import lzma
import os
import re
from collections import Counter

from words import PLANETS_HELD, TREES_HELD, WORDS_HELD

BOOKS = ["books_children.txt", "books_fiction.txt", "openstax.txt"]
CHATS = ["chat_selfdialogue.jsonl", "chat_sgd.jsonl", "chat_taskmaster4.jsonl", "chat_gsm8k.jsonl",
         "chat_small.jsonl", "qa_fairytale.jsonl", "stories_ccby.jsonl"]


def read(data, name):
    with lzma.open(os.path.join(data, name + ".xz"), "rt", encoding="utf-8") as f:
        return f.read()


def rows(data, name):
    return [json.loads(line) for line in read(data, name).split("\n") if line]


def unwrap(paragraph):
    """Line breaks inside a paragraph are the printed book's, unless the lines are short (verse)."""
    lines = paragraph.split("\n")
    if len(lines) > 1 and sum(map(len, lines)) / len(lines) > 45:
        return re.sub(r"\s*\n\s*", " ", paragraph)
    return paragraph


def documents(data, name, part=0, parts=1):
    """A .txt file's documents, without titles."""
    out = []
    for doc in read(data, name).split("<|doc|>")[1:][part::parts]:
        body = doc.split("\n", 1)[1].strip()
        out.append("\n\n".join(unwrap(p) for p in body.split("\n\n")))
    return out


def tool_definitions(data):
    return json.loads(read(data, "chat_sgd_tooldefs.json"))


def conversations(data, name, part=0, parts=1):
    """A chat file's rows as conversations; questions and stories are put into that form too."""
    out = []
    definitions = tool_definitions(data) if name.startswith("chat_sgd") else {}
    for r in rows(data, name)[part::parts]:
        if name.startswith("qa_fairytale"):
            for question, answer, where in r["qa"][:16]:
                i = where[0] - 1 if where and 0 < where[0] <= len(r["sections"]) else 0
                text = unwrap(r["sections"][i])
                out.append([{"role": "user", "content": f"{text}\n\n{question}"},
                            {"role": "assistant", "content": str(answer)}])
        elif name.startswith("stories"):
            text = " ".join(r["text"].split("\n\n"))
            if len(text) < 1500:
                ask = f'Tell me the story called "{r["title"]}".'
                out.append([{"role": "user", "content": ask},
                            {"role": "assistant", "content": text}])
        else:
            out.append(r["messages"])
            tools = [t for s in r.get("services", []) for t in definitions.get(s, [])]
            if tools:
                out[-1] = {"messages": r["messages"], "tools": tools}
    return [c if isinstance(c, dict) else {"messages": c} for c in out]


def paragraphs(data, name):
    """Pieces of text for the tokenizer's sample."""
    if name.endswith(".txt"):
        return [unwrap(p) for p in read(data, name).split("\n\n")]
    if name.startswith("stories"):
        return [r["text"] for r in rows(data, name)]
    out = []
    for c in conversations(data, name):
        parts = []
        for m in c["messages"]:
            parts.append(m.get("reasoning", "") + (m["content"] or ""))
            parts += [json.dumps(t["arguments"]) for t in m.get("tool_calls", [])]
        out.append("\n".join(parts))
    return out


def prose_paragraphs(data, held=False):
    """Paragraphs to hide facts in: children's books and textbooks, or books never trained on."""
    if held:
        texts = [r["text"] for r in rows(data, "heldout.jsonl") if "text" in r and "file" not in r]
        pieces = [p for t in texts for p in t.split("\n\n")]
    else:
        pieces = [p for n in ("books_children.txt", "openstax.txt") for d in documents(data, n)
                  for p in d.split("\n\n")]
    return [p for p in (unwrap(p).replace("\n", " ") for p in pieces) if 40 < len(p) < 900]


class Filler:
    """filler(rng, size): a run of neighbouring paragraphs, now and then short lines repeated;
    filler.words: the vocabulary, less the words kept for evaluation."""

    def __init__(self, pieces):
        held = {w.lower() for w in PLANETS_HELD + TREES_HELD + WORDS_HELD}
        plain = re.compile(r"(?<![\w'-])[a-z]{3,10}(?![\w'-])")
        seen = Counter(w for p in pieces for w in plain.findall(p))
        self.pieces = pieces
        self.words = sorted(w for w, n in seen.items() if n >= 8 and w not in held)

    def __call__(self, rng, size):
        pieces = self.pieces
        out, n, i = [], 0, rng.randrange(len(pieces))
        noise = [pieces[rng.randrange(len(pieces))] for _ in range(8)]
        noise = noise if rng.random() < 0.1 else None
        while n < size:
            p = rng.choice(noise) if noise else pieces[i % len(pieces)]
            out.append(p)
            n += len(p) + 2
            i += 1
        return out
