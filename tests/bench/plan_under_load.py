#!/usr/bin/env python3
"""Compares the memory plan with what the server really takes when its whole pool has been used.

  tests/bench/plan_under_load.py [build/release/gaze] [--model DIR] [gaze options ...]

Starts the server, fills every KV page with distinct prompts from as many clients as sequences run
at once, and prints planned and resident bytes. Exit code 1: they differ by more than 3 %.
"""
import json
import subprocess
import sys
import threading
import time
import urllib.request

ALLOWED_PERCENT = 3
PORT = 18471
URL = f"http://127.0.0.1:{PORT}"


def post(body):
    data = json.dumps(body).encode()
    request = urllib.request.Request(URL + "/v1/completions", data,
                                     {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=600) as answer:
        return json.load(answer)


def wait_ready(server):
    for _ in range(600):
        try:
            urllib.request.urlopen(URL + "/health", timeout=5).close()
            return
        except OSError:
            if server.poll() is not None:
                sys.exit(f"the server ended with code {server.returncode}")
            time.sleep(0.05)
    sys.exit("the server is not ready after 30 s")


def resident_bytes(pid):
    with open(f"/proc/{pid}/status", encoding="utf-8") as f:
        line = next(x for x in f if x.startswith("VmRSS:"))
    return int(line.split()[1]) * 1024


def main():
    args = sys.argv[1:]
    gaze = args.pop(0) if args and not args[0].startswith("-") else "build/release/gaze"
    options = args or ["--model", "config/models/ember"]
    plan = json.loads(subprocess.check_output([gaze, "plan", "--json"] + options))
    server = subprocess.Popen([gaze, "serve", "--port", str(PORT), "--log-level", "warn"] + options,
                              stdin=subprocess.DEVNULL)
    try:
        wait_ready(server)
        length = min(plan["max_context"] // 2, 8192)
        clients = plan["max_seqs"]
        total = plan["kv_tokens"] * 5 // 4 // length + 1
        lock, state = threading.Lock(), {"next": 0, "failed": 0}

        def client():
            while True:
                with lock:
                    mine, state["next"] = state["next"], state["next"] + 1
                if mine >= total:
                    return
                prompt = [10 + (mine * 7919 + i * 31) % 200 for i in range(length)]
                try:
                    post({"prompt": prompt, "max_tokens": 64, "ignore_eos": True, "temperature": 0})
                except OSError as e:
                    with lock:
                        state["failed"] += 1
                    print(f"request {mine}: {e}", file=sys.stderr)

        threads = [threading.Thread(target=client) for _ in range(clients)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        resident, planned = resident_bytes(server.pid), plan["total_bytes"]
        off = (resident - planned) * 100 / planned
        print(f"planned {planned / 2**20:.1f} MiB, resident {resident / 2**20:.1f} MiB after {total} "
              f"prompts of {length} tokens from {clients} clients: {off:+.2f} % "
              f"(at most {ALLOWED_PERCENT} allowed), {state['failed']} failed")
        return int(abs(off) > ALLOWED_PERCENT or state["failed"] > 0)
    finally:
        server.terminate()
        server.wait(30)


sys.exit(main())
