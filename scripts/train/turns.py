"""What every task is made of: turns, random strings, and places in a context."""
import string

ABSENT = "It is not in the list."


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


def first_up(text):
    return text[:1].upper() + text[1:]
