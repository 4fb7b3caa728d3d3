"""The prep stage: a recipe's datasets are built, and the job is recorded in PREP_ROOT/prep_report.json and MLflow."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from mcjepa.data_prep.job import PrepReport, ProgressEvent, run_prep
from mcjepa.data_prep.requeue import RequeueReport
from mcjepa.data_prep.storage import absolute_location, join_location, write_json
from mcjepa.data_prep.workers.ray_submit import submit_prep
from mcjepa.pipeline.recipe.recipe import Recipe, required
from mcjepa.pipeline.run.folder import PREP_REPORT
from mcjepa.pipeline.tracking import Tracker, dataset_tag, origin_tags, run_label

if TYPE_CHECKING:
    from mcjepa.data_prep.settings import PrepConfig

COUNTS = ("inputs", "ok", "filtered", "quarantined", "shards", "samples", "bytes", "reused_shards")


def run_preparation(recipe: Recipe, plain: dict[str, Any], on_event: Callable[[ProgressEvent], None]) -> dict[str, Any]:
    """Builds and publishes the datasets; the record that is also in prep_report.json.

    Args:
        recipe: with a `prep` part.
        plain: the same as plain data.
        on_event: told how far it is.
    """
    started = time.perf_counter()
    config: PrepConfig = required(recipe.prep, "prep", recipe)
    record = describe_preparation(run_prep(config, on_event=on_event))
    record["seconds"] = round(time.perf_counter() - started, 1)
    record["run_id"] = _log_run(recipe, plain, record)
    write_json(report_folder(recipe) / PREP_REPORT, record)
    return record


def report_folder(recipe: Recipe) -> Path:
    """Where a recipe's preparation leaves its report: beside local datasets, else in the recipe's folder."""
    root = required(recipe.prep, "prep", recipe).root
    return Path(recipe.out) if "://" in root else Path(root)


def submit_preparation(address: str, plain: dict[str, Any], on_text: Callable[[str], None]) -> bool:
    """Runs the job on the Ray cluster whose dashboard is there, with the resolved recipe; whether it succeeded."""
    return submit_prep(address, yaml.safe_dump(plain, sort_keys=False), on_text)


def dataset_locations(config: PrepConfig) -> dict[str, str]:
    """Where each dataset of the recipe lies."""
    return {name: absolute_location(join_location(config.root, name)) for name in config.datasets}


def describe_preparation(report: PrepReport) -> dict[str, Any]:
    """The job's result as plain data: datasets by name, and every input that was left out because of a fault."""
    datasets = {
        d.name: {
            "dataset_id": d.dataset_id,
            "location": d.location,
            **dataclasses.asdict(d.totals),
            "reused_shards": d.reused_shards,
            "others": d.others,
        }
        for d in report.datasets
    }
    quarantined = [
        {"dataset": d.name, "uri": record.where, "reason": record.reason}
        for d in report.datasets
        for record in d.rejected
        if record.outcome == "quarantined"
    ]
    if report.moving_photos:
        quarantined += [
            {"dataset": "moving-photos", "uri": uri, "reason": reason} for uri, reason in report.moving_photos.skipped
        ]
    return {"version": 1, "datasets": datasets, "quarantined": quarantined}


def describe_requeue(report: RequeueReport) -> dict[str, Any]:
    """What trying again has given, as plain data."""
    return {
        "name": report.name,
        "location": report.location,
        "retried": report.retried,
        "saved": report.saved,
        "samples": report.samples,
        "revision": report.manifest.revision,
        "parent": report.manifest.parent,
        "dataset_id": report.manifest.dataset_id,
    }


def _log_run(recipe: Recipe, plain: dict[str, Any], record: dict[str, Any]) -> str:
    """Logs the job to MLflow; the dataset ids link it to the runs that train on them."""
    datasets = record["datasets"]
    tracker = Tracker(
        recipe.tracking.uri,
        recipe.tracking.experiment,
        recipe.tracking.artifacts,
        run_name=f"prep {run_label(plain)}",
        run_id=None,
        tags={
            **origin_tags("prep", plain),
            "mcjepa.dataset_ids": dataset_tag([d["dataset_id"] for d in datasets.values()]),
        },
        began=time.time() - record["seconds"],
    )
    status = "FAILED"
    try:
        tracker.params(plain["prep"], "prep.")
        metrics = {f"{name}/{key}": float(d[key]) for name, d in datasets.items() for key in COUNTS}
        tracker.metrics(metrics | {"seconds": record["seconds"]}, 0)
        tracker.document(record, PREP_REPORT)
        tracker.datasets(
            [
                {"name": name, "dataset_id": d["dataset_id"], "location": d["location"], "context": "published"}
                for name, d in datasets.items()
            ]
        )
        status = "FINISHED"
    finally:
        tracker.end(status)
    return tracker.run_id
