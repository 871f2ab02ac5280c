"""What a node of N GPUs would do with DeepSeek-V3.2: one rank's share is timed here, full width and as
many layers as fit, and what its ranks would send each other is added as modelled time.

    python3 tests/bench/node_model.py GAZE [--device cuda:0] [--json FILE] [what gaze bench takes]

Shares: tp8 (heads, widths and vocabulary cut over 8: all streams are the node's) and ep8 (dp 8 ep 8:
each rank has streams of its own). Model of the time, none of it hidden behind work:

    step = median of the cut depth, times the layers left out (head and sampling, too) + communication
    tp8: two all_reduces of rows * hidden * 4 B a layer, and the parts of the logits to the first rank
    ep8: an exchange of rows to their experts' ranks, FP8 (hidden + scales, 4 B for 128 values), to as
         many ranks as a row's 8 experts are on when they are spread evenly; and one back, fp32, for
         each expert of a row: parallel_step_traffic() (engine/model/parallel.c), which tests compare

A call's time is what two H200s measured for the bytes that leave a rank
(results/comm_h200_x2.jsonl, the "device" rows, straight lines between them); with N ranks (N - 1) / N of
what a rank holds leaves it, and the latency, the time of the smallest call, is taken log2(N) times.
"""
import argparse
import json
import math
import os
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
SHAPES = {"deepseek-v3.2": dict(layers=61, dense=3, hidden=7168, vocab=129280, experts=8),
          "deepseek-v2-lite": dict(layers=27, dense=1, hidden=2048, vocab=102400, experts=6)}
FP8_BYTES = 1 + 4 / 128  # of a value that travels to an expert


def measured(op, path=os.path.join(HERE, "results/comm_h200_x2.jsonl")):
    """[(bytes that leave a rank, microseconds)] of two ranks, by size."""
    best = {}
    with open(path, encoding="utf-8") as f:
        for line in f:
            row = json.loads(line)
            if row["op"] == op and row["kind"] == "device" and row["ranks"] == 2:
                leaves = row["bytes"] * (1.0 if op == "all_reduce" else 0.5)
                best[leaves] = min(row["us"], best.get(leaves, row["us"]))
    return sorted(best.items())


def call_us(op, leaves, n):
    """One call in which `leaves` bytes leave each of n ranks."""
    rows = measured(op)
    latency = rows[0][1]
    if leaves <= rows[0][0]:
        us = latency
    else:
        for (b0, t0), (b1, t1) in zip(rows, rows[1:]):
            if leaves <= b1:
                break
        us = t0 + (t1 - t0) * (leaves - b0) / (b1 - b0)  # beyond the last one: along its line
    return us + latency * (math.log2(n) - 1)


def traffic(m, tp, ep, rows, out, value_bytes):
    """parallel_step_traffic() of a layout with tp ranks in a group and ep parts, one rank each."""
    t = dict(n_sums=0, sum_bytes=0.0, logits_bytes=0.0, n_exchanges=0, dispatch_bytes=0.0,
             combine_bytes=0.0)
    if tp > 1:
        t["n_sums"] = 2 * m["layers"]
        t["sum_bytes"] = t["n_sums"] * rows * m["hidden"] * 4.0
        t["logits_bytes"] = out * m["vocab"] / tp * 4.0 if m["vocab"] % tp == 0 else 0.0
    if ep > 1:
        parts = ep * (1 - (1 - 1 / ep) ** m["experts"])
        t["n_exchanges"] = m["layers"] - m["dense"]
        each = t["n_exchanges"] * rows / tp * m["hidden"]
        t["dispatch_bytes"] = each * parts * value_bytes
        t["combine_bytes"] = each * m["experts"] * 4.0
    return t


def comm_ms(m, kind, n, rows, out):
    t = traffic(m, n if kind == "tp" else 1, n if kind == "ep" else 1, rows, out, FP8_BYTES)
    us = 0.0
    if t["n_sums"]:
        us += t["n_sums"] * call_us("all_reduce", t["sum_bytes"] / t["n_sums"] * 2 * (n - 1) / n, n)
    if t["logits_bytes"]:
        us += call_us("all_to_all", t["logits_bytes"], n)
    for part in ("dispatch_bytes", "combine_bytes"):
        if t["n_exchanges"]:
            us += t["n_exchanges"] * call_us("all_to_all", t[part] / t["n_exchanges"] * (n - 1) / n, n)
    return us / 1000


def predict(m, share, row):
    """The node's step from one rank's row of gaze bench --json."""
    kind, n = share[:2], int(share[2:])
    prompt = row["case"] == "prefill"
    rows = row["context"] if prompt else row["streams"]
    comm = comm_ms(m, kind, n, rows, 1 if prompt else rows)
    step = row["scaled_ms"] + comm
    return dict(row, share=share, ranks=n, comm_ms=round(comm, 3), step_ms=round(step, 3),
                node_tokens_per_s=round(rows * (n if kind == "ep" else 1) / step * 1000, 1))


def main():
    p = argparse.ArgumentParser()
    p.add_argument("gaze")
    p.add_argument("--device", default="cuda:0")
    p.add_argument("--shape", default="deepseek-v3.2", choices=sorted(SHAPES))
    p.add_argument("--shares", default="tp8,ep8")
    p.add_argument("--json", help="a file for the rows")
    a, rest = p.parse_known_args()
    rows = []
    print("%-5s %-8s %8s %8s %7s %10s %9s %9s %12s"
          % ("share", "case", "streams", "context", "path", "rank_ms", "comm_ms", "step_ms", "node_tok/s"))
    for share in a.shares.split(","):
        command = [a.gaze, "bench", "--device", a.device, "--model-shape", a.shape, "--rank-share",
                   share, "--json"] + rest
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        for line in done.stdout.splitlines():
            if line.startswith("{"):
                r = predict(SHAPES[a.shape], share, json.loads(line))
                rows.append(r)
                print("%-5s %-8s %8d %8d %7s %10.2f %9.2f %9.2f %12.0f" % (
                    share, r["case"], r["streams"], r["context"], r["path"], r["scaled_ms"],
                    r["comm_ms"], r["step_ms"], r["node_tokens_per_s"]))
            else:
                print(line)
        sys.stdout.flush()
    if a.json:
        with open(a.json, "w", encoding="utf-8") as f:
            for r in rows:
                f.write(json.dumps(dict(r, command=" ".join(sys.argv))) + "\n")


if __name__ == "__main__":
    main()
