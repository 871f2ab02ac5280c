"""Numbers from samples: quantiles, summaries, goodput, throughput, the comparison of two runs."""

from __future__ import annotations

from array import array

METRICS = (  # key, name, unit, which way is better (-1: lower)
    ("ttft_ms", "time to first token", "ms"),
    ("itl_ms", "inter-token latency", "ms"),
    ("tpot_ms", "time per output token", "ms"),
    ("e2e_ms", "end-to-end latency", "ms"),
)
CURVE = [float(p) for p in range(0, 100)] + [99.5, 99.9, 100.0]


def quantile(ordered, share):
    """Of sorted values, by linear interpolation between the two nearest ranks."""
    if not ordered:
        return None
    at = share * (len(ordered) - 1)
    low = int(at)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (at - low)


def summary(values):
    """n, mean, min, p50, p90, p99, max, and the whole distribution as a curve of quantiles."""
    ordered = sorted(values)
    if not ordered:
        return {"n": 0}
    out = {"n": len(ordered), "mean": sum(ordered) / len(ordered),
           "min": ordered[0], "max": ordered[-1]}
    for p in (50, 90, 99):
        out["p%d" % p] = quantile(ordered, p / 100)
    out["curve"] = [quantile(ordered, p / 100) for p in CURVE]
    return out


class Sample:
    """One request of a stage: when it was meant to start, what was asked, what came."""

    __slots__ = ("client", "turn", "start", "asked_tokens", "answer", "tries", "left")

    def __init__(self, client, turn, start, asked_tokens):
        self.client = client
        self.turn = turn
        self.start = start   # open loop: the moment of arrival, so that a late client shows
        self.asked_tokens = asked_tokens
        self.answer = None
        self.tries = 1
        self.left = False    # we hung up on purpose, or the stage's end cut it

    @property
    def ok(self):
        return not self.left and self.answer.error is None

    @property
    def output_tokens(self):
        """What the server counted; where it does not say, the pieces that came."""
        counted = self.answer.output_tokens
        return self.answer.chunks if counted is None else counted

    def times_ms(self):
        """ttft, tpot and e2e of a request that was answered; None where there is no such time."""
        a = self.answer
        ttft = (a.first - self.start) * 1e3 if a.chunks else None
        tpot = None
        if a.chunks and self.output_tokens > 1 and a.last > a.first:
            tpot = (a.last - a.first) * 1e3 / (self.output_tokens - 1)
        return {"ttft_ms": ttft, "tpot_ms": tpot, "e2e_ms": (a.end - self.start) * 1e3}

    def gaps_ms(self):
        times = self.answer.times
        return [(times[i] - times[i - 1]) * 1e3 for i in range(1, len(times))]


def meets(sample, targets):
    """Does this request keep every target? The inter-token target is for its own mean gap."""
    times = sample.times_ms()
    gaps = sample.gaps_ms()
    times["itl_ms"] = sum(gaps) / len(gaps) if gaps else None
    return all(times[key] is None or times[key] <= limit for key, limit in targets.items())


def bins(samples, begin, end, n_bins):
    """Per slice of time: tokens/s, requests under way at some moment of it, ended, failed."""
    width = (end - begin) / n_bins
    tokens, ended = [0.0] * n_bins, [0] * n_bins
    failed, change = [0] * n_bins, [0] * (n_bins + 1)

    def slot(t):
        return min(n_bins - 1, max(0, int((t - begin) / width)))

    for s in samples:
        a = s.answer
        if a.times:
            weight = s.output_tokens / len(a.times)
            for t in a.times:
                if t <= end:
                    tokens[slot(t)] += weight
        elif s.ok and a.end <= end:
            tokens[slot(a.end)] += s.output_tokens
        change[slot(a.sent)] += 1
        if a.end <= end:
            change[slot(a.end) + 1] -= 1
            (ended if s.ok else failed)[slot(a.end)] += 1
    running, now = [], 0
    for i in range(n_bins):
        now += change[i]
        running.append(now)
    return {"seconds": [round((i + 0.5) * width, 3) for i in range(n_bins)],
            "tokens_per_s": [round(t / width, 2) for t in tokens],
            "running": running, "ended": ended, "failed": failed}


def window_tokens(sample, end):
    """Tokens of this request that had come by `end`."""
    a = sample.answer
    if a.times:
        by_end = sum(1 for t in a.times if t <= end)
        return sample.output_tokens * by_end / len(a.times)
    return sample.output_tokens if sample.ok and a.end <= end else 0


def stage_summary(samples, begin, end, targets, closed_loop):
    """All that is reported of one stage. The window [begin, end] is what throughput is counted in;
    latencies are of every request that was answered, also after the window."""
    seconds = max(end - begin, 1e-9)
    ok = [s for s in samples if s.ok]
    out = {"seconds": seconds, "begun": len(samples), "completed": len(ok),
           "left": sum(1 for s in samples if s.left)}
    errors, examples = {}, {}
    for s in samples:
        if not s.ok and not s.left:
            errors[s.answer.error] = errors.get(s.answer.error, 0) + 1
            if s.answer.message:
                examples.setdefault(s.answer.error, s.answer.message)
    out["failed"] = sum(errors.values())
    out["errors"] = errors
    out["error_examples"] = examples
    out["retried"] = sum(s.tries - 1 for s in samples)
    values = {key: array("d") for key, _, _ in METRICS}
    for s in ok:
        for key, value in s.times_ms().items():
            if value is not None:
                values[key].append(value)
        values["itl_ms"].extend(s.gaps_ms())
    for key in values:
        out[key] = summary(values[key])
    prompt = [s.answer.prompt_tokens for s in ok if s.answer.prompt_tokens is not None]
    cached = [s.answer.cached_tokens for s in ok if s.answer.cached_tokens is not None]
    out["tokens"] = {
        "prompt": sum(prompt), "cached": sum(cached),
        "output": sum(s.output_tokens for s in ok),
        "asked_output": sum(s.asked_tokens or 0 for s in ok),
        "prompt_length": plain(summary(prompt)),
        "output_length": plain(summary([s.output_tokens for s in ok])),
        "counted_by": "usage" if all(s.answer.output_tokens is not None for s in ok) else "pieces",
    }
    in_window = [s for s in ok if s.answer.end <= end]
    out_tokens = sum(window_tokens(s, end) for s in samples)
    in_tokens = sum(s.answer.prompt_tokens or 0 for s in in_window)
    out["throughput"] = {"requests_per_s": len(in_window) / seconds,
                         "output_tokens_per_s": out_tokens / seconds,
                         "total_tokens_per_s": (out_tokens + in_tokens) / seconds}
    if targets:
        good = [s for s in ok if meets(s, targets)]
        asked = len(samples) - out["left"]
        out["goodput"] = {
            "targets": targets, "share": len(good) / asked if asked else None,
            "requests_per_s": sum(1 for s in good if s.answer.end <= end) / seconds}
    turns = sorted({s.turn for s in ok})
    if len(turns) > 1:
        out["by_turn"] = [turn_summary(t, [s for s in ok if s.turn == t]) for t in turns]
    if closed_loop:
        shares = {}
        for s in samples:
            shares[s.client] = shares.get(s.client, 0) + window_tokens(s, end)
        ordered = sorted(shares.values())
        median = quantile(ordered, 0.5) or 0
        out["clients"] = {"n": len(ordered), "tokens_min": ordered[0] if ordered else 0,
                          "tokens_median": median,
                          "slowest_share": ordered[0] / median if median else None}
    out["series"] = bins(samples, begin, end, max(1, min(240, int(seconds))))
    return out


def turn_summary(turn, samples):
    ttft = [s.times_ms()["ttft_ms"] for s in samples if s.answer.chunks]
    prompt = sum(s.answer.prompt_tokens or 0 for s in samples)
    cached = sum(s.answer.cached_tokens or 0 for s in samples)
    return {"turn": turn + 1, "n": len(samples), "ttft_ms": plain(summary(ttft)),
            "prompt_tokens": prompt, "cached_tokens": cached}


def plain(s):
    """A summary without its curve, for what is never drawn."""
    return {k: v for k, v in s.items() if k != "curve"}


# What --compare looks at: name, path into a stage, 1 if more is better.
COMPARED = [("requests/s", ("throughput", "requests_per_s"), 1),
            ("output tokens/s", ("throughput", "output_tokens_per_s"), 1)]
COMPARED += [("%s %s, ms" % (name, p), (key, p), -1)
             for key, name, _ in METRICS for p in ("mean", "p50", "p90", "p99")]
COMPARED += [("goodput, share", ("goodput", "share"), 1), ("failed", ("failed",), -1)]


def dig(tree, path):
    for key in path:
        if not isinstance(tree, dict) or key not in tree:
            return None
        tree = tree[key]
    return tree


def compare(old, new, threshold=0.05):
    """Rows {stage, what, old, new, change, verdict} for the stages both runs have. change is
    new / old - 1; the verdict calls what lies beyond the threshold better or worse."""
    rows = []
    stages = {s["name"]: s for s in new["stages"]}
    for stage in old["stages"]:
        other = stages.get(stage["name"])
        if other is None:
            continue
        for what, path, sign in COMPARED:
            a, b = dig(stage, path), dig(other, path)
            if a is None or b is None:
                continue
            change = b / a - 1 if a else (0.0 if b == a else None)
            verdict = "same"
            if change is None or abs(change) > threshold:
                verdict = "better" if (b - a) * sign > 0 else "worse"
            rows.append({"stage": stage["name"], "what": what, "old": a, "new": b,
                         "change": change, "verdict": verdict})
    return rows
