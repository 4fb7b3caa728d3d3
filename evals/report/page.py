"""Writes the report: one HTML file that holds its style, charts and pictures, and loads nothing from anywhere.

Here plain data becomes what `page.html.j2` shows: numbers as text, tables as cells, pictures as their panels.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mcjepa.data_prep.card.charts import Chart, Curve, format_number, line_chart
from mcjepa.data_prep.card.frame import Cell, InlinePicture, Section, Table, render_page
from mcjepa.data_prep.storage import atomic_write
from mcjepa.evals.cards import Picture, Score
from mcjepa.evals.measures import measure_of
from mcjepa.evals.pictures import png_bytes, split_panels, webp_bytes, wheel_picture
from mcjepa.evals.report.comparison import Evaluated, compare_scores, metric_curves
from mcjepa.evals.report.content import ReportContent, Tile, rival_name
from mcjepa.evals.report.paper_table import COLUMNS, PAPER, PaperCell, our_row

HERE = Path(__file__).parent
MOST_ROWS = 200
PLOT = "confusion.png"
"""A picture that is drawn at its own size, its letters sharp."""
MASK_KINDS = ("segmentation", "finetune", "vos")
"""Kinds of pictures whose edges stay sharp when they are enlarged."""
PICTURE_SECTIONS = (
    ("flow", "flow", "Optical flow"),
    ("features", "features", "Features"),
    ("segmentation", "segmentation", "Segmentation probe"),
    ("masks", "vos", "Mask propagation"),
    ("finetune", "finetune", "Fine-tuned segmentation"),
    ("classes", "classification", "Image classification"),
)
"""Anchor, kind of the pictures, heading; the template says how to read them."""


def write_report(path: Path, content: ReportContent) -> None:
    """Writes the page to `path` in one step: a reader sees the old file or the whole new one.

    Raises:
        OSError: a picture file is missing, or the page cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, render_report(content).encode())


def render_report(content: ReportContent) -> str:
    """The page as text; the scores' picture files are read and embedded."""
    scores = content.scores
    sections = [
        Section("headline", "Headline", "tiles", [_tile(tile) for tile in content.tiles]),
        Section("paper", "Beside the paper", "paper", _paper_table(content.evaluations)),
        Section("comparison", "Side by side", "comparison", _comparison(content.evaluations)),
        Section("curves", "Training curves", "curves", _chart_groups(content.curves)),
        *(Section(anchor, heading, "pictures", _pictures(scores, kind)) for anchor, kind, heading in PICTURE_SECTIONS),
        Section("scores", "Scores and cards", "scores", [_score(score) for score in scores]),
        Section("data", "Data", "data", _data(content)),
        Section("lineage", "Lineage and versions", "lineage", _lineage(content)),
        Section("commands", "To reproduce", "commands", content.commands),
    ]
    script = (HERE / "cursor.js").read_text(encoding="utf-8")
    return render_page(HERE, content.title, content.summary, sections, script=script, filters={"shown": shown})


def shown(value: object) -> str:
    """A value for people."""
    return format_number(value) if isinstance(value, float) else str(value)


def _tile(tile: Tile) -> dict[str, Any]:
    rows = [("model", tile.value), *tile.rivals]
    longest = max((value for _, value in rows if value == value), default=0.0) or 1.0
    bars = [{"name": name, "value": value, "share": _percent(value, longest)} for name, value in rows]
    return {**vars(tile), "bars": bars, "verdicts": _verdicts(tile)}


def _percent(value: float, longest: float) -> str:
    part = max(0.0, min(1.0, value / longest)) if value == value else 0.0
    return f"{100 * part:.1f}%"


def _verdicts(tile: Tile) -> list[dict[str, Any]]:
    """A line against the strongest baseline, and one against the first where that is another: how the numbers compare,
    never more. The strongest one comes first: to beat the weakest is no success."""
    rivals = [(name, value) for name, value in tile.rivals if math.isfinite(value)]
    if not rivals or not math.isfinite(tile.value):
        return []
    strongest = (min if tile.lower_is_better else max)(rivals, key=lambda rival: rival[1])
    return [_verdict(tile, *rival) for rival in dict.fromkeys((strongest, rivals[0]))]


def _verdict(tile: Tile, name: str, rival: float) -> dict[str, Any]:
    if tile.lower_is_better:
        text = f"{tile.value / rival:.0%} of {name}'s" if rival > 0 else f"{name}: {format_number(rival)}"
        return {"text": text, "better": tile.value < rival}
    points = " points" if tile.unit == "%" else ""
    return {"text": f"{tile.value - rival:+.3g}{points} against {name}", "better": tile.value > rival}


def _paper_table(evaluations: Sequence[Evaluated]) -> Table | None:
    """The paper's rows, and a row for every evaluation that has one of its benchmarks; None where none has."""
    ours = [(evaluated.label, our_row(evaluated.scores)) for evaluated in evaluations]
    ours = [(label, cells) for label, cells in ours if any(math.isfinite(cell.value) for cell in cells)]
    if not ours:
        return None
    rows = [[Cell(name), *(_number(value) for value in values)] for name, values in PAPER]
    rows += [[Cell(label, strong=True), *(_our_number(cell) for cell in cells)] for label, cells in ours]
    return Table([Cell("method"), *(Cell(column.title, numeric=True) for column in COLUMNS)], rows)


def _number(value: float, best: bool = False) -> Cell:
    return Cell(shown(value) if math.isfinite(value) else "–", numeric=True, strong=best)


def _our_number(cell: PaperCell) -> Cell:
    if not math.isfinite(cell.value):
        return _number(cell.value)
    return Cell(f"{cell.value:.2f}", numeric=True, strong=True, note=cell.note)


def _comparison(evaluations: Sequence[Evaluated]) -> dict[str, Any] | None:
    """All metrics of at least two evaluations; None with fewer."""
    if len(evaluations) < 2:
        return None
    head = [Cell("metric"), *(Cell(evaluated.label, numeric=True) for evaluated in evaluations)]
    compared = []
    for score in compare_scores(evaluations):
        rows = [
            [_metric(metric.name), *(_number(value, n in metric.best) for n, value in enumerate(metric.values))]
            for metric in score.metrics
        ]
        if max(score.seeds) > 1:
            rows.append([Cell("seeds of the head"), *(Cell(str(count), numeric=True) for count in score.seeds)])
        labels = [evaluated.label for evaluated in evaluations]
        sentences = [difference.sentence(labels) for difference in score.against_first]
        compared.append(
            {"name": score.name, "differences": score.differences, "table": Table(head, rows), "sentences": sentences}
        )
    return {"curves": _chart_groups(metric_curves(evaluations)), "scores": compared}


def _metric(name: str) -> Cell:
    return Cell(name, unit=measure_of(name).unit)


def _chart_groups(curves: Mapping[str, Curve]) -> list[tuple[str, list[Chart]]]:
    """One chart for each curve, by group (the name's part before the last slash)."""
    groups: dict[str, list[Chart]] = {}
    for name, curve in curves.items():
        group, _, rest = name.rpartition("/")
        groups.setdefault(group.replace("_", " "), []).append(line_chart(rest, curve))
    return list(groups.items())


def _pictures(scores: Iterable[Score], kind: str) -> dict[str, Any] | None:
    """All pictures of one kind, by score; None if there are none."""
    found = []
    for score in scores:
        chosen = [picture for picture in score.pictures if picture.kind == kind]
        if chosen:
            strips = [_strip(picture) for picture in chosen]
            found.append({"name": score.name, "legend": chosen[0].legend, "pictures": strips})
    key = _inline(png_bytes(wheel_picture()), "key to the colours") if kind == "flow" else None
    return {"kind": kind, "key": key, "scores": found} if found else None


def _strip(picture: Picture) -> dict[str, Any]:
    png = picture.path.read_bytes()
    if picture.path.name == PLOT:
        panels, style = [png], "plot"
    else:
        panels, style = split_panels(png, len(picture.columns)), "masks" if picture.kind in MASK_KINDS else picture.kind
    headings = picture.columns if len(panels) > 1 else (" | ".join(picture.columns),)
    inline = [_inline(panel, picture.caption, lossless=style == "plot") for panel in panels]
    return {"caption": picture.caption, "style": style, "panels": list(zip(headings, inline, strict=True))}


def _inline(png: bytes, text: str, lossless: bool = False) -> InlinePicture:
    data, width, height = webp_bytes(png, lossless)
    return InlinePicture("webp", data, width, height, text)


def _score(score: Score) -> dict[str, Any]:
    """A score's numbers, its card and its table by item."""
    return {
        "name": score.name,
        "failed": len(score.card.failed),
        "metrics": _metrics(score),
        "card": _card_pairs(score),
        "by_item": _table(score.table) if score.table else None,
        "rows": len(score.table),
    }


def _metrics(score: Score) -> Table:
    """Metrics as rows, the model and its baselines as columns."""
    columns = ["", *score.rivals]
    of_rivals = {f"{name}_{rival}" for rival in score.rivals for name in score.metrics}
    rows = []
    for name in score.metrics:
        if name not in of_rivals:
            found = (score.metrics.get(f"{name}_{column}" if column else name, "") for column in columns)
            rows.append([_metric(name), *(Cell(shown(value), numeric=True) for value in found)])
    head = [Cell(rival_name(column) if column else "model", numeric=True) for column in columns]
    return Table([Cell("metric"), *head], rows)


def _card_pairs(score: Score) -> list[tuple[str, str]]:
    pairs = []
    for key, value in score.card.to_dict().items():
        if isinstance(value, Mapping):
            value = ", ".join(f"{name} = {setting}" for name, setting in value.items())
        elif isinstance(value, (tuple, list)):
            value = "; ".join(str(item) for item in value)
        if value not in ("", None):
            pairs.append((key.replace("_", " "), shown(value)))
    return pairs


def _table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Rows with the same keys; beyond 200 the rest is only counted."""
    numeric = {key: isinstance(value, (int, float)) for key, value in rows[0].items()}
    head = [Cell(key.replace("_", " "), numeric=is_number) for key, is_number in numeric.items()]
    cells = [[Cell(shown(row.get(key, "")), numeric=is_number) for key, is_number in numeric.items()] for row in rows]
    more = f"{len(rows) - MOST_ROWS} more rows are in the CSV file." if len(rows) > MOST_ROWS else ""
    return Table(head, cells[:MOST_ROWS], more)


def _data(content: ReportContent) -> dict[str, Any] | None:
    """Datasets with their counts, and every input that was left out with its reason."""
    if not content.datasets and not content.quarantined:
        return None
    datasets = [{"dataset": item.name, **item.counts, "dataset id": item.dataset_id} for item in content.datasets]
    lost = [{"dataset": item.dataset, "input": item.uri, "reason": item.reason} for item in content.quarantined]
    return {
        "datasets": _table(datasets) if datasets else None,
        "lost": _table(lost) if lost else None,
        "count": len(lost),
    }


def _lineage(content: ReportContent) -> dict[str, Any] | None:
    if not content.lineage and not content.versions:
        return None
    return {"lineage": content.lineage, "versions": content.versions}
