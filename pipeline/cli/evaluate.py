"""What all `mcjepa eval` commands share: scoring with progress, printing, and `eval flow|probe|vos` themselves."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_prep.storage import atomic_write
from pipeline.cli.output import StageProgress
from pipeline.errors import UsageError

if TYPE_CHECKING:
    from evals.cards import Score
    from evals.config import EvalConfig

PARTIAL = 4
MOST_NAMED = 5
"""Items of an incomplete score that are named on standard error."""


def evaluate_one(arguments: argparse.Namespace, config: EvalConfig) -> int:
    """One benchmark on the weights that the command line names, without a recipe."""
    weights = Path(arguments.weights)
    if not weights.is_dir():
        raise UsageError(f"no weights folder {weights}, expected one with model.safetensors and config.json")
    scores = score(weights, config, Path(arguments.out))
    print_scores(scores, arguments.json, {s.name: dict(s.metrics) for s in scores})
    return exit_code(scores)


def exit_code(scores: Sequence[Score]) -> int:
    """4 if any score lacks an item that could not be scored, which standard error then names; else 0."""
    incomplete = [score for score in scores if not score.card.complete]
    for score in incomplete:
        for reason in score.card.failed[:MOST_NAMED]:
            print(f"mcjepa: {score.name} is incomplete: {reason}", file=sys.stderr)
        if len(score.card.failed) > MOST_NAMED:
            print(f"mcjepa: … and {len(score.card.failed) - MOST_NAMED} more, all on the card", file=sys.stderr)
    return PARTIAL if incomplete else 0


def score(weights: Path, config: EvalConfig, out: Path) -> list[Score]:
    """Scores weights and shows how far it is."""
    from evals.progress import EvalEvent
    from evals.run import run_evaluation

    with StageProgress("eval") as progress:

        def show(event: EvalEvent) -> None:
            progress.update(f"{event.score} {event.phase}", event.done, event.total)

        return run_evaluation(weights, config, out, show)


def print_scores(scores: Sequence[Score], as_json: bool, document: dict[str, Any]) -> None:
    """Prints every metric, or the document as JSON."""
    if as_json:
        print(json.dumps(document, default=dataclasses.asdict))
        return
    for score in scores:
        for name, value in score.metrics.items():
            print(f"{score.name:<24} {name:<28} {value:10.4f}")
    sys.stdout.flush()


def write_json(path: Path, document: dict[str, Any]) -> None:
    """Writes a readable JSON file, at once or not at all."""
    atomic_write(path, (json.dumps(document, indent=1) + "\n").encode())
