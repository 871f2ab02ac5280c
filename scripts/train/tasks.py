"""Synthetic tasks: unlimited, seeded, written for this model.

A generator gives {"kind", "messages", "tools"?}. Long ones fill a context of about `size`
characters and ask many questions about it: each answer is a supervised look-up, so one long row
teaches as much as dozens of short ones. `spread` places the asked facts evenly over the depth (for
evaluation), and `held` switches to key types, wordings, and facts that training never sees. Tables
are in tables.py; the forms of facts in fact_forms.py.
"""
import json
import random

from fact_forms import forms
from tables import table
from turns import assistant, depths, first_up, user
from words import ADJECTIVES, ANIMALS, CITIES, COLORS, FOODS, JOBS, NAMES, PLACES, THINGS

# ---- facts hidden in prose ---------------------------------------------------------------------

def insert(paragraphs, depth, line, inside=False):
    """Puts a line where `depth` of the characters has gone by, between two paragraphs or, inside,
    at the end of one."""
    goal = depth * sum(map(len, paragraphs))
    at = 0
    while at < len(paragraphs) and goal > len(paragraphs[at]) / 2:
        goal -= len(paragraphs[at])
        at += 1
    if inside and at:
        paragraphs[at - 1] += " " + line
    else:
        paragraphs.insert(at, line)


def facts(rng, size, filler, questions=4, spread=False, held=False):
    """Sentences of a few forms in prose; the question says if a word or a sentence is wanted."""
    paragraphs = filler(rng, size)
    formed = forms(rng, filler.words, spread, held)
    known = []
    for i, d in enumerate(depths(rng, questions, spread)):
        form, ask, subjects, value = formed[i % len(formed)]
        used = {k[1] for k in known if k[0] == form}
        left = [s for s in subjects if s not in used]
        if left:
            known.append((form, rng.choice(left), value(rng), ask, subjects, d))
    for form, s, v, _, _, d in sorted(known, key=lambda k: -k[5]):
        line = first_up(form.format(s=s, v=v))
        insert(paragraphs, d, line, not spread and rng.random() < 0.25)
    asked = []
    for form, s, v, ask, subjects, d in known:
        sentence = not spread and rng.random() < 0.25
        if not spread and rng.random() < 0.03:
            used = {k[1] for k in known if k[0] == form}
            s = rng.choice([x for x in subjects if x not in used] or [s])
            v = v if s in used else None
        if v is None:
            asked.append((ask.format(s=s), "The text does not say.", d))
        elif sentence:
            asked.append((ask.format(s=s) + " Answer with the whole sentence.",
                          first_up(form.format(s=s, v=v)), d))
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


AFTER = ['Which four words follow "{w}"?', 'How does it go on after "{w}"?', 'Continue: "{w}"',
         '"{w}" - and then?', 'After "{w}" come which words?']


def quote(rng, size, filler, questions=2, spread=False, held=False):
    """Copy a paragraph, named by its number or by its first words, or a few words after others."""
    paragraphs = [p for p in filler(rng, size) if 30 < len(p) < 500] or ["This is the end of it."]
    numbered = rng.random() < 0.4
    words = [p.split() for p in paragraphs if len(p.split()) > 10]
    if words and not numbered and rng.random() < 0.6:
        text, messages = "\n\n".join(paragraphs), []
        for j in range(questions):
            w = rng.choice(words)
            i = rng.randrange(4, len(w) - 5)
            q = rng.choice(AFTER).format(w=" ".join(w[i - 4: i]))
            messages += [user(q if j else text + "\n\n" + q), assistant(" ".join(w[i: i + 4]))]
        return {"kind": "quote", "messages": messages}
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


LONG_TASKS = [(table, 5), (facts, 4), (chain, 1), (quote, 1)]


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


def free_json(rng):
    """An object of any few names and values, told in one of several ways."""
    pools = [NAMES, CITIES, THINGS, PLACES, COLORS, ANIMALS, FOODS, JOBS]
    names = rng.sample(THINGS + FOODS + ANIMALS + ["size", "price", "count", "owner", "color",
                                                   "weight", "title", "year", "kind", "number"],
                       rng.randrange(1, 6))
    out = {n: rng.randrange(1000) if rng.random() < 0.4 else rng.choice(rng.choice(pools))
           for n in names}
    joint, between = rng.choice([(" is ", ", "), ("=", " "), (": ", "; "), (" = ", ", "),
                                 (" ", ", "), (": ", "\n")])
    told = between.join(f"{k}{joint}{v}" for k, v in out.items())
    q = rng.choice(["Write this as a JSON object: ", "As JSON: ", "Make a JSON object of this. ",
                    "Put this into JSON: "])
    return q + told, json.dumps(out), None


def json_task(rng):
    if rng.random() < 0.25:
        return free_json(rng)
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


TOOL_VERBS = ("clean lock fix move sell rent fill wash hide count ship cook water trim tow weigh "
              "pack print scan store check start stop lift build feed teach hire call repair "
              "reserve order deliver measure sort test share draw wrap burn heat cool turn").split()
PARAMETERS = [
    ("city", "in {v}", CITIES), ("name", "for {v}", NAMES), ("color", "in {v}", COLORS),
    ("place", "at the {v}", PLACES), ("job", "by a {v}", JOBS), ("food", "with {v}", FOODS),
    ("animal", "near the {v}", ANIMALS), ("kind", "of the {v} kind", ADJECTIVES),
    ("times", "{v} times", None), ("amount", "up to {v}", None), ("hour", "at {v} o'clock", None),
    ("days", "for {v} days", None), ("pieces", "in {v} pieces", None)]


def made_up_tool(rng):
    """A case like those of tool_cases() for a tool that hardly ever comes twice."""
    verb, thing = rng.choice(TOOL_VERBS), rng.choice(THINGS + ANIMALS + FOODS)
    args, types, said = {}, {}, []
    for name, way, pool in rng.sample(PARAMETERS, rng.choice([0, 1, 1, 2, 3])):
        args[name] = rng.choice(pool) if pool else rng.randrange(1, 100)
        types[name] = "string" if pool else "number"
        said.append(way.format(v=args[name]))
    if not args or rng.random() < 0.3:  # the thing itself is an argument
        which = rng.choice(["thing", "item", "what", "object", "target"])
        args[which], types[which], name = thing, "string", rng.choice(
            [verb, f"{verb}_{which}", f"do_{verb}"])
    else:
        name = rng.choice([f"{verb}_{thing}", f"{verb}_the_{thing}", f"{verb}{thing.capitalize()}"])
    rng.shuffle(said)
    ask = " ".join([rng.choice([verb, verb, "please " + verb, "could you " + verb,
                                "I want you to " + verb, "now " + verb]),
                    rng.choice(["the", "a", "my", "our", "this"]), thing, *said])
    ask = first_up(ask).replace("{", "").replace("}", "") + rng.choice([".", ".", "!", ""])
    description = rng.choice([f"{first_up(verb)} a {thing}.", f"{first_up(verb)} something.",
                              f"Use this to {verb} things."])
    done, good = rng.choice([("ok", True), ("done", True), ("state", "done"), ("ok", False)])
    answer = "That did not work." if good is False else rng.choice(["Done.", "It is done.",
                                                                  f"The {thing} is taken care of."])
    return ((name, description, schema(**types)), [ask], args, {done: good}, answer)


def tool_task(rng):
    cases = tool_cases(rng)
    if rng.random() < 0.45:
        cases = [made_up_tool(rng) for _ in range(4)] + rng.sample(cases, 3)
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
    from corpora import Filler
    demo = random.Random(0)
    prose = Filler(["The old man walked slowly down the road.", "It was a cold day."] * 8)
    for make, _ in LONG_TASKS:
        print(json.dumps(make(demo, 300, filler=prose))[:600])
    for _ in range(8):
        print(json.dumps(short_task(demo))[:400])
