"""Line charts as inline SVG, drawn from data: no library, no script needed to read them.

A chart shows the raw curve faintly, its running mean on top, the range on the y axis and the last value.
Colours come from the page's CSS variables, so charts follow its light and dark themes.
"""

from __future__ import annotations

import html
import json
import math
from dataclasses import dataclass
from itertools import pairwise

from mcjepa.evals.report.content import Curve

WIDTH, HEIGHT = 300, 150
LEFT, RIGHT, TOP, BOTTOM = 46, 8, 10, 20
MOST_POINTS = 240
SMOOTH_PART = 0.05


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
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)


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


def line_chart(name: str, curve: Curve) -> str:
    """One curve as an SVG picture with its heading; values that are not finite are counted and left as
    gaps."""
    finite = [(float(x), float(y)) for x, y in curve if math.isfinite(y)]
    lost = len(curve) - len(finite)
    note = f'<span class="bad">{lost} not finite</span>' if lost else ""
    if not finite:
        return f'<figure class="chart"><figcaption><b>{html.escape(name)}</b>{note}</figcaption></figure>'
    points = _thin(finite)
    scale = _fit(points)
    smooth = _running_mean(points)
    last = format_number(smooth[-1][1])
    title = html.escape(name, quote=True)
    data = html.escape(json.dumps([[x, y, *scale.place((x, y))] for x, y in points]), quote=True)
    return (
        f'<figure class="chart"><figcaption><b>{title}</b>{note}<output>{last}</output></figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{title}, last {last}" '
        f'data-points="{data}">{_axes(scale)}'
        f'<path class="raw" d="{_path(points, scale)}"/><path class="smooth" d="{_path(smooth, scale)}"/>'
        f'<g class="cursor"><line y1="{TOP}" y2="{HEIGHT - BOTTOM}"/><circle r="3"/></g></svg></figure>'
    )


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
    return "M" + "L".join(f"{x:.1f},{max(y, TOP - 4):.1f}" for x, y in placed)


def _axes(scale: _Scale) -> str:
    parts = []
    for part in (0.0, 0.5, 1.0):
        y = HEIGHT - BOTTOM - part * (HEIGHT - TOP - BOTTOM)
        value = scale.y_low + part * (scale.y_high - scale.y_low)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 5}" y="{y + 3:.1f}" text-anchor="end">{_tick(value)}</text>')
    for x, value, anchor in ((LEFT, scale.x_low, "start"), (WIDTH - RIGHT, scale.x_high, "end")):
        parts.append(f'<text x="{x}" y="{HEIGHT - 6}" text-anchor="{anchor}">{_tick(value)}</text>')
    return "".join(parts)


def _tick(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}" if abs(value) < 1e6 else f"{value:.1e}"
