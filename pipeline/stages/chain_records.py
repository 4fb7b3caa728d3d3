"""What the stages of a recipe have recorded about the weights that were scored, for the report.

Weights may be of another run than the recipe's, and a run may have been trained on an earlier preparation: what
belongs to the weights is decided by their own record.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mcjepa.data_prep.storage import Store, open_store
from mcjepa.data_prep.storage.folder import FolderStore
from mcjepa.evals.models import Weights
from mcjepa.evals.report.chain import Chain
from mcjepa.pipeline.recipe.files import write_plain
from mcjepa.pipeline.recipe.recipe import Recipe
from mcjepa.pipeline.run.folder import (
    METRICS,
    PREP_REPORT,
    RECIPE,
    RESOLVED_RECIPE,
    RUN_RECORD,
    TRAIN_REPORT,
    WEIGHTS,
    parse_metrics,
    read_run_record,
)
from mcjepa.pipeline.stages.preparation import report_folder


def recorded_chain(recipe: Recipe, plain: dict[str, Any], weights: Weights, fetched: bool) -> Chain:
    """The chain behind weights.

    Args:
        recipe: with an `eval` part.
        plain: the same as plain data.
        weights: what was scored.
        fetched: whether they were brought here from the recipe's run.
    """
    run = open_store(recipe.train.run) if recipe.train else None
    local = run.path(RECIPE) if isinstance(run, FolderStore) else None
    if run and not fetched and not (local and _is_of(local.parent, weights)):
        run, local = None, None  # a bucket is not asked about weights that were named by their folder
    return Chain(
        name=recipe.name,
        out=Path(recipe.out),
        recipe=write_plain(plain, Path(recipe.out) / RESOLVED_RECIPE),
        run_recipe=local if local and local.is_file() else None,
        prep=_prepared(recipe, weights),
        run=_document(run, RUN_RECORD) if run else {},
        training=_document(run, TRAIN_REPORT) if run else {},
        metrics=parse_metrics(run.read(METRICS).decode()) if run and run.exists(METRICS) else [],
        weights=f"{run.location}/{WEIGHTS}/{weights.folder.name}" if run and local is None else str(weights.folder),
    )


def _is_of(run: Path, weights: Weights) -> bool:
    """Whether weights are of the run in a folder: they lie in it, or name it."""
    if weights.folder.resolve().is_relative_to((run / WEIGHTS).resolve()):
        return True
    run_id = read_run_record(run).get("run_id")
    return bool(run_id) and run_id == weights.lineage.get("run_id")


def _prepared(recipe: Recipe, weights: Weights) -> dict[str, Any]:
    """The record of the preparation with the datasets that the weights saw; nothing where they saw none of it."""
    path = report_folder(recipe) / PREP_REPORT if recipe.prep else None
    if path is None or not path.is_file():
        return {}
    record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    ids = set(weights.lineage.get("dataset_ids", []))
    seen = {name: dataset for name, dataset in record["datasets"].items() if dataset["dataset_id"] in ids}
    return record | {"datasets": seen} if seen else {}


def _document(store: Store, key: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(store.read(key)) if store.exists(key) else {}
    return document
