"""The server on a GPU over HTTP, with the bundled model: whoever else runs, however a prompt is cut,
whatever was cached, the same request has the same bytes; and the CPU says the same.

    python3 tests/kernel/device_http.py GAZE [DEVICE]

Answers are compared with their log-probabilities, as the JSON has them. Against the CPU tokens must
agree while the two best lie further apart than twice the bound (both may move by it):

  fp32 latents and keys   2e-2 at worst, the goldens' bound, and 5e-3 root mean square
  deployed forms          twice what the CPU differs from itself, in the same run, with sums of fp32 in
                          another order (GAZE_SIMD=portable): sums differ by 1e-6, so some value of a
                          prompt lies on the border of two e4m3 codes and falls the other way, 2^-4 of
                          it; that moves later layers and tokens by 1e-3, which turns over one code in
                          sixty there, and some positions of selections. Two CPUs' orders (AVX-512,
                          AVX2) differ by 1.8e-1 at worst and 9.0e-3 root mean square over these 1444
                          tokens, but by 3.1e-4 and 1.3e-5 with fp32 forms. Twice: either difference is
                          one draw, and few answers make most of it.
"""
import concurrent.futures
import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request

TOKENS = 48
ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
WORDS = ("river stone copper lantern winter garden paper signal harbour meadow engine window letter "
         "bridge circle market").split()


def prompt_of(i, times=1):
    """Some short, some longer than several pages and than the small chunks; `times` as long."""
    n = times * [5, 30, 90, 200, 420, 700][i % 6] + i
    text = " ".join(WORDS[(i * 7 + k * k + 3 * k) % len(WORDS)] for k in range(n))
    return "Notes %d: %s.\nQuestion: which word came first?\nAnswer:" % (i, text)


class Server:
    def __init__(self, gaze, device, *flags, simd=None):
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            self.port = s.getsockname()[1]
        self.process = subprocess.Popen(
            [gaze, "serve", "--device", device, "--port", str(self.port), "--max-queued", "256",
             "--log-level", "warn", *flags], cwd=ROOT,
            env=dict(os.environ, **({"GAZE_SIMD": simd} if simd else {})))
        for _ in range(600):
            try:
                urllib.request.urlopen("http://127.0.0.1:%d/health" % self.port, timeout=5).read()
                break
            except OSError:
                if self.process.poll() is not None:
                    raise SystemExit("the server ended with %d" % self.process.returncode)
                time.sleep(0.05)
        else:
            raise SystemExit("the server does not become ready")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise SystemExit("the server does not end")
        if code:
            raise SystemExit("the server ended with %d" % code)

    def get(self, path):
        with urllib.request.urlopen("http://127.0.0.1:%d%s" % (self.port, path), timeout=60) as a:
            return json.load(a)

    def complete(self, prompt, sampled=0):
        body = {"model": "ember", "prompt": prompt, "max_tokens": TOKENS, "logprobs": 2,
                "temperature": 0.8 if sampled else 0, "seed": sampled, "ignore_eos": True}
        ask = urllib.request.Request("http://127.0.0.1:%d/v1/completions" % self.port,
                                     json.dumps(body).encode(),
                                     {"Content-Type": "application/json"})
        with urllib.request.urlopen(ask, timeout=120) as a:
            answer = json.load(a)
        cached = (answer["usage"].get("prompt_tokens_details") or {}).get("cached_tokens", 0)
        return answer["choices"][0], cached

    def all(self, prompts, at_once):
        with concurrent.futures.ThreadPoolExecutor(at_once) as pool:
            return list(pool.map(lambda p: self.complete(p[1], p[0] % 2 * (p[0] + 1)),
                                 enumerate(prompts)))


FAILED = []


def check(what, fine, note=""):
    print("%s %s%s" % ("ok  " if fine else "FAIL", what, "  (%s)" % note if note else ""), flush=True)
    if not fine:
        FAILED.append(what)


def same(what, have, want):
    differ = [i for i, (a, b) in enumerate(zip(have, want)) if a[0] != b[0]]
    check(what, len(have) == len(want) and not differ,
          "%d of %d answers differ" % (len(differ), len(want)))


def distance(have, want, bound):
    """(tokens compared, the worst difference, its root mean square, the first token that must not
    differ or None) of greedy rows alone: sampled ones part where a draw falls between two sums."""
    worst, squares, compared = 0.0, 0.0, 0
    for (a, _), (b, _) in zip(have[::2], want[::2]):
        a, b = a["logprobs"], b["logprobs"]
        for t, u, p, q, top in zip(a["tokens"], b["tokens"], a["token_logprobs"],
                                   b["token_logprobs"], b["top_logprobs"]):
            best = sorted(top.values(), reverse=True)
            if t != u and len(best) > 1 and best[0] - best[1] <= 2 * bound:
                break
            if t != u:
                return compared, worst, 0.0, "token %r, the CPU has %r" % (t, u)
            worst, compared = max(worst, abs(p - q)), compared + 1
            squares += (p - q) ** 2
    return compared, worst, (squares / max(compared, 1)) ** 0.5, None


def as_the_cpu(have, want, worst, rms):
    compared, d, square, token = distance(have, want, worst)
    return (not token and d <= worst and square <= rms and compared > 100,
            token or "%d tokens, worst %.1e of %.1e, rms %.1e of %.1e" %
            (compared, d, worst, square, rms))


FAST = ["--precision", "fast"]  # what a CPU computes in; a Hopper GPU would choose fp8


def main():
    gaze, device = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "cuda"
    prompts = [prompt_of(i) for i in range(64)]
    with Server(gaze, device, "--max-seqs", "64", "--precision", "fp8") as s:
        alone = s.all(prompts, 1)
    with Server(gaze, device, "--max-seqs", "64", "--precision", "fp8", "--prefix-cache", "off",
                "--prefill-tokens", "37") as s:
        same("fp8: 64 at once, in chunks of 37, as alone", s.all(prompts, 64), alone)
    long = [prompt_of(i, 5) for i in (4, 5, 10, 11)]
    chunks = ["--precision", "fp8", "--prefix-cache", "off", "--prefill-tokens"]
    with Server(gaze, device, *chunks, "2048") as s:
        alone = s.all(long, 1)
    with Server(gaze, device, *chunks, "512") as s:
        same("fp8: long prompts in chunks of 512 as of 2048", s.all(long, 4), alone)
    with Server(gaze, device, "--max-seqs", "64", *FAST) as s:
        name = s.get("/version")["backend"]
        check("the back end is the GPU's", name.startswith("cuda:"), name)
        alone = s.all(prompts, 1)
        hit = s.all(prompts, 1)
        check("the second time prompts are cached", any(c for _, c in hit) and
              not alone[0][1], "%d tokens" % sum(c for _, c in hit))
        same("cache hit as miss", hit, alone)
    with Server(gaze, device, "--max-seqs", "64", "--prefix-cache", "off", *FAST) as s:
        begun = time.time()
        among = s.all(prompts, 64)
        same("64 at once as alone", among, alone)
        print("     64 requests at once: %.2f s" % (time.time() - begun))
    with Server(gaze, device, "--max-seqs", "64", "--prefix-cache", "off", "--prefill-tokens",
                "37", *FAST) as s:
        same("prompts in chunks of 37 as in one", s.all(prompts, 64), alone)
    with Server(gaze, "cpu", "--max-seqs", "64", *FAST) as s:
        cpu = s.all(prompts, 16)
    with Server(gaze, "cpu", "--max-seqs", "64", *FAST, simd="portable") as s:
        _, worst, rms, _ = distance(s.all(prompts, 16), cpu, math.inf)
    check("as the CPU, deployed forms", *as_the_cpu(alone, cpu, 2 * worst, 2 * rms))
    plain = ["--max-seqs", "16", "--kv", "f32", "--index", "exact", *FAST]
    with Server(gaze, device, *plain) as s:
        have = s.all(prompts[:24], 16)
    with Server(gaze, "cpu", *plain) as s:
        check("as the CPU, fp32 forms", *as_the_cpu(have, s.all(prompts[:24], 16), 2e-2, 5e-3))
    return 1 if FAILED else 0


if __name__ == "__main__":
    sys.exit(main())
