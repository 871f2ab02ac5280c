"""Forms of facts: a sentence with places for a subject {s} and a value {v}, and its question.

FACTS are fixed and stand for the trained kinds in the evaluation; FACTS_HELD are for the
evaluation alone (magic words, ships and their loads, minutes of walking, trees and planets stay out
of what is composed). random_fact() composes one from parts, among them any words of the prose, so
that what is learned is to find the sentence that the question speaks of.
"""
from tables import random_format
from turns import digits, first_up, letters
from words import (ADJECTIVES, ANIMALS, CITIES, COLORS, JOBS, NAMES, PLACES, PLANETS_HELD, THINGS,
                   TREES_HELD)

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
    ("The train to {s} leaves from platform {v}.",
     "From which platform does the train to {s} leave?", CITIES, digits, 2),
    ("There are {v} steps to the {s}.", "How many steps are there to the {s}?", PLACES, digits, 3),
    ("The {s} is kept in box {v}.", "In which box is the {s} kept?", THINGS, digits, 4),
]
FACTS_HELD = [
    ("The magic word of {s} happens to be {v}.", "What is the magic word of {s}?", PLANETS_HELD,
     letters, 5),
    ("Ship number {v} carries a load of {s} wood.", "Which ship number carries {s} wood?",
     TREES_HELD, digits, 5),
    ("It takes {v} minutes to walk to the {s}.",
     "How many minutes does it take to walk to the {s}?", PLACES, digits, 3),
]
NOUNS = (
    "code number badge locker ticket key pin seat gate bus mailbox account license part order "
    "flight room cabin bed shelf jar channel page tag label lot score price weight height age "
    "record rank size speed nickname title sign letter song date sum limit share debt prize "
    "address answer motto row track level street door line team grade brand color name"
).split()
UNITS = "hours days weeks years coins men horses pounds nails buckets miles boards".split()
FRAMES = [
    ("{n} {v} was chosen for {s}.", "Which {n} was chosen for {s}?"),
    ("{s} has the {n} {v}.", "Which {n} does {s} have?"),
    ("They gave the {n} {v} to {s}.", "Which {n} did they give to {s}?"),
    ("Somebody asked for {n} {v} because of {s}.",
     "Which {n} did somebody ask for because of {s}?"),
    ("You will find {s} under {n} {v}.", "Under which {n} will you find {s}?"),
    ("I wrote down {n} {v} for {s}.", "Which {n} did I write down for {s}?"),
    ("{n} {v} belongs to {s}.", "Which {n} belongs to {s}?"),
    ("In the book, {s} came with the {n} {v}.", "With which {n} did {s} come in the book?"),
    ("Long ago {s} won the {n} {v}.", "Which {n} did {s} win long ago?"),
    ("With {s} goes the {n} {v}.", "Which {n} goes with {s}?"),
    ("The {n}, {v}, came from {s}.", "Which {n} came from {s}?"),
    ("{n} {v} goes past {s}.", "Which {n} goes past {s}?"),
    ("On the {n} of {s} you can read {v}.", "What can you read on the {n} of {s}?"),
    ("{v} is what they call the {n} of {s}.", "What do they call the {n} of {s}?"),
    ("They call {s} by the {n} {v}.", "By which {n} do they call {s}?"),
]
COPULAS = [("is", "is"), ("is", "is"), ("is", "is"), ("was", "was"), ("reads", None),
           ("turned out to be", None), ("used to be", None), ("seems to be", None),
           ("is known to be", "is known to be"), ("was set to", "was set to"),
           ("had become", None), ("equals", None), ("must be", "must be"), ("came out as", None),
           ("is thought to be", None), ("remains", None), ("is still", None), ("stayed", None)]
VERBS = [  # base, past (also the participle), third person
    ("find", "found", "finds"), ("bring", "brought", "brings"), ("keep", "kept", "keeps"),
    ("lose", "lost", "loses"), ("sell", "sold", "sells"), ("buy", "bought", "buys"),
    ("send", "sent", "sends"), ("paint", "painted", "paints"), ("count", "counted", "counts"),
    ("clean", "cleaned", "cleans"), ("follow", "followed", "follows"), ("hold", "held", "holds"),
    ("watch", "watched", "watches"), ("visit", "visited", "visits"), ("build", "built", "builds"),
    ("mend", "mended", "mends"), ("open", "opened", "opens"), ("close", "closed", "closes"),
    ("move", "moved", "moves"), ("need", "needed", "needs"), ("pass", "passed", "passes"),
    ("reach", "reached", "reaches"), ("serve", "served", "serves"), ("teach", "taught", "teaches"),
    ("touch", "touched", "touches"), ("use", "used", "uses"), ("want", "wanted", "wants"),
    ("cross", "crossed", "crosses"), ("feed", "fed", "feeds"), ("guard", "guarded", "guards"),
    ("join", "joined", "joins"), ("lift", "lifted", "lifts"), ("mark", "marked", "marks"),
    ("order", "ordered", "orders"), ("pull", "pulled", "pulls"), ("push", "pushed", "pushes"),
    ("wash", "washed", "washes"), ("catch", "caught", "catches"), ("like", "liked", "likes"),
    ("cover", "covered", "covers"), ("lead", "led", "leads"), ("meet", "met", "meets"),
]
PREPOSITIONS = "in near behind under above beside around outside inside before by".split()
OPENERS = ["They say that {x}", "As everyone knew, {x}", "In those days {x}", "Remember: {x}",
           "It is a fact that {x}", "By the way, {x}", "Note that {x}", "I heard that {x}",
           "Strange as it is, {x}", "Nobody knew that {x}", "So {x}", "And {x}",
           "{x} Or so they say.", "{x} Nobody knew why.", "{x} That was all."]
ASKERS = ["Tell me: {q}", "{q} Answer shortly.", "According to the text: {q}", "I forgot. {q}",
          "{q} Look in the text.", "Now, {q}", "{q} Give the answer only.", "One question. {q}",
          "{q} It is written above.", "Please answer. {q}"]


def relation(rng, words):
    """What a fact tells of its subject: "code", "old code", "ticket number", "harbor thing"."""
    p, noun = rng.random(), rng.choice(NOUNS)
    if p < 0.4:
        return noun
    if p < 0.55:
        return f"{rng.choice(ADJECTIVES)} {noun}"
    if p < 0.7:
        return f"{rng.choice(NOUNS)} {noun}"
    return rng.choice(words) if p < 0.85 else f"{rng.choice(words)} {noun}"


def subjects_of(rng, words):
    some = rng.sample(words, min(len(words), 80))
    return rng.choice([
        NAMES, CITIES, ["the " + x for x in PLACES], ["the " + x for x in THINGS],
        [f"the {c} {x}" for c in COLORS for x in rng.sample(THINGS, 6)],
        [f"the {a} {x}" for a in ADJECTIVES for x in rng.sample(ANIMALS, 4)],
        [f"{x} the {rng.choice(JOBS)}" for x in NAMES], ["the " + x for x in some],
        [x.capitalize() for x in some], [f"{a} {b}" for a, b in zip(some, reversed(some))]])


def named(rng, r):
    """A noun phrase for relation r of a subject, and the one that the question uses."""
    ways = [f"the {r} of {{s}}", f"the {r} of {{s}}", f"the {r} for {{s}}", f"{{s}}'s {r}",
            f"the {r} given to {{s}}", f"the {r} that belongs to {{s}}"]
    one = rng.choice(ways)
    return one, rng.choice(ways) if rng.random() < 0.2 else one


def random_fact(rng, words):
    """A form like those of FACTS: (sentence, question, subjects, maker of values)."""
    r, kind = relation(rng, words), rng.randrange(10)
    base, past, third = rng.choice(VERBS)
    near = rng.choice(PREPOSITIONS)
    many = rng.choice([rng.choice(UNITS), rng.choice(THINGS) + "s", rng.choice(ANIMALS) + "s"])
    counts = 6 <= kind <= 8
    if kind < 3:
        phrase, asked = named(rng, r)
        link, same = rng.choice(COPULAS)
        sentence = f"{phrase} {link} {{v}}." if rng.random() < 0.85 else f"{{v}} is {phrase}."
        question = f"What is {asked}?"
        if same and rng.random() < 0.3:
            head, _, tail = same.partition(" ")
            question = f"What {head} {asked} {tail}?".replace(" ?", "?")
    elif kind == 3:
        sentence, question = f"{{s}} {past} the {r} {{v}}.", f"Which {r} did {{s}} {base}?"
    elif kind == 4:
        extra = rng.choice(["", "", f"a {rng.choice(THINGS)} of ", f"the {rng.choice(words)} of ",
                            f"all {many} of "])
        sentence, question = f"{r} {{v}} {third} {extra}{{s}}.", f"Which {r} {third} {{s}}?"
    elif kind == 5:
        sentence, question = f"{r} of {{s}}: {{v}}.", f"What is the {r} of {{s}}?"
    elif kind == 6:
        sentence = rng.choice([f"{{s}} {past} {{v}} {many}.", f"{{s}} {past} just {{v}} {many}."])
        question = f"How many {many} did {{s}} {base}?"
    elif kind == 7:
        sentence, question = rng.choice([
            (f"{{v}} {many} were {past} {near} {{s}}.",
             f"How many {many} were {past} {near} {{s}}?"),
            (f"there are {{v}} {many} {near} {{s}}.", f"How many {many} are there {near} {{s}}?"),
            (f"there are {{v}} {many} {near} {{s}}.", f"How many {many} are {near} {{s}}?")])
    elif kind == 8:
        unit, cost = rng.choice(UNITS), rng.choice(["take", "need", "cost"])
        to = f"{base} {rng.choice(['', near + ' '])}{{s}}"
        sentence = f"it {cost}s {{v}} {unit} to {to}."
        question = f"How many {unit} does it {cost} to {to}?"
    else:
        sentence, question = (x.replace("{n}", r) for x in rng.choice(FRAMES))
    if rng.random() < 0.2:
        sentence = rng.choice(OPENERS).replace("{x}", sentence)
    if rng.random() < 0.15:
        question = rng.choice(ASKERS).replace("{q}", question)
    value = (lambda v: digits(v, v.randrange(1, 5))) if counts else random_format(rng, words)
    return first_up(sentence), first_up(question), subjects_of(rng, words), value


def forms(rng, words, spread, held):
    """The forms of the facts of one context."""
    if held or spread or rng.random() < 0.12:
        n = 1 if rng.random() < 0.4 else 2 + held
        return [(f, q, subjects, lambda r, make=make, n=n: make(r, n))
                for f, q, subjects, make, n in rng.sample(FACTS_HELD if held else FACTS, n)]
    return [random_fact(rng, words) for _ in range(rng.choice([1, 1, 2, 3]))]
