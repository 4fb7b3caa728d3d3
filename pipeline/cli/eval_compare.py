"""`mcjepa eval compare`: several evaluations on one page."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING

from mcjepa.pipeline.errors import UsageError

if TYPE_CHECKING:
    from mcjepa.evals.report.comparison import ComparedScore, Evaluated


def compare_evaluations(arguments: argparse.Namespace) -> int:
    """Reads evaluations, writes the page and prints the table."""
    from mcjepa.evals.report.comparison import compare
    from mcjepa.evals.report.content import ReportContent
    from mcjepa.evals.report.page import write_report

    evaluations = [found for word in arguments.folders for found in read_evaluations(word)]
    labels = [evaluated.label for evaluated in evaluations]
    twice = sorted({label for label in labels if labels.count(label) > 1})
    if twice:
        raise UsageError(f"two evaluations are named {twice}, expected a name each; write LABEL=DIR")
    content = ReportContent(
        title="mcjepa: evaluations side by side",
        summary=f"{len(evaluations)} evaluations: {', '.join(labels)}",
        evaluations=tuple(evaluations),
        scores=tuple(one for evaluated in evaluations[-1:] for one in evaluated.scores),
    )
    write_report(Path(arguments.out), content)
    compared = compare(evaluations)
    print(_as_json(labels, compared) if arguments.json else "\n".join(_lines(labels, compared)))
    return 0


def read_evaluations(word: str) -> list[Evaluated]:
    """The evaluation of a folder, or all of a folder of such, by name.

    Raises:
        UsageError: there is no such folder.
        DataError: there are no scores in it, or they are damaged.
    """
    from mcjepa.evals.cards import SCORES_NAME, read_scores
    from mcjepa.evals.report.comparison import Evaluated

    label, separator, place = word.partition("=")
    folder = Path(place if separator else word)
    if not folder.is_dir():
        raise UsageError(f"no folder {folder}, expected one with {SCORES_NAME}, such as OUT/eval/step-000001200")
    inside = sorted(path.parent for path in folder.glob(f"*/{SCORES_NAME}"))
    if inside and not (folder / SCORES_NAME).is_file():
        prefix = f"{label} " if separator else ""
        return [Evaluated(label=prefix + found.name, scores=tuple(read_scores(found))) for found in inside]
    return [Evaluated(label=label if separator else folder.resolve().name, scores=tuple(read_scores(folder)))]


def _as_json(labels: list[str], compared: tuple[ComparedScore, ...]) -> str:
    scores = {
        one.name: {
            "differences": list(one.differences),
            "metrics": {
                metric.name: [value if math.isfinite(value) else None for value in metric.values]
                for metric in one.metrics
            },
        }
        for one in compared
    }
    return json.dumps({"evaluations": labels, "scores": scores})


def _lines(labels: list[str], compared: tuple[ComparedScore, ...]) -> list[str]:
    wide = max(14, *(len(label) for label in labels)) + 2
    lines = [f"{'':<28} {'':<22}" + "".join(f"{label:>{wide}}" for label in labels)]
    for one in compared:
        for metric in one.metrics:
            values = (_cell(value, i in metric.best) for i, value in enumerate(metric.values))
            lines.append(f"{one.name:<28} {metric.name:<22}" + "".join(f"{value:>{wide}}" for value in values))
        lines += [f"  not comparable: {text}" for text in one.differences]
    return lines


def _cell(value: float, best: bool) -> str:
    return f"{value:.4f}{'*' if best else ' '}" if math.isfinite(value) else "- "
