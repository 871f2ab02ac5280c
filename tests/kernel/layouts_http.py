"""The server on several GPUs over HTTP, with the bundled model, in each layout: the answers of one
GPU, the same bytes twice, a load with clients that leave at any moment, and an end within 10 s when a
rank is lost.

    python3 tests/kernel/layouts_http.py GAZE SECONDS [cpu]

SECONDS of load are shared out among the layouts. One line of JSON a layout.

The answers of one GPU: its bytes, but where --tp cuts sums the goldens' bound with fp32 latents and
keys. FP8 ones would turn other sums into other codes (device_http.py says how far that goes: 1.9e-2
was seen here), which says nothing about the layout.
"""
import json
import os
import random
import sys
import threading
import time
import urllib.request

import device_http
from device_http import FAST, Server, as_the_cpu, check, prompt_of, same

LAYOUTS = [["--tp", "2"], ["--tp", "2", "--comm", "nccl"],
           ["--dp", "2"], ["--dp", "2", "--ep", "2"], ["--dp", "2", "--split", "1:1"]]
CLIENTS, MOST_SEQS = 24, 32
LOST_S = 10.0  # the time in which a server whose rank is gone must have ended
EXIT_LOST = 5


class Load:
    """Clients that stream; two of five leave after some chunks. Those that stay must be told the end,
    and greedy answers to a prompt must be the same each time."""

    def __init__(self, port, seconds):
        self.port, self.until = port, time.time() + seconds
        self.lock, self.first = threading.Lock(), {}
        self.whole = self.left = self.chunks = self.differ = 0
        self.errors = []

    def ask(self, rng):
        i, n = rng.randrange(40), rng.randrange(8, 160)
        body = {"model": "ember", "prompt": prompt_of(i), "max_tokens": n, "temperature": 0,
                "stream": True, "ignore_eos": True}
        leave = rng.randrange(1, n) if rng.random() < 0.4 else None
        request = urllib.request.Request("http://127.0.0.1:%d/v1/completions" % self.port,
                                         json.dumps(body).encode(),
                                         {"Content-Type": "application/json"})
        text, done, chunks = "", False, 0
        with urllib.request.urlopen(request, timeout=120) as answer:
            for line in answer:
                if not line.startswith(b"data: "):
                    continue
                if line.strip() == b"data: [DONE]":
                    done = True
                    break
                event = json.loads(line[6:])
                if "error" in event:
                    raise RuntimeError(str(event["error"]))
                for choice in event["choices"]:
                    text += choice["text"]
                chunks += 1
                if chunks == leave:
                    break
        with self.lock:
            self.chunks += chunks
            if leave is not None and not done:
                self.left += 1
                return
            self.whole += 1
            if not done:
                self.errors.append("a stream ended without [DONE]")
            seen = self.first.setdefault(i, text)
            short = min(len(seen), len(text))
            self.differ += seen[:short] != text[:short]
            self.first[i] = max(seen, text, key=len)

    def client(self, seed):
        rng = random.Random(seed)
        while time.time() < self.until:
            try:
                self.ask(rng)
            except (OSError, RuntimeError, ValueError) as e:
                with self.lock:
                    self.errors.append(repr(e))
                if len(self.errors) > 20:
                    return

    def run(self):
        clients = [threading.Thread(target=self.client, args=(s,)) for s in range(CLIENTS)]
        for c in clients:
            c.start()
        for c in clients:
            c.join()


def metric(port, name):
    with urllib.request.urlopen("http://127.0.0.1:%d/metrics" % port, timeout=30) as a:
        lines = a.read().decode().splitlines()
    return sum(float(x.rsplit(" ", 1)[1]) for x in lines if x.startswith(name))


def idle(port):
    """Nothing runs, waits or holds a page, within two seconds."""
    held = []
    for _ in range(40):
        held = [metric(port, n) for n in ("vllm:num_requests_running", "vllm:num_requests_waiting",
                                          'gaze_kv_pages{model_name="ember",state="used"}')]
        if not any(held):
            return True, held
        time.sleep(0.05)
    return False, held


def lost(gaze, device, flags):
    """Seconds from the loss of a rank to the end of the process, its code, and what clients saw."""
    os.environ["GAZE_FAULT"] = "worker.rank:40"
    try:
        server = Server(gaze, device, *flags)
        del os.environ["GAZE_FAULT"]
        begun, seen = time.time(), []
        for i in range(200):
            try:
                server.complete(prompt_of(i % 40))
            except (OSError, ValueError, KeyError) as e:
                seen.append(getattr(e, "code", type(e).__name__))
                break
        code = server.process.wait(LOST_S + 20)
        return time.time() - begun, code, seen
    finally:
        os.environ.pop("GAZE_FAULT", None)


def main():
    gaze, seconds, device = sys.argv[1], float(sys.argv[2]), (sys.argv + ["cuda"])[3]
    prompts = [prompt_of(i) for i in range(24)]
    common = ["--max-seqs", str(MOST_SEQS), *FAST]
    plain = [*common, "--kv", "f32", "--index", "exact"]
    layouts = [x for x in LAYOUTS if device != "cpu" or "--comm" not in x]
    with Server(gaze, device, *common) as s:
        alone = s.all(prompts, 8)
    with Server(gaze, device, *plain) as s:
        alone_plain = s.all(prompts, 8)
    for layout in layouts:
        name = " ".join(layout)
        if "--tp" in layout:
            with Server(gaze, device, *plain, *layout) as s:
                check(name + ": as one GPU",
                      *as_the_cpu(s.all(prompts, 8), alone_plain, 2e-2, 5e-3))
        with Server(gaze, device, *common, *layout) as s:
            once = s.all(prompts, 8)
            if "--tp" not in layout:
                same(name + ": as one GPU", once, alone)
            same(name + ": the same twice, one at a time", s.all(prompts, 1), once)
            load = Load(s.port, seconds / len(layouts))
            load.run()
            free, held = idle(s.port)
            row = {"layout": name, "seconds": round(seconds / len(layouts), 1),
                   "streams": load.whole, "left": load.left, "chunks": load.chunks,
                   "differ": load.differ, "errors": load.errors[:3], "held": held}
            print(json.dumps(row), flush=True)
            check(name + ": load", free and not load.errors and not load.differ and load.whole > 20)
        took, code, seen = lost(gaze, device, [*common, *layout])
        check(name + ": a lost rank ends the server", code == EXIT_LOST,
              "code %s, clients saw %s, %.1f s after its start" % (code, seen, took))
    return 1 if device_http.FAILED else 0


if __name__ == "__main__":
    sys.exit(main())
