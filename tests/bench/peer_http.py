#!/usr/bin/env python3
"""The rows that llama.cpp was measured by over HTTP, with the same shape; its numbers beside ours.

  tests/bench/peer_http.py [build/release/gaze]

Server and clients share the machine. A target is a ratio to the peer's number: 1.5 for decode and
for prefill of short prompts, 4 for prefill behind 16K of context.
"""
import json
import sys
import time

from served import SMALL, Server, Stream, ids, percentile, request, target, watch

RUNS, TOKENS = 5, 256
PEER_DECODE = {1: 1071, 4: 1588, 16: 1875}
PEER_TTFT = {1: 11, 4: 33, 16: 111}


def decode(server, n):
    rates, firsts = [], []
    for run in range(RUNS):
        streams = [Stream(server, prompt=ids(100, 1000 * n + 20 * run + i), max_tokens=TOKENS)
                   for i in range(n)]
        watch(streams)
        first = [x.times[0] for x in streams]
        firsts += [(x.times[0] - x.begun) * 1e3 for x in streams]
        # all streams together, from the moment when half of them have begun
        rates.append(n * (TOKENS - 1) / (max(x.ended for x in streams) - percentile(first, 0.5)))
    rate, ttft = percentile(rates, 0.5), percentile(firsts, 0.5)
    print("decode over HTTP, %2d streams: %.0f tokens/s (%.0f..%.0f), peer %d; first token after "
          "%.1f ms, peer %d" % (n, rate, min(rates), max(rates), PEER_DECODE[n], ttft,
                                PEER_TTFT[n]))
    target("decode over HTTP, %d streams, against llama.cpp's %d tokens/s" % (n, PEER_DECODE[n]),
           rate / PEER_DECODE[n], "x", at_least=1.5)


def prefill(server, context, n, peer, factor):
    """Of n tokens behind a context that the cache holds."""
    rates = []
    for run in range(RUNS):
        prompt = ids(context + n, 77 + run)
        if context:
            server.complete(prompt=prompt[:context], max_tokens=1, temperature=0)
        begun = time.monotonic()
        got = server.complete(prompt=prompt, max_tokens=1, temperature=0)
        took = time.monotonic() - begun
        new = len(prompt) - got["usage"]["prompt_tokens_details"]["cached_tokens"]
        rates.append(new / took)
    rate = percentile(rates, 0.5)
    print("prefill over HTTP, %d tokens behind %d: %.0f tokens/s (%.0f..%.0f), peer %d" % (
        n, context, rate, min(rates), max(rates), peer))
    target("prefill over HTTP of %d tokens behind %d against llama.cpp's %d tokens/s" % (
        n, context, peer), rate / peer, "x", at_least=factor)


def small_answers(server):
    with server.connect() as s:
        ms = []
        for _ in range(300):
            begun = time.monotonic()
            server.ask(request("/v1/models"), s)
            ms.append((time.monotonic() - begun) * 1e3)
        print("GET /v1/models: median %.2f ms, p95 %.2f; peer 0.18, 0.63" % (
            percentile(ms, 0.5), percentile(ms, 0.95)))
        body = request("/v1/chat/completions", {
            "messages": [{"role": "user", "content": "Hello there, how are you today?"}],
            "max_tokens": 1, "temperature": 0})
        ms = []
        for _ in range(100):
            begun = time.monotonic()
            status, text = server.ask(body, s)
            if status != 200:
                sys.exit(json.loads(text))
            ms.append((time.monotonic() - begun) * 1e3)
        print("chat of one token, prompt as before: median %.2f ms, p95 %.2f; peer 3.1, 8.0" % (
            percentile(ms, 0.5), percentile(ms, 0.95)))


def main():
    gaze = sys.argv[1] if len(sys.argv) > 1 else "build/release/gaze"
    options = ("--model", SMALL, "--load", "dummy", "--max-context")
    for seqs, peer in ((4, 98), (16, 193)):
        with Server(gaze, *options, "4096", "--max-seqs", str(seqs)) as server:
            print("resident when idle, %d sequences of 4096: %.0f MiB, peer %d" % (
                seqs, server.resident_mib(), peer))
    with Server(gaze, *options, "20480") as server:
        small_answers(server)
        for n in PEER_DECODE:
            decode(server, n)
        prefill(server, 0, 1420, 1666, 1.5)
        prefill(server, 4096, 512, 589, 1.5)
        prefill(server, 16384, 512, 165, 4)


main()
