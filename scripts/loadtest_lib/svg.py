"""Line and bar charts as SVG text. No dependency, no script: the file opens anywhere."""

from __future__ import annotations

import math
from xml.sax.saxutils import escape

# Distinct also for the colour-blind (after Okabe and Ito); readable on light and on dark.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6bb1", "#7f7f7f")
FONT = "font-family='system-ui, sans-serif'"
LEFT, RIGHT, TOP, BOTTOM = 66, 16, 34, 46


def number(v):
    """Short and exact enough for an axis or a label: 0.25, 12, 1.5k, 20M."""
    if v == 0:
        return "0"
    size = abs(v)
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if size >= limit:
            v, size = v / (1e3 if unit == "k" else limit), 0
            return ("%.4g" % v) + unit
    return "%.4g" % v if size >= 1e-3 else "%.1e" % v


def ticks(low, high, wanted=5):
    """Round values that cover [low, high]: steps of 1, 2 or 5 times a power of ten."""
    if high <= low:
        high = low + (abs(low) or 1.0)
    raw = (high - low) / wanted
    power = 10 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def log_ticks(low, high):
    """Powers of ten over [low, high], with 2 and 5 between them where there are few."""
    a, b = math.floor(math.log10(low) + 1e-9), math.ceil(math.log10(high) - 1e-9)
    b = max(b, a + 1)
    steps = (1, 2, 5) if b - a <= 3 else (1,)
    out = [m * 10.0 ** e for e in range(a, b + 1) for m in steps if e < b or m == 1]
    while len(out) > 2 and out[1] <= low:
        out.pop(0)
    while len(out) > 2 and out[-2] >= high:
        out.pop()
    return out


class Axis:
    """Maps values to pixels, linearly or by logarithm, and knows its ticks."""

    def __init__(self, values, begin_px, end_px, log=False, from_zero=False):
        values = [v for v in values if not log or v > 0]
        low, high = (min(values), max(values)) if values else (0.0, 1.0)
        if log and not values:
            low, high = 1.0, 10.0
        if from_zero and not log:
            low, high = min(low, 0.0), max(high, 0.0)
        self.log = log
        self.ticks = log_ticks(low, high) if log else ticks(low, high)
        self.low, self.high = self.ticks[0], self.ticks[-1]
        self.begin_px, self.end_px = begin_px, end_px

    def px(self, v):
        if self.log:
            v = max(v, self.low)
            share = math.log(v / self.low) / math.log(self.high / self.low)
        else:
            share = (v - self.low) / (self.high - self.low)
        return self.begin_px + share * (self.end_px - self.begin_px)


def text(x, y, words, size=12, anchor="start", extra=""):
    return ("<text x='%.1f' y='%.1f' font-size='%d' text-anchor='%s' fill='currentColor'%s>%s"
            "</text>" % (x, y, size, anchor, extra, escape(str(words))))


def frame(width, height, title, x_label, y_label, y_axis):
    """The parts both charts share: opening, title, horizontal grid, labels of the axes."""
    out = ["<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 %d %d' width='%d' height='%d' "
           "role='img' %s>" % (width, height, width, height, FONT),
           "<title>%s</title>" % escape(title),
           text(LEFT, 20, title, 14, extra=" font-weight='600'")]
    for t in y_axis.ticks:
        y = y_axis.px(t)
        out.append("<line x1='%d' x2='%d' y1='%.1f' y2='%.1f' stroke='currentColor' "
                   "stroke-opacity='0.15'/>" % (LEFT, width - RIGHT, y, y))
        out.append(text(LEFT - 6, y + 4, number(t), 11, "end"))
    middle = (TOP + height - BOTTOM) / 2
    out.append(text(16, middle, y_label, 11, "middle", " transform='rotate(-90 16 %.1f)'" % middle))
    out.append(text((LEFT + width - RIGHT) / 2, height - 8, x_label, 11, "middle"))
    return out


def legend(names, width):
    """One line under the title, to the right; empty for a single unnamed series."""
    if not any(names):
        return []
    out, x = [], width - RIGHT
    for i in reversed(range(len(names))):
        x -= 7 * len(str(names[i])) + 22
        out.append("<rect x='%.1f' y='24' width='10' height='4' fill='%s'/>"
                   % (x, COLOURS[i % len(COLOURS)]))
        out.append(text(x + 14, 30, names[i], 11))
    return out


def line_chart(series, title="", x_label="", y_label="", log_x=False, log_y=False,
               width=640, height=320, marks=True, from_zero=True):
    """series: a list of (name, [(x, y), ...]). Points with a None are gaps."""
    xs = [x for _, points in series for x, y in points if x is not None]
    ys = [y for _, points in series for x, y in points if y is not None]
    x_axis = Axis(xs, LEFT, width - RIGHT, log_x)
    y_axis = Axis(ys, height - BOTTOM, TOP, log_y, from_zero)
    out = frame(width, height, title, x_label, y_label, y_axis)
    for t in x_axis.ticks:
        out.append(text(x_axis.px(t), height - BOTTOM + 16, number(t), 11, "middle"))
    for i, (name, points) in enumerate(series):
        colour = COLOURS[i % len(COLOURS)]
        path, pen_up = [], True
        for x, y in points:
            if x is None or y is None or (log_x and x <= 0) or (log_y and y <= 0):
                pen_up = True
                continue
            path.append("%s%.1f %.1f" % ("M" if pen_up else "L", x_axis.px(x), y_axis.px(y)))
            pen_up = False
        if path:
            out.append("<path d='%s' fill='none' stroke='%s' stroke-width='2' "
                       "stroke-linejoin='round'/>" % (" ".join(path), colour))
        for x, y in points if marks and len(points) <= 60 else ():
            if x is None or y is None or (log_x and x <= 0) or (log_y and y <= 0):
                continue
            note = "%s %s: %s" % (name, number(x), number(y))
            out.append("<circle cx='%.1f' cy='%.1f' r='3.5' fill='%s'><title>%s</title></circle>"
                       % (x_axis.px(x), y_axis.px(y), colour, escape(note.strip())))
    out += legend([name for name, _ in series], width)
    out.append("</svg>")
    return "\n".join(out)


def bar_chart(groups, names, title="", x_label="", y_label="", log_y=False, width=640, height=320):
    """groups: a list of (label, [value for each name]); names: of the bars in a group."""
    values = [v for _, row in groups for v in row if v is not None]
    y_axis = Axis(values, height - BOTTOM, TOP, log_y, True)
    out = frame(width, height, title, x_label, y_label, y_axis)
    room = (width - LEFT - RIGHT) / max(1, len(groups))
    bar = room * 0.8 / max(1, len(names))
    base = y_axis.px(y_axis.low if log_y else 0.0)
    for g, (label, row) in enumerate(groups):
        at = LEFT + g * room
        for i, v in enumerate(row):
            if v is None or (log_y and v <= 0):
                continue
            y = y_axis.px(v)
            note = "%s %s: %s" % (label, names[i] if i < len(names) else "", number(v))
            out.append("<rect x='%.1f' y='%.1f' width='%.1f' height='%.1f' fill='%s'>"
                       "<title>%s</title></rect>"
                       % (at + room * 0.1 + i * bar, min(y, base), bar * 0.94, abs(base - y),
                          COLOURS[i % len(COLOURS)], escape(note)))
            if bar >= 26:
                out.append(text(at + room * 0.1 + (i + 0.5) * bar, min(y, base) - 4, number(v), 10,
                                "middle"))
        shown = str(label)
        most = max(3, int(room / 6))
        if len(shown) > most:
            shown = shown[:most - 1] + "…"
        out.append(text(at + room / 2, height - BOTTOM + 16, shown, 11, "middle"))
    out += legend(names if len(names) > 1 else [], width)
    out.append("</svg>")
    return "\n".join(out)
