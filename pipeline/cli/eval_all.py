"""`mcjepa eval all`: every benchmark of a recipe on its run's weights, in MLflow and a report; once, or as they come.

What is done for a weights folder is in OUT/eval/NAME: `scores.json` with the key of what was asked, then `mlflow.json`
with the run that has it. A restarted command reads both and does only what is missing.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mcjepa.data_prep.errors import DataError
from mcjepa.evals.record import record_scores
from mcjepa.pipeline.cli.evaluate import PARTIAL, exit_code, print_scores, score
from mcjepa.pipeline.errors import UsageError
from mcjepa.pipeline.recipe.recipe import Recipe, load_recipe, required
from mcjepa.pipeline.run.weights import RunWeights

if TYPE_CHECKING:
    from mcjepa.evals.cards import Score
    from mcjepa.evals.subject import Weights

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Evaluated:
    """What is known of one weights folder after its evaluation."""

    weights: Weights
    scores: list[Score]
    run_id: str


def evaluate_all(arguments: argparse.Namespace) -> int:
    """Scores a recipe's newest weights, those of a folder, or with `--follow` all as the training writes them."""
    recipe, plain = load_recipe(arguments.recipe, arguments.overrides)
    required(recipe.eval, "eval", recipe)
    if arguments.weights:
        done = _evaluate(recipe, plain, Path(arguments.weights), arguments.again)
        return _end(arguments, recipe, done, skipped=[])
    run = required(recipe.train, "train", recipe).run
    weights = RunWeights(run, Path(recipe.out) / "eval" / ".weights")
    names = _follow(weights, recipe, arguments) if arguments.follow else iter(weights.names()[-1:])
    last, skipped = None, []
    for name in names:
        try:
            folder = weights.fetch(name)
            last = _evaluate(recipe, plain, folder, arguments.again)
        except (DataError, OSError) as error:
            if not arguments.follow or name in weights.names():
                raise
            log.warning("%s was removed by its run before it was scored (%s)", name, error)
            skipped.append(name)
        finally:
            weights.forget(name)
    if last is None:
        raise UsageError(
            f"no weights below {weights.location}/weights, expected a trained run; `mcjepa train` comes before"
        )
    return _end(arguments, recipe, last, skipped)


def _follow(weights: RunWeights, recipe: Recipe, arguments: argparse.Namespace) -> Iterator[str]:
    """Names of weights folders as they appear, until the training says that it has finished."""
    steps = required(recipe.train, "train", recipe).steps
    seen: set[str] = set()
    waited_since = time.monotonic()
    while True:
        finished = weights.is_finished(steps)  # asked first: what it wrote before is listed below
        new = [name for name in weights.names() if name not in seen]
        if new:
            seen.add(new[0])
            yield new[0]  # one by one: the list may have changed when it has been scored
            waited_since = time.monotonic()
        elif finished:
            return
        elif arguments.patience_s and time.monotonic() - waited_since > arguments.patience_s:
            raise DataError(
                f"no new weights below {weights.location} for {arguments.patience_s:.0f} s and the training has not "
                "finished; look at its log, and run this command again when it goes on"
            )
        else:
            time.sleep(arguments.poll_s)


def _evaluate(recipe: Recipe, plain: dict[str, Any], folder: Path, again: bool) -> Evaluated:
    """Scores one weights folder, records it and renews the report; what is there already is not done again."""
    from mcjepa.evals.cards import evaluation_key, read_scores, stored_key
    from mcjepa.evals.subject import read_weights

    started = time.perf_counter()
    config = required(recipe.eval, "eval", recipe)
    known = read_weights(folder)
    out = Path(recipe.out) / "eval" / folder.name
    key = evaluation_key(known.digest, known.lineage, config)
    if again or stored_key(out) != key:
        scores = score(folder, config, out)
    else:
        log.info("%s has been scored already; --again scores it again", folder.name)
        scores = read_scores(out)
    run_id = record_scores(recipe.tracking, f"{recipe.name} {folder.name}", plain["eval"], scores, out)
    from mcjepa.evals.report.chain import write_results

    seconds = round(time.perf_counter() - started, 1)
    write_results(recipe, scores, known, {"eval": run_id, "seconds": seconds})
    return Evaluated(known, scores, run_id)


def _end(arguments: argparse.Namespace, recipe: Recipe, last: Evaluated, skipped: list[str]) -> int:
    from mcjepa.pipeline.tracking import attach

    out = Path(recipe.out)
    attach(recipe.tracking.uri, last.run_id, [out / "report.html", out / "summary.json"])
    summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    print_scores(last.scores, arguments.json, summary)
    if skipped:
        log.warning("%d weights folders were removed before they were scored: %s", len(skipped), ", ".join(skipped))
    return PARTIAL if skipped else exit_code(last.scores)
