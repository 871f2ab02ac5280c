"""What is asked: lengths, texts, token ids, conversations - all of it a function of the seed."""

from __future__ import annotations

import json
import math
import random

# Common English words; with --text FILE a real text takes their place.
WORDS = """
the of and to in a is that for it as was with be by on not he his but at are this have from or had
an they which one you were all her she there would their we him been has when who will no more if
out so up said what its about than into them can only other time new some could these two may
first then do any like my now over such our man me even most made after also did many off before
must well back through years where much your way down should because long each just state those
people too little good world make very year still see work men day get here between both life
being under three never know same last another while us great old come since go against came right
take used himself few house use during without again place around however home small found thought
went say part once general high upon school every water light river letter morning table answer
question window garden story number paper winter music road city field hand voice colour bread
stone summer engine ship bridge island doctor market machine window forest silver history reason
measure pattern signal
""".split()

ASKS = ("Tell me more.", "Why is that?", "Give an example.", "Say it in other words.",
        "What follows from this?", "And what came before?", "Please go on.", "Is that always so?")


class Lengths:
    """A distribution of lengths, from its spelling on the command line.

    128  fixed:128  uniform:64-256  lognormal:MEDIAN,SIGMA[,MAX]  file:PATH (one number a line)
    """

    def __init__(self, spec):
        self.spec = str(spec)
        kind, colon, rest = self.spec.partition(":")
        if not colon:
            kind, rest = ("uniform", kind) if "-" in kind else ("fixed", kind)
        self.kind = kind
        try:
            if kind == "fixed":
                self.low = self.high = int(rest)
            elif kind == "uniform":
                self.low, self.high = (int(x) for x in rest.split("-"))
            elif kind == "lognormal":
                parts = [float(x) for x in rest.split(",")]
                self.median, self.sigma = parts[0], parts[1]
                self.low, self.high = 1, int(parts[2]) if len(parts) > 2 else 1 << 30
                if self.median <= 0 or self.sigma < 0:
                    raise ValueError
            elif kind == "file":
                with open(rest, encoding="utf-8") as f:
                    self.values = [int(line.split()[0]) for line in f if line.strip()]
                self.low, self.high = min(self.values), max(self.values)
            else:
                raise ValueError
        except OSError as bad:
            raise ValueError("cannot read %s: %s" % (rest, bad.strerror)) from None
        except (ValueError, IndexError):
            raise ValueError("not a length or distribution of lengths: %s" % spec) from None
        if self.low < 0 or self.high < self.low:
            raise ValueError("not a range of lengths: %s" % spec)

    def draw(self, rng):
        if self.kind == "lognormal":
            value = round(self.median * math.exp(rng.gauss(0.0, self.sigma)))
            return max(self.low, min(self.high, value))
        if self.kind == "file":
            return rng.choice(self.values)
        return rng.randint(self.low, self.high)


def make_words(seed, n):
    """n words as sentences of 6 to 14 words: enough like English for a tokenizer."""
    rng = random.Random("words %s" % seed)
    words = []
    while len(words) < n:
        sentence = rng.choices(WORDS, k=rng.randint(6, 14))
        sentence[0] = sentence[0].capitalize()
        sentence[-1] += "."
        words += sentence
    return words[:n]


class Source:
    """Prompts of a wanted number of tokens, as text (about) or as token ids (exactly)."""

    def __init__(self, seed, text_path=None, token_ids=None, tokens_per_word=1.3):
        self.tokens_per_word = tokens_per_word
        self.token_ids = token_ids  # (low, high): ids are drawn from [low, high)
        if token_ids:
            rng = random.Random("ids %s" % seed)
            self.stock = [rng.randrange(*token_ids) for _ in range(1 << 16)]
        elif text_path:
            with open(text_path, encoding="utf-8", errors="replace") as f:
                self.stock = f.read().split()
            if not self.stock:
                raise ValueError("no words in %s" % text_path)
        else:
            self.stock = make_words(seed, 1 << 16)

    def take(self, rng, n_tokens):
        """A piece of the stock from a random place. Its first few items are drawn afresh, so that
        no two prompts share a beginning by accident and hit the server's prefix cache."""
        if n_tokens <= 0:
            return [] if self.token_ids else ""
        n = n_tokens if self.token_ids else max(1, round(n_tokens / self.tokens_per_word))
        head = min(n, 4)
        if self.token_ids:
            out = [rng.randrange(*self.token_ids) for _ in range(head)]
        else:
            out = rng.choices(WORDS, k=head)
        at = rng.randrange(len(self.stock))
        while len(out) < n:
            piece = self.stock[at:at + n - len(out)]
            out += piece
            at = 0
        return out if self.token_ids else " ".join(out)


def read_dataset(path):
    """JSON lines or a JSON array of objects: `messages` or `prompt` (text or token ids), and
    perhaps `max_tokens`."""
    with open(path, encoding="utf-8") as f:
        text = f.read()
    try:
        rows = json.loads(text)
        if not isinstance(rows, list):
            rows = [rows]
    except ValueError:
        rows = [json.loads(line) for line in text.splitlines() if line.strip()]
    rows = [r if isinstance(r, dict) else {"prompt": r} for r in rows]
    if not rows or any("messages" not in r and "prompt" not in r for r in rows):
        raise ValueError("%s: every row needs `messages` or `prompt`" % path)
    return rows


class Conversation:
    """One client's exchange of one or more turns. Call body() for the next request's body, then
    reply() with what the server said."""

    def __init__(self, plan, rng):
        self.plan = plan
        self.rng = rng
        self.turns = max(1, plan.turns.draw(rng))
        self.row = plan.dataset[rng.randrange(len(plan.dataset))] if plan.dataset else None
        self.messages = []
        self.prompt = [] if plan.source.token_ids else ""
        if self.row is None and plan.prefix_tokens:
            shared = plan.prefixes[rng.randrange(len(plan.prefixes))]
            if plan.chat:
                self.messages.append({"role": "system", "content": shared})
            else:
                self.prompt = shared
        elif self.row is not None:
            self.begin_row()

    def begin_row(self):
        row, prompt = self.row, self.row.get("prompt")
        if self.plan.chat:
            self.messages = list(row.get("messages") or [{"role": "user", "content": prompt}])
        elif prompt is not None:
            self.prompt = prompt
        else:
            self.prompt = "\n\n".join(str(m.get("content")) for m in row["messages"])

    def body(self, turn):
        """(the request's body as a dict, the number of output tokens asked for)."""
        plan, rng = self.plan, self.rng
        asked = plan.output.draw(rng)
        if self.row is not None and turn == 0:
            asked = int(self.row.get("max_tokens") or asked)
        else:
            lengths = plan.prompt if turn == 0 else plan.followup
            fresh = plan.source.take(rng, lengths.draw(rng))
            if turn and not plan.source.token_ids:
                fresh = (fresh + " " + rng.choice(ASKS)).strip()
            if plan.chat:
                self.messages.append({"role": "user", "content": fresh})
            elif isinstance(self.prompt, list):
                self.prompt = self.prompt + fresh
            else:
                self.prompt = (self.prompt + "\n\n" + fresh).strip()
        body = {"model": plan.model}
        if plan.chat:
            body = {"messages": self.messages, "model": plan.model}
        else:
            body["prompt"] = self.prompt
        body["max_tokens"] = asked
        if plan.stream:
            body["stream"] = True
            body["stream_options"] = {"include_usage": True}
        body.update(plan.extra)
        return body, asked

    def reply(self, text):
        if self.plan.chat:
            self.messages.append({"role": "assistant", "content": text})
        elif isinstance(self.prompt, str):
            self.prompt += text


class Plan:
    """Everything that shapes requests; the same seed, stage and number give the same request."""

    def __init__(self, model, chat, stream, source, prompt, output, seed, turns="1",
                 followup=None, prefix_tokens=0, prefix_groups=1, dataset=None, extra=None):
        self.model = model
        self.chat = chat
        self.stream = stream
        self.source = source
        self.prompt = Lengths(prompt)
        self.output = Lengths(output)
        self.turns = Lengths(turns)
        self.followup = Lengths(followup or prompt)
        self.seed = seed
        self.prefix_tokens = prefix_tokens
        self.dataset = dataset
        self.extra = extra or {}
        rng = random.Random("prefixes %s" % seed)
        self.prefixes = [source.take(rng, prefix_tokens) for _ in range(max(1, prefix_groups))]

    def conversation(self, stage, number):
        return Conversation(self, random.Random("%s %s %s" % (self.seed, stage, number)))


def arrivals(kind, rate, seed, stage):
    """Times between arrivals at `rate` a second: all alike, or as a Poisson process has them."""
    rng = random.Random("arrivals %s %s" % (seed, stage))
    while True:
        yield 1.0 / rate if kind == "constant" else rng.expovariate(rate)
