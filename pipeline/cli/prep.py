"""`mcjepa prep`: plan, run and audit the datasets of a recipe."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.cli.evaluate import write_json
from pipeline.cli.output import StageProgress
from pipeline.cli.recipe import Recipe, load_recipe, required

if TYPE_CHECKING:
    from data_prep.config import PrepConfig
    from data_prep.job import PrepReport, ProgressEvent

OK, REJECTED, PARTIAL = 0, 3, 4


def prep_plan(arguments: argparse.Namespace) -> int:
    """`mcjepa prep plan`: nothing is written."""
    recipe, _ = load_recipe(arguments.recipe, arguments.overrides)
    config: PrepConfig = required(recipe.prep, "prep", recipe)
    from data_prep.job import plan_prep

    if config.moving_photos and not Path(config.moving_photos.out).is_dir():
        made = config.moving_photos
        print(
            f"moving-photos  not made yet: {made.sequences} + {made.heldout_sequences} sequences in {made.out}; "
            "datasets that read it are planned once it is there (mcjepa prep run)"
        )
        return OK
    plans = plan_prep(config)
    if arguments.json:
        print(json.dumps([dataclasses.asdict(plan) for plan in plans]))
        return OK
    for plan in plans:
        size = plan.summary.bytes / (1 << 20)
        print(
            f"{plan.name:<14} {plan.state:<10} {plan.summary.inputs} inputs, {size:.1f} MiB -> "
            f"{plan.summary.shards} shards at {plan.location}"
        )
    return OK


def prep_run(arguments: argparse.Namespace) -> int:
    """`mcjepa prep run`: builds and publishes; 4 where inputs are quarantined."""
    started = time.perf_counter()
    recipe, plain = load_recipe(arguments.recipe, arguments.overrides)
    config: PrepConfig = required(recipe.prep, "prep", recipe)
    from data_prep.job import run_prep

    with StageProgress("prep") as progress:

        def show(event: ProgressEvent) -> None:
            detail = f"{event.samples} samples, {event.bytes / 1e6:.1f} MB" if event.samples else ""
            progress.update(f"{event.dataset} {event.stage}", event.done, event.total, detail)

        report = run_prep(config, on_event=show)
    record = describe(report)
    record["seconds"] = round(time.perf_counter() - started, 1)
    record["run_id"] = _log_run(recipe, plain, record)
    write_json(_local_root(recipe, config) / "prep_report.json", record)
    _print_report(record, as_json=arguments.json)
    return PARTIAL if record["quarantined"] else OK


def prep_audit(arguments: argparse.Namespace) -> int:
    """`mcjepa prep audit`: 0 where everything agrees, else 3."""
    recipe, _ = load_recipe(arguments.recipe, arguments.overrides)
    config: PrepConfig = required(recipe.prep, "prep", recipe)
    from data_prep.audit import audit_dataset
    from data_prep.storage import join_location

    reports = {name: audit_dataset(join_location(config.root, name)) for name in config.datasets}
    if arguments.json:
        print(json.dumps({name: dataclasses.asdict(report) | {"ok": report.ok} for name, report in reports.items()}))
    else:
        for name, report in reports.items():
            verdict = "intact" if report.ok else f"{len(report.problems)} problems"
            print(f"{name:<14} {verdict}: {report.shards} shards, {report.samples} samples, {report.dataset_id}")
            for problem in report.problems:
                print(f"  {problem}")
    return OK if all(report.ok for report in reports.values()) else REJECTED


def describe(report: PrepReport) -> dict[str, Any]:
    """The job's result as plain data: datasets by name, and every input that was left out for a fault."""
    datasets = {
        d.name: {
            "dataset_id": d.dataset_id,
            "location": d.location,
            **dataclasses.asdict(d.totals),
            "reused_shards": d.reused_shards,
        }
        for d in report.datasets
    }
    quarantined = [
        {"dataset": d.name, "uri": record.uri, "reason": record.reason}
        for d in report.datasets
        for record in d.rejected
        if record.outcome == "quarantined"
    ]
    if report.moving_photos:
        quarantined += [
            {"dataset": "moving-photos", "uri": uri, "reason": reason} for uri, reason in report.moving_photos.skipped
        ]
    return {"version": 1, "datasets": datasets, "quarantined": quarantined}


def _local_root(recipe: Recipe, config: PrepConfig) -> Path:
    """Where the stage's report lies: beside local datasets, else in the recipe's folder."""
    return Path(recipe.out) if "://" in config.root else Path(config.root)


def _log_run(recipe: Recipe, plain: dict[str, Any], record: dict[str, Any]) -> str:
    """Logs the job to MLflow; the dataset ids link it to the runs that train on them."""
    from pipeline.tracking import Tracker, dataset_tag

    tags = {
        "mcjepa.stage": "prep",
        "mcjepa.dataset_ids": dataset_tag([d["dataset_id"] for d in record["datasets"].values()]),
    }
    tracker = Tracker(
        recipe.tracking.uri,
        recipe.tracking.experiment,
        recipe.tracking.artifacts,
        run_name=f"prep {recipe.name}",
        run_id=None,
        tags=tags,
    )
    status = "FAILED"
    try:
        tracker.params(plain["prep"], "prep.")
        counts = ("inputs", "ok", "filtered", "quarantined", "shards", "samples", "bytes", "reused_shards")
        metrics = {f"{name}/{key}": float(d[key]) for name, d in record["datasets"].items() for key in counts}
        tracker.metrics(metrics | {"seconds": record["seconds"]}, 0)
        tracker.document(record, "prep_report.json")
        status = "FINISHED"
    finally:
        tracker.end(status)
    return tracker.run_id


def _print_report(record: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(record))
        return
    for name, d in record["datasets"].items():
        print(
            f"{name:<14} {d['inputs']} inputs = {d['ok']} ok + {d['filtered']} filtered + {d['quarantined']} "
            f"quarantined; {d['samples']} samples in {d['shards']} shards, {d['bytes'] / 1e6:.1f} MB\n"
            f"{'':<14} dataset id {d['dataset_id']}"
        )
    for item in record["quarantined"]:
        print(f"quarantined: {item['uri']}: {item['reason']}", file=sys.stderr)
