#!/usr/bin/env python3
"""Decode of the small shape alone, and while another process keeps one of the cores busy.

  tests/bench/busy_core.py [build/release/gaze]

One core of n less is a share of 1 / n; llama.cpp, whose threads spin at barriers, keeps a fifth to
a tenth of its tokens.
"""
import os
import re
import subprocess
import sys

from served import SMALL, target


def rates(gaze):
    text = subprocess.check_output(
        [gaze, "bench", "--model", SMALL, "--load", "dummy", "--contexts", "16", "--modes",
         "sparse", "--repeats", "9"], text=True)
    return {int(m[1]): float(m[2]) for m in re.finditer(
        r"^decode +(\d+) +16 +sparse +[\d.]+ +[\d.]+ +(\d+)", text, re.M)}


def main():
    gaze = sys.argv[1] if len(sys.argv) > 1 else "build/release/gaze"
    alone = rates(gaze)
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        beside = rates(gaze)
    finally:
        busy.kill()
        busy.wait()
    for n, rate in alone.items():
        print("decode, %2d sequences: %.0f tokens/s alone, %.0f beside a busy process: %.2f" % (
            n, rate, beside[n], beside[n] / rate))
    print("%d CPUs" % os.cpu_count())
    target("decode beside a busy process, of decode alone, worst of 1, 4, 16 sequences",
           min(beside[n] / alone[n] for n in alone), "", at_least=0.3)


main()
