"""The tables of a study: what its runs have been scored so far, in OUT/NAME.table.json, .md and MLflow."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mcjepa.data_prep.storage import atomic_write
from mcjepa.evals.cards import Score, read_scores, stored_key
from mcjepa.evals.models import read_weights
from mcjepa.evals.run import evaluation_key
from mcjepa.evals.study.table import StudyTable, build_table, markdown
from mcjepa.pipeline.errors import UsageError
from mcjepa.pipeline.launch.study import RECORD, StudyRun, run_recipe, study_runs
from mcjepa.pipeline.recipe.recipe import Recipe, required
from mcjepa.pipeline.recipe.validation import validate
from mcjepa.pipeline.run.folder import METRICS, read_metrics
from mcjepa.pipeline.tracking import Tracker

log = logging.getLogger(__name__)


def study_table(recipe: Recipe, plain: Mapping[str, Any]) -> tuple[StudyTable, str]:
    """The table of all runs that are scored, and its Markdown; both are written beside the runs and into MLflow.

    Args:
        recipe: with a `study`.
        plain: the same as plain data.

    Raises:
        UsageError: no run is scored yet by the recipe's protocol.
    """
    runs = study_runs(recipe)
    scores: dict[str, dict[int, dict[str, dict[str, float]]]] = {}
    incomplete: list[str] = []
    for run in runs:
        found = _scores(run, validate(Recipe, run_recipe(run, recipe, plain), run.name))
        if found is not None:
            scores.setdefault(run.arm, {})[run.seed] = {score.name: _finite(score.metrics) for score in found}
            lacking = ((score.name, len(score.card.failed)) for score in found if not score.card.complete)
            incomplete += [f"{run.name} {name}: {count} items failed" for name, count in lacking]
    if not scores:
        raise UsageError(
            f"no run of {recipe.name} below {recipe.out}/runs is scored by its `eval`; run `mcjepa study run`"
        )
    records: dict[str, dict[int, list[dict[str, float]]]] = {}
    for run in runs:
        if run.trained:
            records.setdefault(run.arm, {})[run.seed] = read_metrics(run.run / METRICS)
    steps = required(recipe.train, "train", recipe).steps
    table = build_table(recipe.name, steps, required(recipe.study, "study", recipe), scores, records, incomplete)
    text, out = markdown(table), Path(recipe.out)
    files = {f"{recipe.name}.table.json": json.dumps(table.to_dict(), indent=1) + "\n", f"{recipe.name}.table.md": text}
    for name, content in files.items():
        atomic_write(out / name, content.encode())
    _record(recipe, table, [out / name for name in files])
    return table, text


def _finite(metrics: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if math.isfinite(value)}


def _scores(run: StudyRun, recipe: Recipe) -> list[Score] | None:
    """Scores of the run's newest weights under the study's protocol; None before they are there."""
    if not run.trained or run.weights is None:
        return None
    folder, config = run.folder / "eval" / run.weights.name, required(recipe.eval, "eval", recipe)
    key = stored_key(folder)
    if key != evaluation_key(read_weights(run.weights).identity, config):
        if key:
            log.warning(
                "%s is scored by another protocol or weights than the study's; run `mcjepa study run`", run.name
            )
        return None
    return read_scores(folder)


def _record(recipe: Recipe, table: StudyTable, files: list[Path]) -> None:
    """Means over seeds and the tables, in the study's own MLflow run; nowhere where it has none."""
    record = Path(recipe.out) / RECORD
    run_id = json.loads(record.read_bytes()).get(recipe.name) if record.is_file() else None
    if not run_id:
        return
    where = recipe.tracking
    tracker = Tracker(
        where.uri, where.experiment, where.artifacts,
        run_name=f"study {recipe.name}", run_id=run_id, tags={"mcjepa.stage": "study"},
    )  # fmt: skip
    names = {label: "".join(c if c.isalnum() or c in "-_. /" else " " for c in label) for label in table.measures}
    means = {f"{a}/{names[m]}": cell.spread.mean for a, cells in table.cells.items() for m, cell in cells.items()}
    tracker.metrics(means, table.steps)
    for path in files:
        tracker.artifact(path)
    tracker.end()
