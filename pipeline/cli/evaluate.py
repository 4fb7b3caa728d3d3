"""What all `mcjepa eval` commands share: scoring with progress, printing, and `eval flow|probe|vos` themselves."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mcjepa.data_prep.storage import atomic_write
from mcjepa.pipeline.cli.output import StageProgress
from mcjepa.pipeline.errors import UsageError

if TYPE_CHECKING:
    from mcjepa.evals.cards import Score
    from mcjepa.evals.progress import OnEvent
    from mcjepa.evals.settings import EvalConfig

OK, PARTIAL = 0, 4
MOST_NAMED = 5
"""Items of an incomplete score that are named on standard error."""


def evaluate_one(arguments: argparse.Namespace, config: EvalConfig) -> int:
    """One benchmark on the weights that the command line names, without a recipe."""
    scores = score(require_weights(arguments.weights), config, Path(arguments.out))
    from mcjepa.evals.record import publish

    publish(arguments, scores)
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
    return PARTIAL if incomplete else OK


def score(weights: Path, config: EvalConfig, out: Path) -> list[Score]:
    """Scores weights and shows how far it is."""
    from mcjepa.evals.run import run_evaluation

    with shown_events() as show:
        return run_evaluation(weights, config, out, show)


@contextmanager
def shown_events() -> Iterator[OnEvent]:
    """What an evaluation tells is shown as progress on standard error."""
    with StageProgress("eval") as progress:
        yield lambda event: progress.update(f"{event.score} {event.phase}", event.done, event.total)


def take_optional_weights(arguments: argparse.Namespace) -> None:
    """Gives a first word that is an override back to the overrides: argparse takes it for optional WEIGHTS."""
    if arguments.weights and "=" in arguments.weights and not Path(arguments.weights).exists():
        arguments.overrides = [arguments.weights, *arguments.overrides]
        arguments.weights = None


def require_weights(folder: str) -> Path:
    """The weights folder.

    Raises:
        UsageError: there is no such folder.
    """
    if not Path(folder).is_dir():
        raise UsageError(
            f"no weights folder {folder}, expected one with model.safetensors and config.json; "
            "`mcjepa export` makes one"
        )
    return Path(folder)


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
