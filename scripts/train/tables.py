"""Tables of keys and values, and questions about them.

Most of training's keys, values and wordings are composed anew for each table, from many small
parts, so that what is learned is to find the key and to copy what follows it, whatever the form. A
few fixed ones (KEYS, VALUES, ASK) stand for the trained kinds in the evaluation. Those in lists
that end in _HELD are for the evaluation alone; their words ("get", "stands", "next to", "for me",
"Can you", trees, planets) and shapes are kept out of what is composed.
"""
import re
import string

from turns import ABSENT, assistant, depths, digits, first_up, letters, user
from words import (ADJECTIVES, ANIMALS, CITIES, COLORS, FOODS, JOBS, NAMES, PLACES, PLANETS_HELD,
                   THINGS, TREES_HELD)

KEYS = [
    lambda r: digits(r, 4), lambda r: digits(r, 6), lambda r: letters(r, 4),
    lambda r: letters(r, 8, "0123456789abcdef"),
    lambda r: f"{r.choice(COLORS)} {r.choice(THINGS)} {r.randrange(100)}",
    lambda r: f"{r.choice(NAMES)} {letters(r, 2)}",
    lambda r: f"{r.choice(THINGS)}{r.randrange(1000)}",
    lambda r: f"{r.choice(ADJECTIVES)} {r.choice(COLORS)} {r.choice(ANIMALS)}",
    lambda r: f"{r.choice(CITIES)}-{r.randrange(100)}",
    lambda r: f"{letters(r, 2)}{digits(r, 3)}",
    lambda r: f"room {r.randrange(10000)}",
    lambda r: f"{r.choice(NAMES)} from {r.choice(CITIES)}, {r.choice(JOBS)}",
]
KEYS_HELD = [
    lambda r: digits(r, 5), lambda r: letters(r, 6),
    lambda r: f"{r.choice(TREES_HELD)} {r.choice(PLACES)} {r.randrange(100)}",
    lambda r: f"{r.choice(PLANETS_HELD)} {digits(r, 3)}",
    lambda r: f"{letters(r, 1)}{digits(r, 4)}{letters(r, 1)}",
]
VALUES = [
    lambda r: digits(r, 4), lambda r: digits(r, 6), lambda r: digits(r, 7), lambda r: letters(r, 5),
    lambda r: f"{r.choice(COLORS)} {r.choice(ANIMALS)}", lambda r: r.choice(PLACES),
    lambda r: f"{r.choice(ADJECTIVES)}-{r.choice(THINGS)}-{r.randrange(10, 100)}",
]
VALUES_HELD = [lambda r: digits(r, 5), lambda r: letters(r, 6),
               lambda r: f"{r.choice(TREES_HELD)} {digits(r, 2)}"]
POOLS = [NAMES, CITIES, THINGS, PLACES, COLORS, ANIMALS, FOODS, JOBS, ADJECTIVES]
SEPARATORS = ["", " ", "-", "_", "/", ".", " #", ":"]
HELD_SHAPE = re.compile(r"[0-9]{5}|[A-Z]{6}|[A-Z][0-9]{4}[A-Z]")


def random_format(rng, words):
    """A maker of keys or values of one random form, of up to three parts, unlike the held-out;
    words: a large vocabulary."""
    parts = []
    for _ in range(rng.choices([1, 2, 3], [4, 4, 2])[0]):
        kind = rng.choice(["digits", "digits", "digits", "upper", "upper", "lower", "mixed", "word",
                           "Word", "any", "any", "any", "Any"])
        n = rng.randrange(1, 8) if kind == "digits" else rng.randrange(1, 7)
        parts.append((kind, n, words if kind in ("any", "Any") else rng.choice(POOLS)))
    joint = rng.choice(SEPARATORS)

    def make(r):
        out = []
        for kind, n, pool in parts:
            if kind == "digits":
                out.append(digits(r, n))
            elif kind == "upper":
                out.append(letters(r, n))
            elif kind == "lower":
                out.append(letters(r, n, string.ascii_lowercase))
            elif kind == "mixed":  # begins with a small letter, so it has no held-out shape
                out.append(letters(r, 1, string.ascii_lowercase)
                           + letters(r, n, string.ascii_letters + string.digits))
            else:
                w = r.choice(pool)
                out.append(w.capitalize() if kind in ("Word", "Any") else w)
        return joint.join(out)

    return random_format(rng, words) if HELD_SHAPE.fullmatch(make(rng)) else make


def phrase_of(filler):
    """A maker of values that are a few words of prose."""
    def make(r):
        words = r.choice(filler.pieces).split()
        n = r.randrange(1, 7)
        at = r.randrange(max(1, len(words) - n))
        return " ".join(words[at: at + n]).strip(",.;:!?\"' -") or "nothing"

    return make


def roomy_format(rng, words, n):
    """A format with about n different keys or more."""
    while True:
        make = random_format(rng, words)
        n_seen = min(n, 300)
        if len({make(rng) for _ in range(2 * n_seen)}) >= n_seen:
            return make


JOINTS = [": ", " = ", " -> ", " is ", "\t", " | ", ", "]
MORE_JOINTS = [" : ", "=", ":", " ~ ", " equals ", " has ", "; ", " .. ", " / ", " >> ", " means ",
               " stood for ", " goes with ", "  ", " @ ", " + ", " belongs to ", " --> ", " ",
               " holds "]
JOINTS_HELD = [" => ", " - "]
JOINT_MARKS = "=-:>|~*+/#@.,;&%^<!"


def random_joint(rng, words):
    """What stands between key and value: a few marks, or a word; not the held-out ones."""
    if rng.random() < 0.25:
        return f" {rng.choice(words)} "
    marks = letters(rng, rng.choice([1, 1, 2, 2, 3]), JOINT_MARKS)
    if marks in [j.strip() for j in JOINTS_HELD]:
        return random_joint(rng, words)
    return rng.choice(["", " ", " "]) + marks + rng.choice(["", " ", " ", " "])


ROW_HEADS, ROW_TAILS = ["", "", "", "- ", "* ", "> ", "# "], ["", "", "", ".", ";", ","]

ASK = ["What is the value of {k}?", "Find {k} in the list and give its value.", "{k}?",
       "Look up {k}.", "Which value belongs to {k}?", "Give me the entry for {k}.", "And {k}?",
       "Now {k}.", "Read out the value of {k}.", "{k}"]
ASK_HELD = ["Please tell me what stands next to {k}.", "What does the list say for {k}?",
            "Can you get {k} for me?"]
OPENERS = [""] * 8 + [
    "please", "now", "could you", "would you", "will you", "I want you to", "you should", "next,",
    "then", "quick,", "kindly", "go on and", "I would like you to", "it is time to", "help me and",
    "I ask you to", "friend,", "thanks, now", "okay,", "first", "once more,", "let us", "hello,",
    "and", "so,", "try to", "do", "we must", "be so kind and", "may I ask you to", "why not"]
VERBS = ["give", "find", "look up", "read out", "show", "tell me", "return", "name", "write",
         "check", "search for", "bring up", "fetch", "report", "print", "pick out", "locate",
         "state", "copy", "spell out", "hand over", "call up", "repeat", "quote", "recall",
         "reveal", "provide", "supply", "mention", "let me see", "let me know", "point out",
         "note down", "pull up", "look for", "bring me", "say"]
OBJECTS = ["{k}", "{k}", "the {n} of {k}", "the {n} for {k}", "what belongs to {k}",
           "what {k} has", "what goes with {k}", "what follows {k}", "the {n} under {k}",
           "the {n} beside {k}", "the line of {k}", "{k} and its {n}", "the {n} that {k} has",
           "what comes after {k}", "how {k} goes on", "the {n} at {k}"]
CLAUSES = ["what is the {n} of {k}", "what {n} has {k}", "which {n} goes with {k}", "what is {k}",
           "what comes with {k}", "what comes after {k}", "which {n} is listed under {k}",
           "what is written beside {k}", "how is {k} listed", "what do you have for {k}",
           "do you see {k}", "do you know the {n} of {k}", "is there a {n} for {k}",
           "I need the {n} of {k}", "I am looking for {k}", "what about {k}", "{k}, which {n}",
           "who or what is {k}", "to what does {k} point", "does {k} have a {n}",
           "what was the {n} of {k} again", "where {k} is, what is the {n}", "I want to know {k}",
           "I lost the {n} of {k}", "{k} has which {n}", "how about the {n} of {k}",
           "what did they note for {k}", "I wonder what {k} is", "we come to {k}"]
FRAGMENTS = ["{k}", "{k} {n}", "{n} {k}", "{n} of {k}", "now {k}", "next {k}", "then {k}",
             "also {k}", "{k} next", "and {k}", "lastly {k}", "{n}, {k}", "for {k}", "{k} please"]
CLOSERS = [""] * 8 + [
    "please", "now", "from the list", "in the table", "above", "if you can", "when you can",
    "at once", "again", "this time", "in this list", "from what I gave you", "and nothing else",
    "today", "to us", "quickly", "in full", "my friend", "as I wrote it", "thank you"]
TABLE_NOUNS = ["value", "value", "entry", "record", "item", "thing", "answer", "result", "content",
               "text", "code", "reading", "partner", "match", "other part", "right side", "meaning",
               "number", "name", "data"]


def chatter(rng, filler):
    """A short sentence of prose."""
    text = filler(rng, 1)[0].split(". ")[0][:120].strip(" .\"'")
    return first_up(text) + ". "


def request(rng, k, filler):
    """A question for one key, in one of very many wordings."""
    words, p = vocabulary(filler), rng.random()
    if p < 0.10:
        return rng.choice(ASK).format(k=k)
    n = rng.choice(words) if rng.random() < 0.15 else rng.choice(TABLE_NOUNS)
    if p < 0.20:  # whatever stands around it, the key is what matters
        around = [rng.choice(words) for _ in range(rng.randrange(1, 7))]
        around.insert(rng.randrange(len(around) + 1), k)
        text = " ".join(around)
    elif p < 0.33:
        text = rng.choice(FRAGMENTS).format(k=k, n=n)
    elif p < 0.66:
        parts = [rng.choice(OPENERS), rng.choice(VERBS), rng.choice(OBJECTS), rng.choice(CLOSERS)]
        text = " ".join(x for x in parts if x).format(k=k, n=n)
    else:
        parts = [rng.choice(OPENERS) if rng.random() < 0.2 else "", rng.choice(CLAUSES),
                 rng.choice(CLOSERS)]
        text = " ".join(x for x in parts if x).format(k=k, n=n)
    if rng.random() < 0.8 and not text.startswith(k):
        text = first_up(text)
    text += rng.choice(["?", "?", ".", ".", "", ":", "!"])
    return chatter(rng, filler) + text if filler and rng.random() < 0.12 else text


def vocabulary(filler):
    return filler.words if filler else THINGS + ANIMALS


def distinct(rng, n, make):
    seen = {}
    for _ in range(20 * n):
        seen[make(rng)] = None
        if len(seen) == n:
            break
    return list(seen)


def table(rng, size, filler=None, questions=4, spread=False, held=False):
    """A table; then questions for one key each, for several keys, for the last of several values of
    a key, or for a key that is missing."""
    if held:
        key, value = rng.choice(KEYS_HELD), rng.choice(VALUES_HELD)
        joint = rng.choice(JOINTS_HELD)
    else:
        usual = spread or rng.random() < 0.12  # evaluation keeps to the fixed forms
        words = vocabulary(filler)
        key = rng.choice(KEYS) if usual else roomy_format(rng, words, size // 16)
        value = rng.choice(VALUES) if usual or rng.random() < 0.15 else random_format(rng, words)
        if not usual and filler and rng.random() < 0.15:
            value = phrase_of(filler)
        joint = rng.choice(JOINTS if usual else JOINTS + MORE_JOINTS)
        if not usual and rng.random() < 0.6:
            joint = random_joint(rng, words)

    def ask(k):
        if spread:
            return rng.choice(ASK_HELD if held else ASK).format(k=k)
        return request(rng, k, filler)

    width = len(key(rng)) + len(value(rng)) + len(joint) + 1
    rows = [(k, value(rng)) for k in distinct(rng, max(4, size // width), key)]
    updates = not spread and rng.random() < 0.2
    if updates:
        for _ in range(max(1, len(rows) // 8)):
            k, _ = rng.choice(rows)
            rows.insert(rng.randrange(len(rows)), (k, value(rng)))
    last = dict(rows)
    head, tail = ("", "") if spread else (rng.choice(ROW_HEADS), rng.choice(ROW_TAILS))
    lines = [head + k + joint + v + tail for k, v in rows]
    if filler and not spread and rng.random() < 0.3:  # the table stands in the middle of prose
        prose = filler(rng, size // 2)
        lines = lines[: max(2, len(lines) // 2)]
        rows = rows[: len(lines)]
        last = dict(rows)
        cut = rng.randrange(len(prose) + 1)
        lines = prose[:cut] + lines + prose[cut:]
    text = "\n".join(lines)
    asked = []
    for d in depths(rng, questions, spread):
        k = rows[int(d * len(rows))][0]
        p = rng.random()
        if spread or p < 0.84:
            q = ask(k)
            if updates and rng.random() < 0.5:
                q = rng.choice([f"What is the last value of {k}?", f"The newest value of {k}?"])
            asked.append((q, last[k], d))
        elif p < 0.96:
            ks = rng.sample(list(last), min(len(last), rng.randrange(2, 4)))
            asked.append(("Give the values of " + ", ".join(ks) + ".",
                          "\n".join(x + joint + last[x] for x in ks), d))
        else:
            k = key(rng)
            asked.append((ask(k), last.get(k, ABSENT), d))
    rng.shuffle(asked)
    head = rng.choice(["", "", "Here is a list.\n\n", "Read this table:\n\n"])
    q, a, _ = asked[0]
    first = f"{q}\n\n{head}{text}" if not spread and rng.random() < 0.1 else f"{head}{text}\n\n{q}"
    messages = [user(first), assistant(a)]
    for q, a, _ in asked[1:]:
        messages += [user(q), assistant(a)]
    return {"kind": "table", "messages": messages, "depths": [d for _, _, d in asked]}
