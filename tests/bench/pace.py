#!/usr/bin/env python3
"""Pace over HTTP: what a long prompt does to others, and how long a short one waits beside two.

  tests/bench/pace.py [build/release/gaze]

Four streams decode; then a prompt of 100,000 tokens is computed beside them: their p99 between
tokens stays within twice what it was. Two prompts of 50,000 tokens are computed beside a stream; a
request of 20 tokens gets its first token within the time of five of that stream's steps.
"""
import sys
import time

from served import LongModel, Server, Stream, gaps_ms, ids, percentile, target, watch

LONG, HALF, SHORT, ASKS = 100000, 50000, 20, 15


def long_prompt(server):
    streams = [Stream(server, prompt=ids(64, i), max_tokens=60000) for i in range(4)]
    watch(streams, lambda: all(x.times for x in streams))
    quiet = time.monotonic()
    watch(streams, lambda: time.monotonic() > quiet + 8)
    begun = time.monotonic()
    whole = Stream(server, prompt=ids(LONG, 50), max_tokens=1)
    watch(streams + [whole], lambda: whole.ended)
    done = whole.ended
    before = [g for x in streams for g in gaps_ms(x, quiet, begun)]
    beside = [g for x in streams for g in gaps_ms(x, begun, done)]
    for x in streams:
        x.s.close()
    print("4 streams alone for %.0f s: %.2f ms between tokens, p99 %.2f" % (
        begun - quiet, percentile(before, 0.5), percentile(before, 0.99)))
    print("beside a prompt of %d tokens, %.1f s: %.2f ms between tokens, p99 %.2f" % (
        LONG, done - begun, percentile(beside, 0.5), percentile(beside, 0.99)))
    target("p99 between tokens beside a prompt of 100,000 tokens, of p99 without",
           percentile(beside, 0.99) / percentile(before, 0.99), "x", at_most=2)


def short_prompt(server):
    steps, waits = [], []
    stream = Stream(server, prompt=ids(64, 9), max_tokens=60000)
    halves = [Stream(server, prompt=ids(HALF, 60 + i), max_tokens=1) for i in range(2)]
    time.sleep(0.5)
    all_ = [stream] + halves
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
    steps = gaps_ms(stream, begun)
    stream.s.close()
    for x in halves:
        if not x.ended:
            x.s.close()
    step, wait = percentile(steps, 0.5), percentile(waits, 0.5)
    print("beside two prompts of %d tokens: %.2f ms a decode step; a request of %d tokens has its "
          "first token after %.2f ms (%.2f..%.2f, %d of them)" % (
              HALF, step, SHORT, wait, min(waits), max(waits), len(waits)))
    target("first token of a 20-token request beside two prompts of 50,000, in decode steps",
           wait / step, "steps", at_most=5)


def main():
    gaze = sys.argv[1] if len(sys.argv) > 1 else "build/release/gaze"
    with LongModel() as model, Server(gaze, "--model", model, "--load", "dummy", "--max-context",
                                      "110000", "--max-seqs", "8", "--kv-memory",
                                      "3GiB") as server:
        short_prompt(server)
        long_prompt(server)


main()
