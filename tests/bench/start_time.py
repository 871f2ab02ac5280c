#!/usr/bin/env python3
"""Start to first answered request with the bundled model, as a client that asks at once sees it.

  tests/bench/start_time.py [build/release/gaze]
"""
import subprocess
import sys
import time

from served import free_port, percentile, request, target
import socket

RUNS, MODEL = 15, "config/models/ember"


def once(gaze):
    port = free_port()
    begun = time.monotonic()
    p = subprocess.Popen([gaze, "serve", "--model", MODEL, "--port", str(port), "--log-level",
                          "warn"], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    body = request("/v1/completions", {"prompt": "Once", "max_tokens": 1, "temperature": 0})
    try:
        while p.poll() is None:
            try:
                with socket.create_connection(("127.0.0.1", port), timeout=20) as s:
                    s.sendall(body)
                    if s.recv(4096).startswith(b"HTTP/1.1 200"):
                        return (time.monotonic() - begun) * 1e3
            except OSError:
                pass
            time.sleep(0.002)
        sys.exit("the server ended with code %d" % p.returncode)
    finally:
        p.terminate()
        p.wait()


def main():
    gaze = sys.argv[1] if len(sys.argv) > 1 else "build/release/gaze"
    ms = [once(gaze) for _ in range(RUNS)]
    print("start to first answered request, %d runs: median %.0f ms (%.0f..%.0f)" % (
        RUNS, percentile(ms, 0.5), min(ms), max(ms)))
    target("start to first answered request, ember", percentile(ms, 0.5) / 1e3, "s", at_most=0.3)


main()
