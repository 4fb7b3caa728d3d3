"""Bar charts of a dataset's card as inline SVG: no library, no script."""

from __future__ import annotations

import html
from collections.abc import Sequence

import numpy as np

WIDTH, HEIGHT = 300, 120
LEFT, TOP, BOTTOM = 4, 6, 18
BINS = 24
ROW_PX = 17


def histogram(title: str, values: Sequence[float], limits: Sequence[float] = ()) -> str:
    """Values in BINS equal steps; empty without values.

    Args:
        title: What is counted, with its unit.
        values: Finite numbers.
        limits: Settings to mark by a dashed line, where they lie within the values.
    """
    if not len(values):
        return ""
    low, high = float(min(values)), float(max(values))
    spread = high - low > 1e-6 * max(1.0, abs(low))
    counts, edges = np.histogram(values, BINS, (low, high) if spread else (low - 0.5, high + 0.5))
    step = (WIDTH - 2 * LEFT) / BINS
    tall = (HEIGHT - TOP - BOTTOM) / counts.max()
    bars = "".join(
        f'<rect x="{LEFT + k * step:.1f}" y="{HEIGHT - BOTTOM - count * tall:.1f}" width="{step - 1:.1f}" '
        f'height="{count * tall:.1f}"><title>{_number(edges[k])} to {_number(edges[k + 1])}: {count}</title></rect>'
        for k, count in enumerate(counts.tolist())
        if count
    )
    lines = "".join(_limit(value, low, high) for value in limits if spread and low <= value <= high)
    axis = f'<line x1="{LEFT}" x2="{WIDTH - LEFT}" y1="{HEIGHT - BOTTOM}" y2="{HEIGHT - BOTTOM}"/>'
    ends = _text(LEFT, HEIGHT - 5, _number(low), "start") + _text(WIDTH - LEFT, HEIGHT - 5, _number(high), "end")
    middle = _text(WIDTH / 2, HEIGHT - 5, f"median {_number(float(np.median(values)))}", "middle")
    return _chart(title, HEIGHT, f"{axis}{bars}{lines}{ends}{middle}")


def shares(title: str, counts: Sequence[tuple[str, int]]) -> str:
    """Names with their counts, a bar each; empty without any."""
    if not counts:
        return ""
    longest = max(count for _, count in counts)
    rows = "".join(
        f'<rect x="110" y="{4 + k * ROW_PX}" width="{max(1.0, 150 * count / longest):.1f}" height="11"/>'
        + _text(104, 13 + k * ROW_PX, name[:18], "end")
        + _text(116 + max(1.0, 150 * count / longest), 13 + k * ROW_PX, str(count), "start")
        for k, (name, count) in enumerate(counts)
    )
    return _chart(title, 6 + ROW_PX * len(counts), rows)


def _limit(value: float, low: float, high: float) -> str:
    x = LEFT + (value - low) / (high - low) * (WIDTH - 2 * LEFT)
    label = f"<title>limit {_number(value)}</title>"
    return f'<line class="limit" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}">{label}</line>'


def _chart(title: str, height: int, content: str) -> str:
    name = html.escape(title, quote=True)
    return (
        f'<figure class="chart"><figcaption>{name}</figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{name}">{content}</svg></figure>'
    )


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.0f}" y="{y:.0f}" text-anchor="{anchor}">{html.escape(text)}</text>'


def _number(value: float) -> str:
    return f"{value:.4g}"
