#!/usr/bin/env python3
"""Pace over HTTP: what a long prompt does to others, and how long a short one waits beside two.

  tests/bench/pace.py [build/release/gaze] [--long TOKENS] [--half TOKENS]

Four streams decode; then a prompt of 100,000 tokens is computed beside them: their p99 between
tokens stays within twice what it was. Two prompts of 50,000 tokens are computed beside four
streams; a request of 20 tokens gets its first token within the time of five of their steps. (Beside
one stream, too, for comparison: its step can take less time than four rows of a prompt.) The first
nine tenths of long prompts are cached before, so what is measured is their end, which costs most.
Other lengths make a quicker look.
"""
import argparse
import sys
import time

from served import LongModel, Server, Stream, gaps_ms, ids, percentile, target, watch

SHORT, ASKS = 20, 15


def prompt(length, i, salt=0):
    """A prompt whose last tenth is new for another salt."""
    return ids(length - length // 10, 60 + i) + ids(length // 10, 70 + i + salt)


def long_prompt(server, length):
    watch([Stream(server, prompt=prompt(length, 2), max_tokens=1)])
    streams = [Stream(server, prompt=ids(64, i), max_tokens=60000) for i in range(4)]
    watch(streams, lambda: all(x.times for x in streams))
    quiet = time.monotonic()
    watch(streams, lambda: time.monotonic() > quiet + 8)
    begun = time.monotonic()
    whole = Stream(server, prompt=prompt(length, 2, 100), max_tokens=1)
    watch(streams + [whole], lambda: whole.ended)
    done = whole.ended
    before = [g for x in streams for g in gaps_ms(x, quiet, begun)]
    beside = [g for x in streams for g in gaps_ms(x, begun, done)]
    for x in streams:
        x.s.close()
    print("4 streams alone for %.0f s: %.2f ms between tokens, p99 %.2f" % (
        begun - quiet, percentile(before, 0.5), percentile(before, 0.99)))
    print("beside the end of a prompt of %d tokens, %.1f s: %.2f ms between tokens, p99 %.2f" % (
        length, done - begun, percentile(beside, 0.5), percentile(beside, 0.99)))
    target("p99 between tokens beside a prompt of %s tokens, of p99 without" % format(length, ","),
           percentile(beside, 0.99) / percentile(before, 0.99), "x", at_most=2)


def short_prompt(server, length, n):
    waits = []
    streams = [Stream(server, prompt=ids(64, 9 + i), max_tokens=60000) for i in range(n)]
    halves = [Stream(server, prompt=prompt(length, i, 100 + n), max_tokens=1) for i in range(2)]
    time.sleep(0.5)
    all_ = streams + halves
    begun = time.monotonic()
    for k in range(ASKS):
        if any(x.ended for x in halves):
            break
        short = Stream(server, prompt=ids(SHORT, 500 + k), max_tokens=1)
        watch(all_ + [short], lambda: short.times)
        waits.append((short.times[0] - short.begun) * 1e3)
        watch(all_ + [short], lambda: short.ended)
        until = time.monotonic() + 0.2
        watch(all_, lambda: time.monotonic() > until)
    steps = [g for x in streams for g in gaps_ms(x, begun)]
    for x in streams:
        x.s.close()
    for x in halves:
        if not x.ended:
            x.s.close()
    step, wait = percentile(steps, 0.5), percentile(waits, 0.5)
    print("%d streams beside the ends of two prompts of %d tokens: %.2f ms a decode step; a request of "
          "%d tokens has its first token after %.2f ms (%.2f..%.2f, %d of them)" % (
              n, length, step, SHORT, wait, min(waits), max(waits), len(waits)))
    return wait / step


def main():
    p = argparse.ArgumentParser(description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("gaze", nargs="?", default="build/release/gaze")
    p.add_argument("--long", type=int, default=100000, help="0: leave this part out")
    p.add_argument("--half", type=int, default=50000, help="0: leave this part out")
    a = p.parse_args()
    with LongModel() as model, Server(a.gaze, "--model", model, "--load", "dummy", "--max-context",
                                      "110000", "--max-seqs", "8", "--kv-memory",
                                      "3GiB") as server:
        if a.half:
            for i in range(2):  # all but the end, which costs most, is cached from here on
                watch([Stream(server, prompt=prompt(a.half, i), max_tokens=1)])
            short_prompt(server, a.half, 1)
            value = short_prompt(server, a.half, 4)
            target("first token of a %d-token request beside two prompts of %s, in decode steps of 4 "
                   "streams" % (SHORT, format(a.half, ",")), value, "steps", at_most=5)
        if a.long:
            long_prompt(server, a.long)


main()
