"""The report's sections: each function turns plain data into the HTML of one part of the page.

Every text that comes from outside (file names, reasons, settings) goes through `html.escape`.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mcjepa.evals.cards import Picture, Score
from mcjepa.evals.pictures import webp_bytes
from mcjepa.evals.report.charts import format_number, line_chart
from mcjepa.evals.report.content import DatasetSummary, QuarantinedInput, ReportContent, Tile, metric_unit, rival_name

MOST_ROWS = 200


def escape(value: object) -> str:
    """Any value as text that is safe between tags and in quoted attributes."""
    return html.escape(format_number(value) if isinstance(value, float) else str(value), quote=True)


def tiles_section(tiles: Sequence[Tile]) -> str:
    """Headline numbers as tiles."""
    return f'<div class="tiles">{"".join(_tile(tile) for tile in tiles)}</div>' if tiles else ""


def _tile(tile: Tile) -> str:
    unit = f"<span>{escape(tile.unit)}</span>" if tile.unit else ""
    rows = [("model", tile.value, True), *((name, value, False) for name, value in tile.rivals)]
    longest = max((value for _, value, _ in rows if value == value), default=0.0) or 1.0
    bars = "".join(
        f"<span>{escape(name)}</span>"
        f'<i class="{"us" if ours else ""}" style="width:{_percent(value, longest)}"></i>'
        f"<span>{escape(value)}</span>"
        for name, value, ours in rows
    )
    return (
        f'<div class="tile"><h3>{escape(tile.title)}</h3><small>{escape(tile.source)}</small>'
        f'<div class="big">{escape(tile.value)}{unit}</div>{_verdict(tile)}'
        f'<div class="bars">{bars}</div></div>'
    )


def _percent(value: float, longest: float) -> str:
    part = max(0.0, min(1.0, value / longest)) if value == value else 0.0
    return f"{100 * part:.1f}%"


def _verdict(tile: Tile) -> str:
    """One line against the first baseline: how the numbers compare, never more."""
    if not tile.rivals or tile.value != tile.value:
        return ""
    name, rival = tile.rivals[0]
    better = tile.value < rival if tile.lower_is_better else tile.value > rival
    if tile.lower_is_better:
        text = f"{tile.value / rival:.0%} of {name}'s" if rival > 0 else f"{name}: {format_number(rival)}"
    else:
        points, what = (tile.value - rival, " points") if tile.unit == "%" else (tile.value - rival, "")
        text = f"{points:+.3g}{what} against {name}"
    return f'<p class="verdict {"good" if better else "bad"}">{escape(text)}</p>'


def curves_section(curves: Mapping[str, Any]) -> str:
    """Small charts, one a curve, by group (the name's part before the first slash)."""
    groups: dict[str, list[str]] = {}
    for name, curve in curves.items():
        group, _, rest = name.rpartition("/") if name.count("/") else ("", "", name)
        groups.setdefault(group, []).append(line_chart(rest, curve))
    parts = []
    for group, charts in groups.items():
        heading = f"<h3>{escape(group.replace('_', ' '))}</h3>" if group else ""
        parts.append(f'{heading}<div class="charts">{"".join(charts)}</div>')
    return "".join(parts)


def pictures_section(scores: Iterable[Score], kind: str, note: str, key: bytes = b"") -> str:
    """All pictures of one kind, by score; empty if there are none.

    Args:
        scores: scores with pictures.
        kind: which of them.
        note: how to read them.
        key: a small PNG that explains the colours, shown beside the note.
    """
    parts = []
    for score in scores:
        chosen = [picture for picture in score.pictures if picture.kind == kind]
        if chosen:
            legend = _legend(chosen[0].legend)
            parts.append(f"<h3>{escape(score.name)}</h3>{legend}{''.join(_strip(picture) for picture in chosen)}")
    if key:
        wheel = f'<img class="key" alt="key to the colours" src="{_data_url(key)}">'
        return f'<div class="noted">{wheel}<p class="dim">{escape(note)}</p></div>{"".join(parts)}' if parts else ""
    return f'<p class="dim">{escape(note)}</p>{"".join(parts)}' if parts else ""


def _data_url(png: bytes) -> str:
    return f"data:image/webp;base64,{base64.b64encode(webp_bytes(png)).decode('ascii')}"


def _legend(legend: Sequence[tuple[str, str]]) -> str:
    if not legend:
        return ""
    entries = (f'<span><i style="background:{escape(colour)}"></i>{escape(name)}</span>' for name, colour in legend)
    return f'<div class="legend">{"".join(entries)}</div>'


def _strip(picture: Picture) -> str:
    heads = "".join(f"<span>{escape(column)}</span>" for column in picture.columns)
    return (
        f'<figure class="strip"><div class="heads">{heads}</div>'
        f'<img loading="lazy" alt="{escape(picture.caption)}" src="{_data_url(picture.path.read_bytes())}">'
        f"<figcaption>{escape(picture.caption)}</figcaption></figure>"
    )


def scores_section(scores: Sequence[Score]) -> str:
    """Every score's numbers, with its card and its table by item folded away."""
    return "".join(_score(score) for score in scores)


def _score(score: Score) -> str:
    failed = score.card.failed
    warning = (
        f'<p class="bad">Incomplete: {len(failed)} items could not be scored (see the card).</p>' if failed else ""
    )
    rows = f"{len(score.table)} rows"
    return (
        f"<h3>{escape(score.name)}</h3>{warning}{_metrics(score)}"
        "<details><summary>Card: how this number came about</summary>"
        f"{_definitions(_card_pairs(score))}</details>"
        f"<details><summary>By item ({rows})</summary>{table(score.table)}</details>"
    )


def _metrics(score: Score) -> str:
    """Metrics as rows, the model and its baselines as columns."""
    columns = ["", *score.rivals]
    of_rivals = {f"{name}_{rival}" for rival in score.rivals for name in score.metrics}
    names = [name for name in score.metrics if name not in of_rivals]
    head = "".join(f'<th class="n">{escape(rival_name(column) if column else "model")}</th>' for column in columns)
    body = []
    for name in names:
        keys = [f"{name}_{column}" if column else name for column in columns]
        values = (escape(score.metrics[key]) if key in score.metrics else "" for key in keys)
        cells = "".join(f"<td class=n>{value}</td>" for value in values)
        body.append(f"<tr><td>{escape(name)} <small>{metric_unit(name)}</small></td>{cells}</tr>")
    return f'<div class="scroll"><table><tr><th>metric</th>{head}</tr>{"".join(body)}</table></div>'


def _card_pairs(score: Score) -> list[tuple[str, object]]:
    pairs: list[tuple[str, object]] = []
    for key, value in score.card.to_dict().items():
        if isinstance(value, Mapping):
            value = ", ".join(f"{name} = {setting}" for name, setting in value.items())
        elif isinstance(value, (tuple, list)):
            value = "; ".join(str(item) for item in value)
        if value not in ("", None):
            pairs.append((key.replace("_", " "), value))
    return pairs


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows with the same keys as an HTML table; beyond 200 rows the rest is only counted."""
    if not rows:
        return '<p class="dim">No rows.</p>'
    keys = list(rows[0])
    numeric = {key for key in keys if isinstance(rows[0][key], (int, float))}

    def mark(key: str) -> str:
        return ' class="n"' if key in numeric else ""

    head = "".join(f"<th{mark(key)}>{escape(key.replace('_', ' '))}</th>" for key in keys)
    body = "".join(
        "<tr>" + "".join(f"<td{mark(key)}>{escape(row.get(key, ''))}</td>" for key in keys) + "</tr>"
        for row in rows[:MOST_ROWS]
    )
    more = f'<p class="dim">{len(rows) - MOST_ROWS} more rows are in the CSV file.</p>' if len(rows) > MOST_ROWS else ""
    return f'<div class="scroll"><table><tr>{head}</tr>{body}</table></div>{more}'


def data_section(datasets: Sequence[DatasetSummary], quarantined: Sequence[QuarantinedInput]) -> str:
    """Datasets with their counts, and every input that was left out with its reason."""
    if not datasets and not quarantined:
        return ""
    rows = [{"dataset": item.name, **item.counts, "dataset id": item.dataset_id} for item in datasets]
    parts = [table(rows)] if rows else []
    if quarantined:
        lost = [{"dataset": item.dataset, "input": item.uri, "reason": item.reason} for item in quarantined]
        parts.append(f"<h3>Inputs left out ({len(quarantined)})</h3>{table(lost)}")
    else:
        parts.append('<p class="dim">No input was quarantined.</p>')
    return "".join(parts)


def lineage_section(content: ReportContent) -> str:
    """Identities from input to score, and versions."""
    versions = f"<h3>Versions</h3>{_definitions(content.versions)}" if content.versions else ""
    return (_definitions(content.lineage) if content.lineage else "") + versions


def commands_section(commands: Sequence[tuple[str, str]]) -> str:
    """Command lines that reproduce the page."""
    return "".join(f"<p>{escape(what)}</p><pre>{escape(command)}</pre>" for what, command in commands)


def _definitions(pairs: Sequence[tuple[str, object]]) -> str:
    return "<dl>" + "".join(f"<dt>{escape(key)}</dt><dd>{escape(value)}</dd>" for key, value in pairs) + "</dl>"
