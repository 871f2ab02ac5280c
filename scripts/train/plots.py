"""Plots of a model's eval/*.json and of the training log, as SVG, with the standard library alone.

    python3 plots.py MODEL_DIR [train.jsonl]
"""
import json
import math
import os
import sys
from html import escape

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 640, 380, 62, 150, 40, 46
INKS = ["#1b6ca8", "#d1495b", "#2e8b57", "#c58b1b", "#6a4c93", "#4a4a4a", "#e07a5f", "#3d8f9d"]


def ticks(low, high, n=5):
    step = 10 ** math.floor(math.log10((high - low) / n))
    step = next(s * step for s in (1, 2, 5, 10, 20) if (high - low) / (s * step) <= n)
    first = math.ceil(low / step - 1e-9) * step
    return [round(first + i * step, 10) for i in range(int((high - first) / step + 1e-9) + 1)]


def chart(title, x_name, y_name, series, x_labels=None, low=None, high=None, log_x=False):
    """series: {name: [(x, y), ...]}. x_labels: {x: text} for the marks of the x axis."""
    points = [p for s in series.values() for p in s if p[1] is not None]
    xs, ys = [p[0] for p in points], [p[1] for p in points]
    y0 = min(ys) if low is None else low
    y1 = max(ys) if high is None else high
    y1 = y1 if y1 > y0 else y0 + 1
    fx = (lambda v: math.log2(v)) if log_x else (lambda v: v)
    x0, x1 = fx(min(xs)), fx(max(xs))
    x1 = x1 if x1 > x0 else x0 + 1

    def at(x, y):
        return (LEFT + (fx(x) - x0) / (x1 - x0) * (WIDTH - LEFT - RIGHT),
                HEIGHT - BOTTOM - (min(max(y, y0), y1) - y0) / (y1 - y0) * (HEIGHT - TOP - BOTTOM))

    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
           f'font-family="sans-serif" font-size="12">',
           f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
           f'<text x="{LEFT}" y="22" font-size="15" font-weight="bold">{escape(title)}</text>']
    for y in ticks(y0, y1):
        py = at(min(xs), y)[1]
        out.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{py:.1f}" y2="{py:.1f}" '
                   f'stroke="#ddd"/><text x="{LEFT - 6}" y="{py + 4:.1f}" '
                   f'text-anchor="end">{y:g}</text>')
    marks = x_labels or {x: f"{x:g}" for x in ticks(min(xs), max(xs))}
    for x, label in marks.items():
        px = at(x, y0)[0]
        out.append(f'<text x="{px:.1f}" y="{HEIGHT - BOTTOM + 17}" '
                   f'text-anchor="middle">{escape(str(label))}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    out.append(f'<text x="{middle}" y="{HEIGHT - 8}" text-anchor="middle">{escape(x_name)}</text>')
    out.append(f'<text transform="translate(15 {HEIGHT / 2}) rotate(-90)" '
               f'text-anchor="middle">{escape(y_name)}</text>')
    for i, (name, s) in enumerate(series.items()):
        ink = INKS[i % len(INKS)]
        path = [at(x, y) for x, y in s if y is not None]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in path)
        out.append(f'<polyline points="{line}" fill="none" stroke="{ink}" stroke-width="2"/>')
        if len(path) < 24:
            out += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{ink}"/>' for x, y in path]
        y = TOP + 10 + 19 * i
        x = WIDTH - RIGHT + 10
        out.append(f'<line x1="{x}" x2="{x + 18}" y1="{y}" y2="{y}" stroke="{ink}" '
                   f'stroke-width="3"/><text x="{x + 24}" y="{y + 4}">{escape(name)}</text>')
    return "\n".join(out + ["</svg>", ""])


def size_name(n):
    return f"{n // 1024}K" if n >= 1024 else str(n)


def main(path, log=None):
    folder = os.path.join(path, "eval")

    def read(name):
        file = os.path.join(folder, name + ".json")
        if not os.path.exists(file):
            return {}
        with open(file) as f:
            return json.load(f)

    def save(name, svg):
        with open(os.path.join(folder, name + ".svg"), "w", encoding="utf-8") as f:
            f.write(svg)

    table = read("retrieval")
    for kind, title in (("table_held", "Look-up in a table: unseen keys and wordings"),
                        ("facts_held", "Facts in unseen prose: unseen facts"),
                        ("table", "Look-up in a table: trained key types"),
                        ("facts", "Facts in unseen prose: trained kinds")):
        series = {}
        for length, modes in table.get(kind, {}).items():
            for mode, r in modes.items():
                if r:
                    series.setdefault(mode, []).append((int(length), 100 * r["accuracy"]))

        def order(mode):
            return math.inf if mode == "dense" else int(mode.split("-")[1])

        series = {m: sorted(series[m]) for m in sorted(series, key=order)}
        if series:
            lengths = sorted({x for s in series.values() for x, _ in s})
            worst = min(y for s in series.values() for _, y in s)
            save("retrieval_" + kind, chart(
                title, "context, tokens", "answers right, %", series,
                {n: size_name(n) for n in lengths}, max(0, worst - 3), 100, True))
        for length, modes in table.get(kind, {}).items():
            if length == "32768":
                by = {m: [(5 + 10 * i, 100 * y) for i, y in enumerate(r["by_depth"])
                          if y is not None] for m, r in modes.items() if r}
                save("depth_" + kind, chart(
                    title + ", by depth, 32K", "depth of the fact, % of the context",
                    "answers right, %", {m: by[m] for m in sorted(by, key=order)}, None, 0, 100))
    found = read("recall")
    series = {}
    for length, by_k in found.items():
        for k, r in by_k.items():
            if k == "256":
                name = size_name(int(length))
                series[f"indexer, {name}"] = [(i, 100 * y) for i, y in enumerate(r["indexer"])]
                series[f"best, {name}"] = [(i, 100 * y) for i, y in enumerate(r["oracle"])]
    if series:
        save("recall", chart("Dense attention inside the top 256, by layer", "layer",
                             "share of the attention, %", series, None, 0, 100))
    if log:
        losses, checks = {}, []
        with open(log) as f:
            for line in f:
                e = json.loads(line)
                if e.get("what") == "check":
                    checks.append(e)
                if e.get("what") == "step":
                    losses.setdefault(e["stage"], []).append(
                        (e["tokens"] / 1e6, e["loss"], e["seconds"], e.get("index_loss")))
        with open(os.path.join(folder, "losses.json"), "w") as f:
            json.dump({s: [[round(x, 2) if isinstance(x, float) else x for x in e[:2]]
                           for e in v] for s, v in losses.items()}, f)
            f.write("\n")
        with open(os.path.join(folder, "checks.json"), "w") as f:
            f.write("[\n" + ",\n".join(json.dumps(c) for c in checks) + "\n]\n")
        for kind in ("table", "table_held", "facts_held"):
            series = {}
            for c in checks:  # the last of each stage
                points = [(int(k.rsplit("_", 1)[1]), 100 * v) for k, v in c.items()
                          if k.rsplit("_", 1)[0] == kind]
                if points:
                    series[c["stage"]] = sorted(points)
            if series:
                lengths = sorted({x for s in series.values() for x, _ in s})
                save("checks_" + kind, chart(
                    f"Look-ups during training: {kind}", "context, tokens", "answers right, %",
                    series, {n: size_name(n) for n in lengths}, 0, 100, True))
        for stage, entries in losses.items():
            s = {"loss": [(e[0], e[1]) for e in entries[1:] or entries]}
            if stage == "warmup":
                s = {f"layer {i}": [(e[0], e[3][i]) for e in entries if e[3]]
                     for i in range(len(entries[0][3] or []))}
            y_name = "KL, nats" if stage == "warmup" else "nats a token"
            save("loss_" + stage, chart(f"Stage {stage}", "million tokens", y_name, s))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:3]))
