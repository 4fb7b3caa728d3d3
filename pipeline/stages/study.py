"""The tables of a study: what its runs have been scored so far, in OUT/NAME.table.json, .md and MLflow."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mcjepa.data_prep.storage import atomic_write
from mcjepa.evals.study.table import StudyTable, build_table, markdown
from mcjepa.pipeline.errors import UsageError
from mcjepa.pipeline.launch.study import RECORD, StudyRun, study_runs
from mcjepa.pipeline.recipe.recipe import Recipe, required
from mcjepa.pipeline.run.folder import METRICS, read_metrics
from mcjepa.pipeline.tracking import Tracker

SUMMARY = "summary.json"


def study_table(recipe: Recipe) -> tuple[StudyTable, str]:
    """The table of all runs that are scored, and its Markdown; both are written beside the runs and into MLflow.

    Raises:
        UsageError: no run is scored yet.
    """
    runs = study_runs(recipe)
    scores: dict[str, dict[int, dict[str, dict[str, float]]]] = {}
    for run in runs:
        found = _scores(run)
        if found is not None:
            scores.setdefault(run.arm, {})[run.seed] = found
    if not scores:
        raise UsageError(f"no run of {recipe.name} below {recipe.out}/runs is scored; `mcjepa study run` comes before")
    records: dict[str, dict[int, list[dict[str, float]]]] = {}
    for run in runs:
        if run.trained:
            records.setdefault(run.arm, {})[run.seed] = read_metrics(run.run / METRICS)
    steps = required(recipe.train, "train", recipe).steps
    table = build_table(recipe.name, steps, required(recipe.study, "study", recipe), scores, records)
    text, out = markdown(table), Path(recipe.out)
    files = {f"{recipe.name}.table.json": json.dumps(table.to_dict(), indent=1) + "\n", f"{recipe.name}.table.md": text}
    for name, content in files.items():
        atomic_write(out / name, content.encode())
    _record(recipe, table, [out / name for name in files])
    return table, text


def _scores(run: StudyRun) -> dict[str, dict[str, float]] | None:
    """Metrics by score of the run's newest evaluation; None before one. A metric that was not finite is left out."""
    path = run.folder / SUMMARY
    if not run.trained or not path.is_file():
        return None
    document: Mapping[str, Any] = json.loads(path.read_bytes())["scores"]
    return {name: {k: float(v) for k, v in metrics.items() if v is not None} for name, metrics in document.items()}


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
