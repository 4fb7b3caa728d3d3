"""`mcjepa eval`: scores of a run's weights, MLflow, the report and the summary."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_prep.storage import atomic_write
from pipeline.cli.output import StageProgress
from pipeline.cli.recipe import Recipe, load_recipe, required
from pipeline.errors import UsageError

if TYPE_CHECKING:
    from evals.cards import Score
    from evals.config import EvalConfig

PARTIAL = 4
MOST_NAMED = 5
"""Items of an incomplete score that are named on standard error."""


def evaluate_all(arguments: argparse.Namespace) -> int:
    """`mcjepa eval all`: everything that the recipe names, the report and the summary."""
    started = time.perf_counter()
    recipe, plain = load_recipe(arguments.recipe, arguments.overrides)
    config = required(recipe.eval, "eval", recipe)
    weights = Path(arguments.weights) if arguments.weights else _newest_weights(recipe)
    from evals.model_under_test import read_weights

    known = read_weights(weights)
    out = Path(recipe.out)
    scores = _score(weights, config, out / "eval")
    from pipeline.cli.report import write_results

    run_id = _log_run(recipe, plain, scores, known.digest, dict(known.lineage))
    seconds = round(time.perf_counter() - started, 1)
    summary = write_results(recipe, scores, known, {"eval": run_id, "seconds": seconds})
    _attach_report(recipe, run_id, out)
    _print_scores(scores, arguments.json, summary)
    return exit_code(scores)


def evaluate_one(arguments: argparse.Namespace, config: EvalConfig) -> int:
    """One benchmark on the weights that the command line names, without a recipe."""
    weights = Path(arguments.weights)
    if not weights.is_dir():
        raise UsageError(f"no weights folder {weights}, expected one with model.safetensors and config.json")
    scores = _score(weights, config, Path(arguments.out))
    _print_scores(scores, arguments.json, {s.name: dict(s.metrics) for s in scores})
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


def _score(weights: Path, config: EvalConfig, out: Path) -> list[Score]:
    from evals.progress import EvalEvent
    from evals.run import run_evaluation

    with StageProgress("eval") as progress:

        def show(event: EvalEvent) -> None:
            progress.update(f"{event.score} {event.phase}", event.done, event.total)

        return run_evaluation(weights, config, out, show)


def _newest_weights(recipe: Recipe) -> Path:
    from pipeline.checkpoint import newest_weights

    run = Path(required(recipe.train, "train", recipe).run)
    weights = newest_weights(run)
    if weights is None:
        raise UsageError(f"no weights below {run / 'weights'}, expected a trained run; `mcjepa train` comes before")
    return weights


def _log_run(
    recipe: Recipe, plain: dict[str, Any], scores: Sequence[Score], digest: str, lineage: dict[str, Any]
) -> str:
    """Logs the scores to MLflow, linked to the training and the datasets."""
    from pipeline.tracking import Tracker, dataset_tag

    tags = {
        "mcjepa.stage": "eval",
        "mcjepa.weights_digest": digest,
        "mcjepa.train_run": str(lineage.get("run_id", "")),
        "mcjepa.dataset_ids": dataset_tag(lineage.get("dataset_ids", [])),
    }
    tracker = Tracker(
        recipe.tracking.uri,
        recipe.tracking.experiment,
        recipe.tracking.artifacts,
        run_name=f"eval {recipe.name}",
        run_id=None,
        tags=tags,
    )
    status = "FAILED"
    try:
        tracker.params(plain["eval"], "eval.")
        for score in scores:
            tracker.metrics({f"{score.name}/{name}": value for name, value in score.metrics.items()}, 0)
        tracker.artifact(Path(recipe.out) / "eval", "eval")
        status = "FINISHED"
    finally:
        tracker.end(status)
    return tracker.run_id


def _attach_report(recipe: Recipe, run_id: str, out: Path) -> None:
    from pipeline.tracking import attach

    attach(recipe.tracking.uri, run_id, [out / "report.html", out / "summary.json"])


def _print_scores(scores: Sequence[Score], as_json: bool, document: dict[str, Any]) -> None:
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
