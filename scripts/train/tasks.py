"""Synthetic tasks: unlimited, seeded, written for this model.

A generator gives {"kind", "messages", "tools"?}. Long ones fill a context of about `size`
characters and ask many questions about it: each answer is a supervised look-up, so one long row
teaches as much as dozens of short ones. `spread` places the asked facts evenly over the depth (for
evaluation), and `held` switches to key types, wordings, and facts that training never sees.
"""
import json
import random
import string

from words import (ADJECTIVES, ANIMALS, CITIES, COLORS, FOODS, JOBS, NAMES, PLACES, PLANETS_HELD,
                   THINGS, TREES_HELD)


def user(text):
    return {"role": "user", "content": text}


def assistant(text, reasoning=None, calls=None):
    m = {"role": "assistant", "content": text}
    if reasoning:
        m["reasoning"] = reasoning
    if calls:
        m["tool_calls"] = calls
    return m


def letters(rng, n, alphabet=string.ascii_uppercase):
    return "".join(rng.choice(alphabet) for _ in range(n))


def digits(rng, n):
    return letters(rng, n, string.digits)


def depths(rng, n, spread):
    """n places in [0, 1): drawn, or one in each of n equal parts."""
    return [(i + rng.random()) / n if spread else rng.random() for i in range(n)]


# ---- tables of keys and values -----------------------------------------------------------------

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
SEPARATORS = ["", " ", "-", "_", "/", ".", " #", ":"]


def random_format(rng):
    """A maker of keys or values of one random form, of up to three parts, unlike the held-out."""
    parts = []
    for _ in range(rng.choices([1, 2, 3], [4, 4, 2])[0]):
        kind, n = rng.choice(["digits", "digits", "upper", "lower", "word", "Word"]), 0
        n = rng.randrange(1, 8) if kind == "digits" else rng.randrange(1, 7)
        pool = rng.choice([NAMES, CITIES, THINGS, PLACES, COLORS, ANIMALS, FOODS, JOBS, ADJECTIVES])
        parts.append((kind, n, pool))
    joint = rng.choice(SEPARATORS)
    size = [(kind, n) for kind, n, _ in parts]
    if size in ([("digits", 5)], [("upper", 6)], [("upper", 1), ("digits", 4), ("upper", 1)]):
        return random_format(rng)

    def make(r):
        out = []
        for kind, n, pool in parts:
            if kind == "digits":
                out.append(digits(r, n))
            elif kind == "upper":
                out.append(letters(r, n))
            elif kind == "lower":
                out.append(letters(r, n, string.ascii_lowercase))
            else:
                w = r.choice(pool)
                out.append(w.capitalize() if kind == "Word" else w)
        return joint.join(out)

    return make


VALUES_HELD = [lambda r: digits(r, 5), lambda r: letters(r, 6),
               lambda r: f"{r.choice(TREES_HELD)} {digits(r, 2)}"]
JOINTS = [": ", " = ", " -> ", " is ", "\t", " | ", ", "]
MORE_JOINTS = [" : ", "=", ":", " ~ ", " equals ", " has ", "; ", " .. ", " / ", " >> ", " means ",
               " stands for ", " goes with ", "  ", " @ ", " + ", " belongs to ", " --> ", " "
               "holds "]
ROW_HEADS, ROW_TAILS = ["", "", "", "- ", "* ", "> ", "# "], ["", "", "", ".", ";", ","]
JOINTS_HELD = [" => ", " - "]
ASK = ["What is the value of {k}?", "Find {k} in the list and give its value.", "{k}?",
       "Look up {k}.", "Which value belongs to {k}?", "Give me the entry for {k}.", "And {k}?",
       "Now {k}.", "Read out the value of {k}.", "{k}"]
OPENERS = ["", "", "Please ", "Now ", "Next, ", "Then ", "Quick, ", "And ", "So, "]
REQUESTS = ["give the value of {k}", "find {k}", "look up {k}", "read out {k}", "show {k}",
            "tell me the value for {k}", "say what {k} is", "return the entry of {k}",
            "name the value of {k}", "write the value for {k}", "check {k}", "search for {k}",
            "what is {k}", "what value does {k} have", "which value goes with {k}",
            "what is listed under {k}", "what is written beside {k}", "what follows {k}",
            "what do you have for {k}", "how is {k} listed", "where {k} is, what is the value",
            "I need {k}", "I want to know {k}", "I am looking for {k}", "the value of {k}",
            "what comes with {k}", "do you see {k}", "what about {k}"]


def request(rng, k):
    if rng.random() < 0.35:
        return rng.choice(ASK).format(k=k)
    text = rng.choice(OPENERS) + rng.choice(REQUESTS).format(k=k)
    text = text[0].upper() + text[1:] if rng.random() < 0.8 and not text.startswith(k) else text
    return text + rng.choice(["?", ".", "", ":"])


ASK_HELD = ["Please tell me what stands next to {k}.", "What does the list say for {k}?",
            "Can you get {k} for me?"]
ABSENT = "It is not in the list."


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
        usual = spread or rng.random() < 0.35  # evaluation keeps to the fixed forms
        key = rng.choice(KEYS) if usual else random_format(rng)
        value = rng.choice(VALUES) if usual or rng.random() < 0.2 else random_format(rng)
        joint = rng.choice(JOINTS if usual else JOINTS + MORE_JOINTS)

    def ask(k):
        if spread:
            return rng.choice(ASK_HELD if held else ASK).format(k=k)
        return request(rng, k)

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
        if spread or p < 0.82:
            q = ask(k)
            if updates and rng.random() < 0.5:
                q = rng.choice([f"What is the last value of {k}?", f"The newest value of {k}?"])
            asked.append((q, last[k], d))
        elif p < 0.9:
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


# ---- facts hidden in prose ---------------------------------------------------------------------

FACTS = [
    ("The secret code of {s} is {v}.", "What is the secret code of {s}?", CITIES, digits, 6),
    ("{s} keeps the number {v} in a small book.", "Which number does {s} keep in a small book?",
     NAMES, digits, 5),
    ("The password for the {s} is {v}.", "What is the password for the {s}?", PLACES, letters, 5),
    ("The {s} cost exactly {v} coins.", "How many coins did the {s} cost?", THINGS, digits, 3),
    ("The telephone number of {s} is {v}.", "What is the telephone number of {s}?", NAMES, digits,
     7),
    ("Somebody wrote {v} on the {s}.", "What was written on the {s}?", THINGS, letters, 4),
    ("{s} was born in the year {v}.", "In which year was {s} born?", NAMES, digits, 4),
    ("The train to {s} leaves from platform {v}.", "From which platform does the train to {s} "
    "leave?",
     CITIES, digits, 2),
    ("There are {v} steps to the {s}.", "How many steps are there to the {s}?", PLACES, digits, 3),
    ("The {s} is kept in box {v}.", "In which box is the {s} kept?", THINGS, digits, 4),
]
NOUNS = ("code number badge locker ticket key pin seat gate bus mailbox account license part order "
         "flight room cabin bed shelf jar channel page tag label lot score price weight height age "
         "record rank size speed nickname title").split()
FRAMES = [
    ("The {n} of {s} is {v}.", "What is the {n} of {s}?"),
    ("The {n} of {s} was said to be {v}.", "What was the {n} of {s} said to be?"),
    ("{s} has the {n} {v}.", "Which {n} does {s} have?"),
    ("For {s} the {n} is {v}.", "What is the {n} for {s}?"),
    ("{v} is the {n} of {s}.", "What is the {n} of {s}?"),
    ("They gave the {n} {v} to {s}.", "Which {n} did they give to {s}?"),
    ("Somebody asked for {n} {v} because of {s}.", "Which {n} did somebody ask for because of "
    "{s}?"),
    ("You will find {s} under {n} {v}.", "Under which {n} will you find {s}?"),
    ("I wrote down {n} {v} for {s}.", "Which {n} did I write down for {s}?"),
    ("As all know, {n} {v} belongs to {s}.", "Which {n} belongs to {s}?"),
    ("In the book, {s} stands with the {n} {v}.", "With which {n} does {s} stand in the book?"),
    ("Nobody knew that the {n} of {s} was {v}.", "What was the {n} of {s}?"),
    ("{n} {v} was chosen for {s}.", "Which {n} was chosen for {s}?"),
    ("Long ago {s} got the {n} {v}.", "Which {n} did {s} get long ago?"),
    ("With {s} goes the {n} {v}.", "Which {n} goes with {s}?"),
    ("The {n}, {v}, came from {s}.", "Which {n} came from {s}?"),
    ("It took {v} days to reach {s}.", "How many days did it take to reach {s}?"),
    ("{s} lies {v} miles from here.", "How many miles from here does {s} lie?"),
    ("We counted {v} birds near {s}.", "How many birds did we count near {s}?"),
    ("Only {v} people live close to {s}.", "How many people live close to {s}?"),
    ("A bag of {v} nuts was sent to {s}.", "How many nuts were sent to {s}?"),
    ("Wagon {v} brings bread to {s}.", "Which wagon brings bread to {s}?"),
    ("Road {v} goes past {s}.", "Which road goes past {s}?"),
    ("{v} candles were lit for {s}.", "How many candles were lit for {s}?"),
]


def random_fact(rng):
    """A form like those of FACTS: (sentence, question, subjects, maker of values)."""
    sentence, question = rng.choice(FRAMES)
    noun, kind = rng.choice(NOUNS), rng.randrange(6)
    subjects = [NAMES, CITIES, ["the " + x for x in PLACES], ["the " + x for x in THINGS],
                [f"the {c} {x}" for c in COLORS for x in rng.sample(THINGS, 6)],
                [f"the {a} {x}" for a in ADJECTIVES for x in rng.sample(ANIMALS, 4)]][kind]
    counts = "{n}" not in sentence and not sentence.startswith(("Wagon", "Road"))
    value = (lambda r: digits(r, r.randrange(1, 5))) if counts else random_format(rng)
    return sentence.replace("{n}", noun), question.replace("{n}", noun), subjects, value


FACTS_HELD = [
    ("The magic word of {s} happens to be {v}.", "What is the magic word of {s}?", PLANETS_HELD,
     letters, 5),
    ("Ship number {v} carries a load of {s} wood.", "Which ship number carries {s} wood?",
     TREES_HELD, digits, 5),
    ("It takes {v} minutes to walk to the {s}.", "How many minutes does it take to walk to the "
    "{s}?",
     PLACES, digits, 3),
]


def insert(paragraphs, depth, line):
    """Puts a line where `depth` of the characters has gone by, between two paragraphs."""
    goal = depth * sum(map(len, paragraphs))
    at = 0
    while at < len(paragraphs) and goal > len(paragraphs[at]) / 2:
        goal -= len(paragraphs[at])
        at += 1
    paragraphs.insert(at, line)


def facts(rng, size, filler, questions=4, spread=False, held=False):
    """Sentences of a few forms in prose; the question says if a word or a sentence is wanted."""
    paragraphs = filler(rng, size)
    if held or spread or rng.random() < 0.3:
        forms = [(f, q, subjects, lambda r, make=make, n=n: make(r, n)) for f, q, subjects, make, n
                 in rng.sample(FACTS_HELD if held else FACTS,
                               1 if rng.random() < 0.4 else 2 + held)]
    else:
        forms = [random_fact(rng) for _ in range(rng.choice([1, 1, 2, 3]))]
    known = []
    for i, d in enumerate(depths(rng, questions, spread)):
        form, ask, subjects, value = forms[i % len(forms)]
        used = {k[1] for k in known if k[0] == form}
        left = [s for s in subjects if s not in used]
        if left:
            known.append((form, rng.choice(left), value(rng), ask, subjects, d))
    for form, s, v, _, _, d in sorted(known, key=lambda k: -k[5]):
        line = form.format(s=s, v=v)
        insert(paragraphs, d, line[0].upper() + line[1:])
    asked = []
    for form, s, v, ask, subjects, d in known:
        sentence = not spread and rng.random() < 0.25
        if not spread and rng.random() < 0.08:
            used = {k[1] for k in known if k[0] == form}
            s = rng.choice([x for x in subjects if x not in used] or [s])
            v = v if s in used else None
        if v is None:
            asked.append((ask.format(s=s), "The text does not say.", d))
        elif sentence:
            asked.append((ask.format(s=s) + " Answer with the whole sentence.",
                          form.format(s=s, v=v), d))
        else:
            asked.append((ask.format(s=s), v, d))
    rng.shuffle(asked)
    messages = [user("\n\n".join(paragraphs) + "\n\n" + asked[0][0]), assistant(asked[0][1])]
    for q, a, _ in asked[1:]:
        messages += [user(q), assistant(a)]
    return {"kind": "facts", "messages": messages, "depths": [d for _, _, d in asked]}


BOXES = ["bag", "basket", "box", "case", "chest", "crate", "drawer", "pouch", "sack"]


def chain(rng, size, filler, questions=3, spread=False, held=False):
    """Two or three facts that have to be joined: a thing in a box in a place, or variables."""
    paragraphs = filler(rng, size)
    asked, lines = [], []
    things = rng.sample(THINGS, min(questions, 8))
    boxes = rng.sample([f"{c} {b}" for c in COLORS for b in BOXES], 2 * len(things))
    for i, t in enumerate(things):
        place = rng.choice(PLACES)
        steps = [t] + boxes[2 * i: 2 * i + rng.randrange(1, 3)] + [place]
        hops = [f"The {a} is in the {b}." for a, b in zip(steps, steps[1:])]
        lines += hops
        why = " ".join(hops) if rng.random() < 0.5 else None
        asked.append((f"In which place is the {t}?", f"The {t} is in the {place}.", why))
    rng.shuffle(lines)
    for line in lines:
        insert(paragraphs, rng.random(), line)
    messages = [user("\n\n".join(paragraphs) + "\n\n" + asked[0][0])]
    messages.append(assistant(asked[0][1], asked[0][2] if len(asked) == 1 else None))
    for q, a, why in asked[1:]:
        messages += [user(q), assistant(a, why if q == asked[-1][0] else None)]
    return {"kind": "chain", "messages": messages}


def quote(rng, size, filler, questions=2, spread=False, held=False):
    """Copy a paragraph, named by its number or by its first words."""
    paragraphs = [p for p in filler(rng, size) if 30 < len(p) < 500] or ["The end."]
    numbered = rng.random() < 0.5
    text = "\n\n".join(f"[{i + 1}] {p}" if numbered else p for i, p in enumerate(paragraphs))
    messages = []
    for j in range(min(questions, 4)):
        i = rng.randrange(len(paragraphs))
        p = paragraphs[i]
        if numbered:
            q = rng.choice(["Copy paragraph {n}.", "Repeat paragraph {n} word for word.",
                            "Write out paragraph [{n}]."]).format(n=i + 1)
        else:
            start = " ".join(p.split()[: rng.randrange(4, 8)])
            q = f'One paragraph begins with "{start}". Write it out in full.'
        messages += [user(q if j else text + "\n\n" + q), assistant(p)]
    return {"kind": "quote", "messages": messages}


LONG_TASKS = [(table, 5), (facts, 3), (chain, 1), (quote, 1)]


def long_task(rng, size, filler, questions):
    make = rng.choices([t for t, _ in LONG_TASKS], [w for _, w in LONG_TASKS])[0]
    return make(rng, size, filler=filler, questions=questions)


# ---- short skills ------------------------------------------------------------------------------

def arithmetic(rng):
    kind = rng.randrange(6)
    if kind == 0:
        a, b = rng.randrange(1000), rng.randrange(1000)
        steps, carry, x, y = [], 0, a, b
        while x or y:
            s = x % 10 + y % 10 + carry
            steps.append(f"{x % 10} + {y % 10}" + (" + 1" if carry else "") + f" = {s}")
            carry, x, y = s // 10, x // 10, y // 10
        q = rng.choice(["What is {} + {}?", "{} + {}", "Add {} and {}."]).format(a, b)
        return q, str(a + b), ". ".join(steps) + "." if steps and rng.random() < 0.6 else None
    if kind == 1:
        b, a = sorted((rng.randrange(100), rng.randrange(100)))
        return rng.choice(["{} - {}", "What is {} minus {}?"]).format(a, b), str(a - b), None
    if kind == 2:
        a, b = rng.randrange(13), rng.randrange(13)
        q = rng.choice(["What is {} times {}?", "{} * {}", "Multiply {} by {}."]).format(a, b)
        return q, str(a * b), None
    name, thing = rng.choice(NAMES), rng.choice(THINGS)
    a, b = rng.randrange(2, 30), rng.randrange(1, 20)
    if kind == 3:
        return (f"{name} has {a} {thing}s and finds {b} more. "
                f"How many {thing}s does {name} have now?",
                f"{name} has {a + b} {thing}s.", f"At first there are {a}. {a} + {b} = {a + b}.")
    if kind == 4:
        a, b = max(a, b), min(a, b)
        return (f"{name} had {a} {thing}s and gave {b} away. How many are left?",
                f"{a - b} {thing}s are left.", f"At first there are {a}. {a} - {b} = {a - b}.")
    a, b = rng.randrange(100), rng.randrange(100)
    return f"Which is larger, {a} or {b}?", str(max(a, b)), None


ORDER = "first second third fourth fifth sixth seventh eighth".split()


def lists(rng):
    pool = rng.choice([NAMES, CITIES, THINGS, ANIMALS, FOODS])
    xs = rng.sample(pool, rng.randrange(3, 9))
    s = ", ".join(xs)
    kind = rng.randrange(8)
    if kind == 0:
        return f"How many words are in this list? {s}", str(len(xs)), \
            " ".join(f"{i + 1} {x}" for i, x in enumerate(xs))
    if kind == 1:
        return f"Sort these words by the alphabet: {s}", ", ".join(sorted(xs)), None
    if kind == 2:
        ns = [rng.randrange(100) for _ in range(rng.randrange(3, 7))]
        return "Sort from small to large: " + ", ".join(map(str, ns)), \
            ", ".join(map(str, sorted(ns))), None
    if kind == 3:
        return f"Write this list backwards: {s}", ", ".join(reversed(xs)), None
    if kind == 4:
        return rng.choice(["Repeat: ", "Say exactly: ", "Copy this: "]) + s, s, None
    i = rng.randrange(len(xs))
    if kind == 5:
        return f"What is the {ORDER[i]} word? {s}", xs[i], None
    if kind == 6:
        return f"Is {xs[i]} in this list? {s}", f"Yes, {xs[i]} is in the list.", None
    odd = rng.choice([x for x in pool if x not in xs])
    return f"Is {odd} in this list? {s}", f"No, {odd} is not in the list.", None


def person(rng):
    return {"name": rng.choice(NAMES), "age": rng.randrange(5, 90), "city": rng.choice(CITIES),
            "job": rng.choice(JOBS)}


def json_task(rng):
    if rng.random() < 0.25:
        xs = rng.sample(rng.choice([NAMES, CITIES, THINGS, ANIMALS]), rng.randrange(2, 7))
        q = rng.choice(["Give this list as a JSON array: ", "Write as a JSON array: ",
                        "Turn this into JSON: "])
        return q + ", ".join(xs), json.dumps(xs), None
    people = [person(rng) for _ in range(rng.choice([1, 1, 1, 2]))]
    form = rng.choice(["{name} is {age} years old, lives in {city} and works as a {job}.",
                       "{name}, a {job} from {city}, is {age}.",
                       "Meet {name}. Age: {age}. Home: {city}. Work: {job}.",
                       "In {city} there is a {job} called {name} who is {age} years old."])
    keys = rng.sample(["name", "age", "city", "job"], rng.randrange(2, 5))
    out = [{k: p[k] for k in keys} for p in people]
    q = rng.choice(["Extract {k} as JSON: ", "Give {k} as JSON. ", "Write {k} as a JSON object: "])
    return (q.format(k=", ".join(keys)) + " ".join(form.format(**p) for p in people),
            json.dumps(out[0] if len(out) == 1 else out), None)


def world(rng):
    """People walk about and carry things; the question is where somebody or something is."""
    people, things = rng.sample(NAMES, 3), rng.sample(THINGS, 2)
    place, holder, lies, lines = {}, {}, {}, []
    for _ in range(rng.randrange(4, 12)):
        p = rng.choice(people)
        t = rng.choice(things)
        if p not in place or rng.random() < 0.5:
            place[p] = rng.choice(PLACES)
            verb = rng.choice(["went", "walked", "ran", "moved"])
            lines.append(f"{p} {verb} to the {place[p]}.")
        elif holder.get(t) == p:
            holder[t], lies[t] = None, place[p]
            lines.append(f"{p} put down the {t}.")
        elif not holder.get(t) and lies.get(t, place[p]) == place[p]:
            holder[t] = p
            lines.append(f"{p} took the {t}.")
    asked = [(f"Where is {p}?", f"{p} is in the {w}.", None) for p, w in place.items()]
    for t, p in holder.items():
        if p:
            asked.append((f"Where is the {t}?", f"The {t} is in the {place[p]}.",
                          f"{p} has the {t}. {p} is in the {place[p]}."))
            asked.append((f"Who has the {t}?", f"{p} has the {t}.", None))
    q, a, why = rng.choice(asked)
    return " ".join(lines) + "\n" + q, a, why


def schema(**kw):
    return {"type": "object", "properties": {k: {"type": v} for k, v in kw.items()},
            "required": list(kw)}


def tool_cases(rng):
    """(definition, wordings, arguments, result, answer) of every kind of call."""
    city, other, name = rng.choice(CITIES), rng.choice(CITIES), rng.choice(NAMES)
    thing, place = rng.choice(THINGS), rng.choice(PLACES)
    a, b, m = rng.randrange(10, 5000), rng.randrange(10, 5000), rng.choice([1, 2, 3, 5, 10, 15,
                                                                            20, 45])
    degrees, sky = rng.randrange(-9, 36), rng.choice("sunny cloudy rainy windy foggy snowy".split())
    clock = f"{rng.randrange(24):02d}:{rng.randrange(60):02d}"
    price, word = rng.randrange(1, 200), rng.choice(ADJECTIVES)
    return [
        (("get_weather", "Get the current weather in a city.", schema(city="string")),
         ["What is the weather in {city}?", "How is the weather in {city} today?",
          "Do I need a coat in {city}?", "Is it warm in {city}?"], dict(city=city),
         dict(temperature=degrees, sky=sky), f"It is {sky} in {city}, with {degrees} degrees."),
        (("add", "Add two numbers.", schema(a="number", b="number")),
         ["What is {a} + {b}?", "Add {a} and {b}.", "How much is {a} plus {b}?"], dict(a=a, b=b),
         dict(result=a + b), f"{a} + {b} = {a + b}."),
        (("set_timer", "Set a timer.", schema(minutes="number")),
         ["Set a timer for {minutes} minutes.", "Wake me in {minutes} minutes.",
          "Call me after {minutes} minutes."], dict(minutes=m), dict(ok=True),
         f"Your timer is set for {m} minutes."),
        (("get_price", "Get the price of a thing in the shop.", schema(item="string")),
         ["How much is the {item}?", "What does the {item} cost?", "I want to buy a {item}. What "
         "is "
          "the price?"], dict(item=thing), dict(price=price), f"The {thing} costs {price} coins."),
        (("send_message", "Send a message to a person.", schema(to="string", text="string")),
         ["Tell {to}: {text}", "Send this to {to}: {text}", "Write to {to}: {text}"],
         dict(to=name, text=rng.choice([f"I am in {city}.", f"Meet me at the {place}.",
                                        f"Bring the {thing}."])), dict(sent=True),
         f"I sent the message to {name}."),
        (("get_time", "Get the local time of a city.", schema(city="string")),
         ["What time is it in {city}?", "Tell me the time in {city}."], dict(city=city),
         dict(time=clock), f"It is {clock} in {city}."),
        (("find_route", "Find a route between two cities.", schema(start="string", end="string")),
         ["How do I get from {start} to {end}?", "Find a way from {start} to {end}."],
         dict(start=city, end=other), dict(hours=m), f"It takes {m} hours from {city} to {other}."),
        (("look_up_word", "Get the meaning of a word.", schema(word="string")),
         ["What does {word} mean?", "Look up the word {word}."], dict(word=word),
         dict(meaning=f"something that is {word}"), f"It means something that is {word}."),
        (("play_music", "Play a piece of music.", schema(title="string")),
         ["Play {title}.", "I want to hear {title}."],
         dict(title=f"the {word} {rng.choice(ANIMALS)}"), dict(playing=True), "Here it is."),
    ]


def as_tool(case):
    name, description, parameters = case[0]
    return {"name": name, "description": description, "parameters": parameters}


def tool_task(rng):
    cases = tool_cases(rng)
    case = rng.choice(cases)
    others = rng.sample([c for c in cases if c is not case], rng.randrange(0, 4))
    tools = [as_tool(c) for c in others + [case]]
    rng.shuffle(tools)
    if others and rng.random() < 0.15:  # nothing fits: answer in words
        tools = [as_tool(c) for c in others]
        messages = small_talk(rng, 1)
        return {"kind": "tool_none", "tools": tools, "messages": messages}
    args, result, answer = case[2], case[3], case[4]
    ask = rng.choice(case[1]).format(**args)
    messages = [user(ask), assistant("", calls=[{"name": case[0][0], "arguments": args}])]
    if rng.random() < 0.75:
        messages += [{"role": "tool", "content": json.dumps(result)}, assistant(answer)]
    return {"kind": "tool", "tools": tools, "messages": messages}


# ---- small talk --------------------------------------------------------------------------------

TALK = [
    ("Hello!|Hi|Hi there|Hey|Good morning|Good evening|Hello, how are you?|Hey, what's up?",
     "Hello! How can I help you?|Hi! What would you like to talk about?|Hello! I am glad you are "
     "here. What can I do for you?"),
    ("Who are you?|What are you?|What is your name?|Tell me about yourself.|Who am I talking to?",
     "I am ember, a very small language model. I was trained to show how sparse attention "
     "works.|My "
     "name is ember. I am a tiny language model. I can chat and find things in long texts."),
    ("Thank you!|Thanks a lot.|Thanks!|That helped, thank you.|Thank you very much.",
     "You are welcome!|I am glad I could help.|My pleasure!"),
    ("Goodbye.|Bye!|See you later.|Good night.|I have to go now.",
     "Goodbye! Have a nice day.|Bye! Come back soon.|See you next time!"),
    ("What can you do?|How can you help me?|Help|What are you good at?",
     "I can find facts in long texts, look up values in lists, copy, count, sort, write JSON, call "
     "tools, and talk a little."),
    ("Tell me a joke.|Do you know a joke?|Make me laugh.|Say something funny.",
     "Why did the bee go to school? Because it wanted to be a spelling bee!|What do you call a "
     "bear "
     "with no teeth? A gummy bear!|Why did the clock get up early? It wanted to be on time."),
    ("Are you a human?|Are you real?|Are you a robot?|Are you alive?",
     "No, I am a small computer program that writes text.|I am not a human. I am a language "
     "model."),
    ("I am sad.|I feel bad today.|I had a bad day.|I am lonely.",
     "I am sorry to hear that. Do you want to tell me what happened?|That sounds hard. I am here "
     "if "
     "you want to talk."),
    ("I am happy today!|I had a great day.|I feel good.|Today is a good day.",
     "That is wonderful! What made your day so good?|I am happy to hear that!"),
    ("Is it raining?|What day is it today?|What time is it?|What is the weather like?",
     "I cannot see that from here. You would have to look for yourself.|I do not know. I have no "
     "window and no clock."),
    ("Do you like {animal}s?|What do you think about {animal}s?",
     "I have never met a {animal}, but I like stories about them.|Yes, I do. Do you have a "
     "{animal}?"),
    ("My name is {name}.|I am {name}.|Call me {name}.",
     "Nice to meet you, {name}!|Hello, {name}! How can I help you?"),
    ("I am bored.|What should I do today?|I have nothing to do.",
     "You could read a book or take a walk.|How about drawing a {animal}? Or we can talk."),
    ("I am hungry.|What should I eat?|What is good for dinner?",
     "How about some {food}?|I cannot eat, but many people like {food}."),
    ("Can you help me?|I have a question.|I need help.",
     "Of course. What do you need?|Yes, please tell me what it is."),
    ("Who made you?|Where do you come from?|How were you trained?",
     "I was trained from scratch on old books, dialogues and exercises, in less than half an "
     "hour.|I "
     "come from a short training run on one machine."),
    ("Do you sleep?|Do you dream?|What do you do all day?",
     "No, I only run when somebody writes to me.|I wait for questions. That is all I do."),
    ("What is the meaning of life?|Why are we here?|What is love?",
     "That is too big a question for such a small model.|I do not know, but it is a good "
     "question."),
]
STORIES = [
    "Once there was a {adj} {animal} who lived near the {place}. One day the {animal} found a "
    "{thing}. "
    "\"Whose {thing} is this?\" it asked. It went from house to house until it met {name}. "
    "\"That is "
    "my {thing}!\" said {name}. {name} was so glad that they had {food} together, and they were "
    "friends from that day on.",
    "{name} and the {animal} went to the {place}. It was a {adj} day. There they saw a {color} "
    "{thing} "
    "under a tree. {name} wanted to take it, but the {animal} said, \"Let us wait. Somebody may "
    "come "
    "back for it.\" Soon an old {job} came and thanked them. They all walked home happily.",
    "A {adj} {animal} wanted to see {city}. It packed some {food} and a {thing} and walked for "
    "three "
    "days. On the way it met {name}, a {job}, who showed it the road. When they came to {city}, "
    "the "
    "{animal} said, \"It is beautiful, but I like my {place} better.\" And so it went home again.",
    "Long ago there was a {job} called {name}. {name} had only one {color} {thing}. One night a "
    "{animal} took it away. {name} followed it to the {place} and said, \"Please give it back.\" "
    "The "
    "{animal} was sorry. It gave back the {thing}, and {name} gave it some {food}.",
]
STORY_ASK = ["Tell me a story.", "Tell me a story about a {animal}.", "Can you tell a short story?",
             "Write a story about {name} and a {animal}.", "I want to hear a story about a "
             "{thing}.",
             "Tell a story about a {animal} and a {thing}."]


def fill(rng):
    return {"animal": rng.choice(ANIMALS), "name": rng.choice(NAMES), "food": rng.choice(FOODS),
            "thing": rng.choice(THINGS), "place": rng.choice(PLACES), "adj": rng.choice(ADJECTIVES),
            "color": rng.choice(COLORS), "city": rng.choice(CITIES), "job": rng.choice(JOBS)}


MEMORY = [("favorite color", COLORS), ("favorite food", FOODS), ("home town", CITIES),
          ("favorite animal", ANIMALS), ("job", JOBS), ("best friend's name", NAMES)]


def small_talk(rng, turns=None):
    """A few turns; what was told in one may be asked for in a later one."""
    messages, memory = [], []
    for _ in range(turns or rng.randrange(1, 6)):
        words = fill(rng)
        p = rng.random()
        if memory and p < 0.45:
            q, a = memory.pop(rng.randrange(len(memory)))
        elif p < 0.2:
            what, pool = rng.choice(MEMORY)
            v = rng.choice(pool)
            q = rng.choice([f"My {what} is {v}.", f"You should know that my {what} is {v}."])
            a = rng.choice([f"Good to know. Your {what} is {v}.", f"I will remember that: {v}."])
            memory.append((rng.choice([f"What is my {what}?", f"Do you remember my {what}?"]),
                           f"Your {what} is {v}."))
        elif p < 0.3:
            q, a = rng.choice(STORY_ASK).format(**words), rng.choice(STORIES).format(**words)
        else:
            qs, answers = rng.choice(TALK)
            q = rng.choice(qs.split("|"))
            if "{name}" in q:
                memory.append((rng.choice(["What is my name?", "Do you remember my name?"]),
                               f"Your name is {words['name']}."))
            q, a = q.format(**words), rng.choice(answers.split("|")).format(**words)
        messages += [user(q), assistant(a)]
    return messages


def short_task(rng):
    kind = rng.choices(["arithmetic", "lists", "json", "world", "tool", "talk"], [2, 3, 3, 1, 4,
                                                                                  4])[0]
    if kind == "tool":
        return tool_task(rng)
    if kind == "talk":
        row = {"kind": kind, "messages": small_talk(rng)}
    else:
        make = {"arithmetic": arithmetic, "lists": lists, "json": json_task, "world": world}[kind]
        q, a, why = make(rng)
        why = why if rng.random() < 0.5 else None
        row = {"kind": kind, "messages": [user(q), assistant(a, why)]}
    if rng.random() < 0.1:
        system = rng.choice(["You are a helpful assistant.", "You are ember, a small assistant.",
                             "Answer in short sentences.", "Be kind and brief."])
        row["messages"].insert(0, {"role": "system", "content": system})
    return row


if __name__ == "__main__":
    demo = random.Random(0)
    prose = ["The old man walked slowly down the road.", "It was a cold day.", "The bell rang."]
    for make, _ in LONG_TASKS:
        print(json.dumps(make(demo, 300, filler=lambda r, n: list(prose) * 3))[:600])
    for _ in range(8):
        print(json.dumps(short_task(demo))[:400])
