"""Charts as inline SVG, drawn from data: no library, and no script needed to read them.

Colours come from the page's stylesheet, so charts follow its light and dark themes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from markupsafe import Markup, escape

Curve = Sequence[tuple[float, float]]
"""Points (step, value), steps ascending; values may be NaN or infinite."""
WIDTH = 300
LINE_HEIGHT, LINE_LEFT, LINE_RIGHT, LINE_TOP, LINE_BASE = 150, 46, 8, 10, 130
MOST_POINTS = 240
SMOOTH_PART = 0.05
BAR_HEIGHT, BAR_LEFT, BAR_TOP, BAR_BASE = 120, 4, 6, 102
BINS = 24
ROW_PX = 17
NOTHING = Markup("")


@dataclass(frozen=True)
class Chart:
    """A picture with its heading; one without `svg` has nothing to draw."""

    title: str
    svg: Markup = NOTHING
    last: str = ""
    """The last value."""
    warning: str = ""


@dataclass(frozen=True)
class _Scale:
    """Data range and its place on the canvas."""

    x_low: float
    x_high: float
    y_low: float
    y_high: float

    def place(self, point: tuple[float, float]) -> tuple[float, float]:
        across = (point[0] - self.x_low) / ((self.x_high - self.x_low) or 1.0)
        up = (point[1] - self.y_low) / ((self.y_high - self.y_low) or 1.0)
        x = LINE_LEFT + across * (WIDTH - LINE_LEFT - LINE_RIGHT)
        return x, LINE_BASE - up * (LINE_BASE - LINE_TOP)


def format_number(value: float) -> str:
    """A number for people: four significant digits, no needless zeros, exponents only far from 1.

    >>> [format_number(value) for value in (0.000012345, 0.25, 1234.5678, 3.0, float("nan"))]
    ['1.234e-05', '0.25', '1235', '3', 'not a number']
    """
    if math.isnan(value):
        return "not a number"
    if math.isinf(value):
        return "infinite" if value > 0 else "-infinite"
    return f"{value:.4g}" if abs(value) < 1000 else (f"{value:.0f}" if abs(value) < 1e6 else f"{value:.3g}")


def line_chart(name: str, curve: Curve) -> Chart:
    """One curve: the values faintly, their running mean on top, the range on the y axis.

    Values that are not finite are counted and left as gaps.
    """
    finite = [(float(x), float(y)) for x, y in curve if math.isfinite(y)]
    lost = len(curve) - len(finite)
    warning = f"{lost} not finite" if lost else ""
    if not finite:
        return Chart(name, warning=warning)
    points = _thin(finite)
    scale = _fit(points)
    smooth = _running_mean(points)
    last = format_number(smooth[-1][1])
    data = escape(json.dumps([[x, y, *scale.place((x, y))] for x, y in points]))
    content = (
        f'{_axes(scale)}<path class="raw" d="{_path(points, scale)}"/><path class="smooth" d="{_path(smooth, scale)}"/>'
        f'<g class="cursor"><line y1="{LINE_TOP}" y2="{LINE_BASE}"/><circle r="3"/></g>'
    )
    svg = _svg(f"{name}, last {last}", LINE_HEIGHT, content, f' data-points="{data}"')
    return Chart(name, svg, last, warning)


def histogram(title: str, values: Sequence[float], limits: Sequence[float] = ()) -> Chart | None:
    """Values in BINS equal steps; none without values.

    Args:
        title: What is counted, with its unit.
        values: Finite numbers.
        limits: Settings to mark by a dashed line, where they lie within the values.
    """
    if not len(values):
        return None
    low, high = float(min(values)), float(max(values))
    spread = high - low > 1e-6 * max(1.0, abs(low))
    counts, edges = np.histogram(values, BINS, (low, high) if spread else (low - 0.5, high + 0.5))
    step = (WIDTH - 2 * BAR_LEFT) / BINS
    tall = (BAR_BASE - BAR_TOP) / counts.max()
    bars = "".join(
        f'<rect x="{BAR_LEFT + k * step:.1f}" y="{BAR_BASE - count * tall:.1f}" width="{step - 1:.1f}" '
        f'height="{count * tall:.1f}">'
        f"<title>{format_number(edges[k])} to {format_number(edges[k + 1])}: {count}</title></rect>"
        for k, count in enumerate(counts.tolist())
        if count
    )
    lines = "".join(_limit(value, low, high) for value in limits if spread and low <= value <= high)
    axis = f'<line x1="{BAR_LEFT}" x2="{WIDTH - BAR_LEFT}" y1="{BAR_BASE}" y2="{BAR_BASE}"/>'
    marks = ((BAR_LEFT, low, "start"), (WIDTH - BAR_LEFT, high, "end"))
    ends = "".join(_text(x, BAR_HEIGHT - 5, format_number(value), anchor) for x, value, anchor in marks)
    middle = _text(WIDTH / 2, BAR_HEIGHT - 5, f"median {format_number(float(np.median(values)))}", "middle")
    return Chart(title, _svg(title, BAR_HEIGHT, f"{axis}{bars}{lines}{ends}{middle}"))


def shares(title: str, counts: Sequence[tuple[str, int]]) -> Chart | None:
    """Names with their counts, a bar each; none without any."""
    if not counts:
        return None
    longest = max(count for _, count in counts)
    rows = "".join(
        f'<rect x="110" y="{4 + k * ROW_PX}" width="{max(1.0, 150 * count / longest):.1f}" height="11"/>'
        + _text(104, 13 + k * ROW_PX, name[:18], "end")
        + _text(116 + max(1.0, 150 * count / longest), 13 + k * ROW_PX, str(count), "start")
        for k, (name, count) in enumerate(counts)
    )
    return Chart(title, _svg(title, 6 + ROW_PX * len(counts), rows))


def _limit(value: float, low: float, high: float) -> str:
    x = BAR_LEFT + (value - low) / (high - low) * (WIDTH - 2 * BAR_LEFT)
    label = f"<title>limit {format_number(value)}</title>"
    return f'<line class="limit" x1="{x:.1f}" x2="{x:.1f}" y1="{BAR_TOP}" y2="{BAR_BASE}">{label}</line>'


def _thin(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Means of equal buckets, so that at most MOST_POINTS are drawn."""
    if len(points) <= MOST_POINTS:
        return points
    cuts = [index * len(points) // MOST_POINTS for index in range(MOST_POINTS + 1)]
    buckets = [points[start:stop] for start, stop in pairwise(cuts)]
    return [(sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)) for part in buckets]


def _running_mean(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    half = int(len(points) * SMOOTH_PART / 2)
    means = []
    for index, (x, _) in enumerate(points):
        reach = min(half, index, len(points) - 1 - index)
        window = points[index - reach : index + reach + 1]
        means.append((x, sum(y for _, y in window) / len(window)))
    return means


def _fit(points: list[tuple[float, float]]) -> _Scale:
    """The data's range; a few spikes are cut off at the top so that they do not flatten the rest."""
    values = sorted(y for _, y in points)
    low, high = values[0], values[-1]
    usual = values[int(0.98 * (len(values) - 1))]
    if high - low > 4 * (usual - low) > 0:
        high = usual + 0.1 * (usual - low)
    if high == low:
        low, high = low - 0.5 * (abs(low) or 1.0), high + 0.5 * (abs(high) or 1.0)
    return _Scale(points[0][0], points[-1][0], low, high)


def _path(points: list[tuple[float, float]], scale: _Scale) -> str:
    placed = [scale.place(point) for point in points]
    return "M" + "L".join(f"{x:.1f},{max(y, LINE_TOP - 4):.1f}" for x, y in placed)


def _axes(scale: _Scale) -> str:
    parts = []
    for part in (0.0, 0.5, 1.0):
        y = LINE_BASE - part * (LINE_BASE - LINE_TOP)
        value = scale.y_low + part * (scale.y_high - scale.y_low)
        parts.append(f'<line x1="{LINE_LEFT}" x2="{WIDTH - LINE_RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(_text(LINE_LEFT - 5, y + 3, _tick(value), "end"))
    for x, value, anchor in ((LINE_LEFT, scale.x_low, "start"), (WIDTH - LINE_RIGHT, scale.x_high, "end")):
        parts.append(_text(x, LINE_HEIGHT - 6, _tick(value), anchor))
    return "".join(parts)


def _tick(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}" if abs(value) < 1e6 else f"{value:.1e}"


def _svg(label: str, height: int, content: str, attributes: str = "") -> Markup:
    return Markup(
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(label)}"{attributes}>{content}</svg>'
    )


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
