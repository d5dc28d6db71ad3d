"""Charts as plain geometry, which ``templates/charts.svg.jinja`` turns into inline SVG.

Own code and no plotting library: text, lines and colors come from the page's style sheet, so that a chart follows the
reader's dark mode and stays readable at 360 pixels, which an SVG that brings its own fonts and colors does not.

All coordinates are in units of a 400 x 240 drawing.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

WIDTH, HEIGHT = 400, 240
LEFT, RIGHT, TOP, BOTTOM = 46, 388, 16, 200  # of the plot inside the drawing
LABEL_GAP = 15  # between the baselines of two labels
NEAR_ZERO = 0.05  # an x axis that begins within this fraction of its end begins at 0

Numbers = NDArray[np.float64]


class Series(NamedTuple):
    """A line of a chart; NaN interrupts it."""

    run: int  # whose color and dashes it has
    x: Numbers
    y: Numbers
    label: str = ""  # written at the marked point
    mark: int | None = None  # index of that point; None: the last one
    low: Numbers | None = None  # band around the line
    high: Numbers | None = None
    dots: bool = False  # mark every point


class Tick(NamedTuple):
    at: float
    text: str


class Label(NamedTuple):
    x: float
    y: float
    text: str
    anchor: str  # start, middle or end, as in SVG


@dataclass(frozen=True)
class Line:
    """A `Series` as paths."""

    run: int
    path: str
    band: str = ""
    dots: list[tuple[float, float]] = field(default_factory=list)
    label: Label | None = None


@dataclass(frozen=True)
class Chart:
    """Content of one drawing."""

    title: str
    x_label: str
    alt: str  # what a reader who cannot see it is told
    note: str = ""  # under the drawing
    x_ticks: list[Tick] = field(default_factory=list)
    y_ticks: list[Tick] = field(default_factory=list)
    lines: list[Line] = field(default_factory=list)
    level: Label | None = None  # a horizontal reference
    start: Label | None = None  # a vertical one


def line_chart(
    title: str,
    series: Sequence[Series],
    x_label: str,
    *,
    alt: str,
    note: str = "",
    x_range: tuple[float, float] | None = None,
    top: float | None = None,
    level: tuple[float, str] | None = None,
    start: tuple[float, str] | None = None,
    filled: bool = False,
    least_span: float | None = None,
) -> Chart:
    """Lines over a common x. The axes are made for the lines; a band that reaches beyond is cut off.

    Args:
        title: what is on the y axis, with its unit. alt: the chart in words. note: what to know to read it.
        x_range: ends of the x axis; default those of the data. top: end of the y axis.
        level, start: a horizontal, a vertical reference: where, and its text.
        filled: the area under each line, for histograms. least_span: the y axis is made
            for the lines too, but spans at least this much; default: it has a 0.
    """
    drawn = [one for one in series if np.isfinite(one.y).any()]
    xs = np.concatenate([one.x for one in drawn]) if drawn else np.zeros(1)
    ys = np.concatenate([one.y for one in drawn]) if drawn else np.zeros(1)
    x0, x1 = x_range or (float(xs.min()), float(xs.max()))
    x0 = 0.0 if 0 < x0 < NEAR_ZERO * x1 else x0
    lowest, highest = float(np.nanmin(ys)), float(np.nanmax(ys)) if top is None else top
    if least_span is None:
        lowest = min(0.0, lowest)
    elif highest - lowest < least_span:
        lowest = max(0.0, (lowest + highest - least_span) / 2)
        highest = lowest + least_span
    y_ticks = nice_ticks(lowest, highest)
    y0, y1 = y_ticks[0], y_ticks[-1]

    def to_x(x: Numbers | float) -> Numbers:
        return np.asarray(LEFT + (x - x0) / ((x1 - x0) or 1) * (RIGHT - LEFT), np.float64)

    def to_y(y: Numbers | float) -> Numbers:
        return np.asarray(BOTTOM - (y - y0) / ((y1 - y0) or 1) * (BOTTOM - TOP), np.float64)

    lines, labels = [], []
    for one in drawn:
        x, y = to_x(one.x), to_y(one.y)
        band = ""
        if one.low is not None and one.high is not None:
            edge = to_y(np.r_[one.high, one.low[::-1]]).clip(TOP, BOTTOM)
            band = _path(np.r_[x, x[::-1]], edge) + "Z"
        elif filled:
            band = _path(np.r_[x[0], x, x[-1]], np.r_[to_y(y0), y, to_y(y0)]) + "Z"
        finite = np.flatnonzero(np.isfinite(one.y))
        mark = int(finite[-1]) if one.mark is None else one.mark
        shown = finite if one.dots else [] if filled else [mark]
        dots = [(round(float(x[i]), 1), round(float(y[i]), 1)) for i in shown]
        lines.append((one.run, _path(x, y), band, dots))
        labels.append(_label(float(x[mark]), float(y[mark]), one.label))
    below = [Tick(_unit(to_x(x)), number(x)) for x in nice_ticks(x0, x1, 6) if x0 <= x <= x1]
    beside = [Tick(_unit(to_y(y)), number(y)) for y in y_ticks]
    labelled = zip(lines, _apart(labels), strict=True)
    drawings = [Line(*line, label if label.text else None) for line, label in labelled]
    across = None if level is None else Label(RIGHT, _unit(to_y(level[0])), level[1], "end")
    down = None
    if start is not None and x0 < start[0] < x1:
        down = Label(_unit(to_x(start[0])), TOP, start[1], "start")
    return Chart(title, x_label, alt, note, below, beside, drawings, across, down)


def histogram(counts: Sequence[NDArray[np.int64]], bins: int) -> tuple[Numbers, list[Numbers], int]:
    """Percentages of integer values in bins of equal whole width.

    Returns:
        The corners [2b] of the bins as a staircase has them, for each of `counts` the heights [2b], and the width.
    """
    most = max(int(values.max()) for values in counts)
    width = max(1, -(-(most + 1) // bins))
    edges = np.arange(0, most + width + 1, width)
    stairs = [np.repeat(100 * np.histogram(values, edges)[0] / len(values), 2) for values in counts]
    # A bin of the whole numbers a … b − 1 is drawn from a to b.
    return np.repeat(edges, 2)[1:-1].astype(np.float64), stairs, width


def nice_ticks(low: float, high: float, count: int = 4) -> list[float]:
    """About `count` round numbers that span low … high."""
    if not high > low:
        high = low + 1
    raw = (high - low) / count
    power = 10.0 ** np.floor(np.log10(raw))
    step = next(float(factor * power) for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * (1 - 1e-9))
    first, last = np.floor(low / step + 1e-9), np.ceil(high / step - 1e-9)
    return [float(f"{n * step:.10g}") for n in np.arange(first, last + 1)]


def number(value: float) -> str:
    """A short spelling: thousands as k, small ones with what digits they need."""
    if abs(value) >= 1e6:
        return f"{value / 1e6:g}M"
    if abs(value) >= 10_000:
        return f"{value / 1000:g}k"
    return f"{value:g}"


def _path(x: Numbers, y: Numbers) -> str:
    parts, pen = [], "M"
    for left, top in zip(x.tolist(), y.tolist(), strict=True):
        if np.isfinite(top):
            parts.append(f"{pen}{left:.1f} {top:.1f}")
        pen = "L" if np.isfinite(top) else "M"
    return "".join(parts)


def _unit(value: Numbers) -> float:
    return round(float(value), 1)


def _label(x: float, y: float, text: str) -> Label:
    anchor = "end" if x > LEFT + 0.6 * (RIGHT - LEFT) else "start"
    return Label(round(x + (-7 if anchor == "end" else 7), 1), round(y - 7, 1), text, anchor)


def _apart(labels: list[Label]) -> list[Label]:
    """Labels moved up or down until none covers another, all inside the drawing."""
    order = sorted(range(len(labels)), key=lambda i: labels[i].y)
    moved, above = list(labels), TOP - 4.0
    for i in order:
        above = max(labels[i].y, above + (0 if i == order[0] else LABEL_GAP))
        moved[i] = labels[i]._replace(y=round(above, 1))
    below = BOTTOM - 4.0
    for i in reversed(order):
        below = min(moved[i].y, below)
        moved[i] = moved[i]._replace(y=round(below, 1))
        below -= LABEL_GAP
    return moved
