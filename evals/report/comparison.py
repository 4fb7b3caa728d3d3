"""The report's comparisons: evaluations side by side, and the paper's table with rows of ours."""

from __future__ import annotations

import math
from collections.abc import Sequence

from mcjepa.evals.report.compare import ComparedScore, Evaluated, compare, curves
from mcjepa.evals.report.content import metric_unit
from mcjepa.evals.report.paper_table import COLUMNS, PAPER, Cell, our_row
from mcjepa.evals.report.sections import curves_section, escape

_NOTE = (
    "One column an evaluation, the best number of a row in bold. Where the cards differ in more than the weights, the "
    "difference is named and nothing is marked: such numbers must not be compared."
)
_PAPER_NOTE = (
    "Rows of others as the paper reports them: EPE on the training sets (px, lower is better), mIoU and J&F in %. A "
    "number of ours in brackets is of a part of the benchmark and no result to compare; its title says which part."
)


def comparison_section(evaluations: Sequence[Evaluated]) -> str:
    """All metrics of at least two evaluations; empty with fewer."""
    if len(evaluations) < 2:
        return ""
    tables = "".join(_compared(score, evaluations) for score in compare(evaluations))
    return f'<p class="dim">{escape(_NOTE)}</p>{curves_section(curves(evaluations))}{tables}'


def _compared(score: ComparedScore, evaluations: Sequence[Evaluated]) -> str:
    head = "".join(f'<th class="n">{escape(evaluated.label)}</th>' for evaluated in evaluations)
    rows = []
    for metric in score.metrics:
        cells = "".join(_number(value, index in metric.best) for index, value in enumerate(metric.values))
        rows.append(f"<tr><td>{escape(metric.name)} <small>{metric_unit(metric.name)}</small></td>{cells}</tr>")
    warning = ""
    if score.differences:
        found = "".join(f"<li>{escape(text)}</li>" for text in score.differences)
        warning = f'<div class="bad">Not comparable, the cards differ in:<ul>{found}</ul></div>'
    return (
        f"<h3>{escape(score.name)}</h3>{warning}"
        f'<div class="scroll"><table><tr><th>metric</th>{head}</tr>{"".join(rows)}</table></div>'
    )


def _number(value: float, best: bool) -> str:
    text = escape(value) if math.isfinite(value) else "–"
    return f'<td class="n">{f"<b>{text}</b>" if best else text}</td>'


def paper_section(evaluations: Sequence[Evaluated]) -> str:
    """The paper's table, and a row for every evaluation that has one of its benchmarks; empty where none has."""
    rows = [(evaluated.label, our_row(evaluated.scores)) for evaluated in evaluations]
    rows = [(label, cells) for label, cells in rows if any(math.isfinite(cell.value) for cell in cells)]
    if not rows:
        return ""
    head = "".join(f'<th class="n">{escape(column.title)}</th>' for column in COLUMNS)
    theirs = "".join(
        f"<tr><td>{escape(name)}</td>{''.join(_number(value, False) for value in values)}</tr>"
        for name, values in PAPER
    )
    ours = "".join(
        f"<tr><td><b>{escape(label)}</b></td>{''.join(_cell(cell) for cell in cells)}</tr>" for label, cells in rows
    )
    return (
        f'<p class="dim">{escape(_PAPER_NOTE)}</p>'
        f'<div class="scroll"><table><tr><th>method</th>{head}</tr>{theirs}{ours}</table></div>'
    )


def _cell(cell: Cell) -> str:
    if not math.isfinite(cell.value):
        return '<td class="n">–</td>'
    number = f"{cell.value:.2f}"
    if cell.note:
        return f'<td class="n" title="{escape(cell.note)}"><small>({number})</small></td>'
    return f'<td class="n"><b>{number}</b></td>'
