"""Results for people: the table on the terminal, the HTML page, the comparison."""

from __future__ import annotations

from html import escape

from .stats import CURVE, METRICS, dig
from .svg import bar_chart, line_chart

# The stage table's columns: heading, path into a stage, format.
COLUMNS = (
    ("stage", ("name",), "%s"), ("done", ("completed",), "%d"), ("failed", ("failed",), "%d"),
    ("req/s", ("throughput", "requests_per_s"), "%.2f"),
    ("tok/s", ("throughput", "output_tokens_per_s"), "%.1f"),
    ("TTFT mean", ("ttft_ms", "mean"), "%.1f"), ("p50", ("ttft_ms", "p50"), "%.1f"),
    ("p90", ("ttft_ms", "p90"), "%.1f"), ("p99", ("ttft_ms", "p99"), "%.1f"),
    ("ITL mean", ("itl_ms", "mean"), "%.2f"), ("p50", ("itl_ms", "p50"), "%.2f"),
    ("p90", ("itl_ms", "p90"), "%.2f"), ("p99", ("itl_ms", "p99"), "%.2f"),
    ("TPOT mean", ("tpot_ms", "mean"), "%.2f"), ("p50", ("tpot_ms", "p50"), "%.2f"),
    ("p90", ("tpot_ms", "p90"), "%.2f"), ("p99", ("tpot_ms", "p99"), "%.2f"),
    ("E2E mean", ("e2e_ms", "mean"), "%.0f"), ("p50", ("e2e_ms", "p50"), "%.0f"),
    ("p90", ("e2e_ms", "p90"), "%.0f"), ("p99", ("e2e_ms", "p99"), "%.0f"),
)


def cell(stage, path, form):
    value = dig(stage, path)
    return "-" if value is None else form % value


def notes(stage):
    """What a reader of the numbers has to know: failures, unfairness, a slow client."""
    out = []
    for kind, n in sorted(stage["errors"].items(), key=lambda e: -e[1]):
        example = stage["error_examples"].get(kind, "")
        out.append("%d x %s%s" % (n, kind, ": " + example if example else ""))
    if stage["left"]:
        out.append("%d left before the end (on purpose, or cut at the stage's end)" % stage["left"])
    if stage["retried"]:
        out.append("%d tries again after 429 or 503" % stage["retried"])
    tokens = stage["tokens"]
    if tokens["counted_by"] == "pieces":
        out.append("the server sends no usage: tokens are the pieces that came")
    if tokens["cached"]:
        out.append("%.0f %% of the prompt tokens came from the prefix cache"
                   % (100.0 * tokens["cached"] / max(1, tokens["prompt"])))
    if "goodput" in stage:
        good = stage["goodput"]
        wanted = ", ".join("%s %g" % (k.replace("_ms", ""), v) for k, v in good["targets"].items())
        out.append("goodput (%s ms): %s of the requests, %.2f req/s" % (
            wanted, "%.1f %%" % (100 * good["share"]) if good["share"] is not None else "none",
            good["requests_per_s"]))
    clients = stage.get("clients")
    share = clients and clients["slowest_share"]
    if share is not None and clients["n"] > 1 and stage["completed"]:
        out.append("slowest client: %.0f %% of the median client's tokens"
                   % (100 * clients["slowest_share"]))
    if stage["client_lag_ms"]["p99"] and stage["client_lag_ms"]["p99"] > 20:
        out.append("this load generator was itself late by up to %.0f ms (p99): read latencies "
                   "below that with care" % stage["client_lag_ms"]["p99"])
    server = stage.get("server", {})
    memory = [dig(server, (when, "process_resident_memory_bytes")) for when in ("begin", "end")]
    if None not in memory:
        out.append("server memory %.1f -> %.1f MB" % (memory[0] / 1e6, memory[1] / 1e6))
    return out


def columns_used(stages):
    """Without the columns that no stage has a value for."""
    return [c for c in COLUMNS if any(dig(s, c[1]) is not None for s in stages)]


def table(rows):
    """Text columns, the first to the left and the others to the right."""
    widths = [max(len(r[i]) for r in rows) for i in range(len(rows[0]))]
    lines = []
    for r in rows:
        first = r[0].ljust(widths[0])
        lines.append("  ".join([first] + [c.rjust(w) for c, w in zip(r[1:], widths[1:])]).rstrip())
    return "\n".join(lines)


def text_report(result):
    """Four narrow tables rather than one that no terminal can show."""
    stages = result["stages"]
    out = [table([["stage", "done", "failed", "req/s", "output tok/s", "prompt len", "output len"]]
                 + [[s["name"], str(s["completed"]), str(s["failed"]),
                     cell(s, ("throughput", "requests_per_s"), "%.2f"),
                     cell(s, ("throughput", "output_tokens_per_s"), "%.1f"),
                     cell(s, ("tokens", "prompt_length", "mean"), "%.0f"),
                     cell(s, ("tokens", "output_length", "mean"), "%.0f")] for s in stages])]
    for key, name, unit in METRICS:
        if not any(s[key]["n"] for s in stages):
            continue
        rows = [["%s, %s" % (name, unit), "mean", "p50", "p90", "p99", "max"]]
        for s in stages:
            rows.append([s["name"]] + [cell(s, (key, p), "%.2f")
                                       for p in ("mean", "p50", "p90", "p99", "max")])
        out.append(table(rows))
    said = [["  " + n for n in notes(s)] for s in stages]
    if any(said):
        out.append("\n".join("\n".join(["%s:" % s["name"]] + n)
                             for s, n in zip(stages, said) if n))
    return "\n\n".join(out)


def text_compare(rows, threshold):
    out = [["stage", "what", "old", "new", "change", ""]]
    last = None
    for r in rows:
        change = "-" if r["change"] is None else "%+.1f %%" % (100 * r["change"])
        out.append(["" if r["stage"] == last else r["stage"], r["what"], "%.4g" % r["old"],
                    "%.4g" % r["new"], change, "" if r["verdict"] == "same" else r["verdict"]])
        last = r["stage"]
    counts = {v: sum(1 for r in rows if r["verdict"] == v) for v in ("better", "worse", "same")}
    return table(out) + "\n\n%d better, %d worse, %d within %.0f %%" % (
        counts["better"], counts["worse"], counts["same"], 100 * threshold)


STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 1340px;
       padding: 0 1rem; color: #1b1f24; background: #fff; }
table { border-collapse: collapse; font-size: 13px; display: block; overflow-x: auto; }
th, td { padding: 3px 9px; text-align: right; border-bottom: 1px solid #8884; }
th:first-child, td:first-child { text-align: left; white-space: nowrap; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
.plots { display: flex; flex-wrap: wrap; gap: 12px; } .worse { color: #c8102e; }
.better { color: #0a7d33; } svg { max-width: 100%; height: auto; }
@media (prefers-color-scheme: dark) { body { color: #e6e9ec; background: #14171a; } }
"""


def html_table(head, rows, classes=None):
    out = ["<table>", "<tr>%s</tr>" % "".join("<th>%s</th>" % escape(h) for h in head)]
    for i, row in enumerate(rows):
        kind = " class='%s'" % classes[i] if classes and classes[i] else ""
        out.append("<tr%s>%s</tr>" % (kind, "".join("<td>%s</td>" % escape(c) for c in row)))
    return "\n".join(out + ["</table>"])


def page(title, body):
    return ("<!DOCTYPE html>\n<html lang='en'>\n<head>\n<meta charset='utf-8'>\n"
            "<meta name='viewport' content='width=device-width, initial-scale=1'>\n"
            "<title>%s</title>\n<style>%s</style>\n</head>\n<body>\n%s\n</body>\n</html>\n"
            % (escape(title), STYLE, body))


def by_value_plots(stages):
    """Against the load (streams or arrivals): throughput, latencies, and one against the other."""
    kind = stages[0]["kind"]
    x_label = "concurrent streams" if kind == "concurrency" else "arrivals per second"
    log_x = kind == "concurrency"
    plots = [line_chart([("output tokens/s", [
        (s["value"], dig(s, ("throughput", "output_tokens_per_s"))) for s in stages])],
        "Throughput", x_label, "output tokens/s", log_x=log_x)]
    for key, name, unit in METRICS:
        if any(s[key]["n"] for s in stages):
            plots.append(line_chart([(p, [(s["value"], s[key].get(p)) for s in stages])
                                     for p in ("p50", "p90", "p99")],
                                    name[0].upper() + name[1:], x_label, unit, log_x=log_x))
    if any(s["itl_ms"]["n"] for s in stages):
        plots.append(line_chart([("", [
            (dig(s, ("itl_ms", "p50")), dig(s, ("throughput", "output_tokens_per_s")))
            for s in stages])], "Throughput against speed for one client",
            "inter-token latency p50, ms", "output tokens/s"))
    if "goodput" in stages[0]:
        shares = [(s["value"], dig(s, ("goodput", "share"))) for s in stages]
        plots.append(line_chart([("", shares)], "Goodput", x_label,
                                "share within the targets", log_x=log_x))
    return plots


def stage_plots(stages):
    """Distributions, all stages in a chart per metric; then what happened over time, by stage."""
    plots = []
    for key, name, unit in METRICS:
        series = [(s["name"], [(v, p) for v, p in zip(s[key]["curve"], CURVE)])
                  for s in stages if s[key]["n"]]
        if series:
            plots.append(line_chart(series[:8], "Distribution of " + name, unit,
                                    "% of values at or below", log_x=True, marks=False))
    for s in stages:
        t = s["series"]["seconds"]
        if len(t) < 3:
            continue
        plots.append(line_chart([("tokens/s", list(zip(t, s["series"]["tokens_per_s"])))],
                                "%s: tokens/s over time" % s["name"], "s", "tokens/s", marks=False))
        plots.append(line_chart([(k, list(zip(t, s["series"][k])))
                                 for k in ("running", "ended", "failed")],
                                "%s: requests over time" % s["name"], "s", "requests", marks=False))
        watched = dig(s, ("server", "series")) or {}
        memory = watched.get("process_resident_memory_bytes")
        if memory and len(memory) > 2:
            plots.append(line_chart([("", [(x, None if m is None else m / 1e6) for x, m in
                                           zip(watched["seconds"], memory)])],
                                    "%s: server's resident memory" % s["name"], "s", "MB",
                                    marks=False))
    return plots


def html_report(result):
    stages = result["stages"]
    used = columns_used(stages)
    config = result["config"]
    rows = [(k, "-" if v is None else str(v)) for k, v in config.items()]
    title = "Load test of %s" % config.get("model", "a server")
    body = ["<h1>%s</h1>" % escape(title),
            "<p>%s, %s, %d stage%s</p>" % (escape(result["when"]), escape(config["url"]),
                                           len(stages), "" if len(stages) == 1 else "s"),
            html_table([c[0] for c in used], [[cell(s, c[1], c[2]) for c in used] for s in stages]),
            "<p>Times in ms. TTFT: from the request's due time to its first piece of content; ITL: "
            "between pieces; TPOT: from first to last piece, by output token after the first; E2E: "
            "to the answer's end.</p>"]
    for s in stages:
        said = notes(s)
        if said:
            body.append("<p><b>%s</b></p><ul>%s</ul>" % (
                escape(s["name"]), "".join("<li>%s</li>" % escape(n) for n in said)))
    if len(stages) > 1 and len({s["kind"] for s in stages}) == 1:
        body.append("<h2>By load</h2><div class='plots'>%s</div>" % "\n".join(
            by_value_plots(stages)))
    else:
        rows_of = [(s["name"], [dig(s, ("throughput", "output_tokens_per_s"))]) for s in stages]
        body.append("<h2>Throughput</h2><div class='plots'>%s</div>" % bar_chart(
            rows_of, ["output tokens/s"], "Output tokens/s", "", "tokens/s"))
    body.append("<h2>Distributions and course</h2><div class='plots'>%s</div>" % "\n".join(
        stage_plots(stages)))
    for s in stages:
        if "by_turn" in s:
            body.append("<h2>%s: by turn</h2>" % escape(s["name"]))
            body.append(html_table(
                ["turn", "requests", "TTFT p50", "p99", "prompt tokens", "cached"],
                [[str(t["turn"]), str(t["n"]), cell(t, ("ttft_ms", "p50"), "%.1f"),
                  cell(t, ("ttft_ms", "p99"), "%.1f"), str(t["prompt_tokens"]),
                  str(t["cached_tokens"])] for t in s["by_turn"]]))
    body.append("<h2>Settings</h2>" + html_table(["setting", "value"], rows))
    return page(title, "\n".join(body))


def html_compare(rows, old, new, threshold):
    title = "Two load tests compared"
    shown = []
    for r in rows:
        change = "-" if r["change"] is None else "%+.1f %%" % (100 * r["change"])
        shown.append([r["stage"], r["what"], "%.4g" % r["old"], "%.4g" % r["new"], change])
    body = ["<h1>%s</h1>" % title,
            "<p>old: %s, %s; new: %s, %s; coloured beyond %.0f %%</p>" % (
                escape(old["when"]), escape(old["config"]["url"]), escape(new["when"]),
                escape(new["config"]["url"]), 100 * threshold),
            html_table(["stage", "what", "old", "new", "change"], shown,
                       ["" if r["verdict"] == "same" else r["verdict"] for r in rows])]
    plots = []
    for key, name, unit in METRICS:
        groups = []
        for r in rows:
            if r["what"] == "%s p99, ms" % name:
                groups.append((r["stage"], [r["old"], r["new"]]))
        if groups:
            plots.append(bar_chart(groups, ["old", "new"], name + ", p99", "", unit))
    groups = [(r["stage"], [r["old"], r["new"]]) for r in rows if r["what"] == "output tokens/s"]
    plots.append(bar_chart(groups, ["old", "new"], "output tokens/s", "", "tokens/s"))
    body.append("<div class='plots'>%s</div>" % "\n".join(plots))
    return page(title, "\n".join(body))
