"""`mcjepa prep`: plan, run, watch, audit, repair and describe the datasets of a recipe."""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mcjepa.pipeline.cli.evaluate import write_json
from mcjepa.pipeline.cli.output import StageProgress
from mcjepa.pipeline.cli.prep_output import Speed, describe, describe_requeue, print_plan, print_report, print_status
from mcjepa.pipeline.recipe.recipe import Recipe, load_recipe, required

if TYPE_CHECKING:
    from mcjepa.data_prep.job import ProgressEvent
    from mcjepa.data_prep.settings import PrepConfig

OK, REJECTED, PARTIAL = 0, 3, 4


def prep_plan(arguments: argparse.Namespace) -> int:
    """`mcjepa prep plan`: nothing is written."""
    recipe, _ = load_recipe(arguments.recipe, arguments.overrides)
    config: PrepConfig = required(recipe.prep, "prep", recipe)
    from mcjepa.data_prep.plan.forecast import plan_prep

    if config.moving_photos and not Path(config.moving_photos.out).is_dir():
        made = config.moving_photos
        print(
            f"moving-photos  not made yet: {made.sequences} + {made.heldout_sequences} sequences in {made.out}; "
            "datasets that read it are planned once it is there (mcjepa prep run)"
        )
        return OK
    plans = plan_prep(config, probe=not arguments.no_probe)
    if arguments.json:
        print(json.dumps([dataclasses.asdict(plan) for plan in plans]))
        return OK
    for plan in plans:
        print_plan(plan)
    return OK


def prep_run(arguments: argparse.Namespace) -> int:
    """`mcjepa prep run`: builds and publishes; 4 where inputs are quarantined."""
    started = time.perf_counter()
    recipe, plain = load_recipe(arguments.recipe, arguments.overrides)
    config: PrepConfig = required(recipe.prep, "prep", recipe)
    if arguments.submit:
        return _submit(arguments.submit, plain)
    from mcjepa.data_prep.job import run_prep

    with StageProgress("prep") as progress:
        speed = Speed()

        def show(event: ProgressEvent) -> None:
            progress.update(f"{event.dataset} {event.stage}", event.done, event.total, speed.describe(event))

        report = run_prep(config, on_event=show)
    record = describe(report)
    record["seconds"] = round(time.perf_counter() - started, 1)
    record["run_id"] = _log_run(recipe, plain, record)
    write_json(_local_root(recipe, config) / "prep_report.json", record)
    print_report(record, as_json=arguments.json)
    return PARTIAL if record["quarantined"] else OK


def prep_status(arguments: argparse.Namespace) -> int:
    """`mcjepa prep status`: reads the datasets' folders only."""
    recipe, _ = load_recipe(arguments.recipe, arguments.overrides)
    config: PrepConfig = required(recipe.prep, "prep", recipe)
    from mcjepa.data_prep.dataset.status import read_status

    found = {name: read_status(location) for name, location in _locations(config).items()}
    if arguments.json:
        print(json.dumps({name: dataclasses.asdict(status) for name, status in found.items()}))
        return OK
    for name, status in found.items():
        print_status(name, status)
    return OK


def prep_audit(arguments: argparse.Namespace) -> int:
    """`mcjepa prep audit`: 0 where everything agrees, else 3."""
    recipe, _ = load_recipe(arguments.recipe, arguments.overrides)
    config: PrepConfig = required(recipe.prep, "prep", recipe)
    from mcjepa.data_prep.dataset.audit import audit_dataset

    reports = {name: audit_dataset(location) for name, location in _locations(config).items()}
    if arguments.json:
        print(json.dumps({name: dataclasses.asdict(report) | {"ok": report.ok} for name, report in reports.items()}))
    else:
        for name, report in reports.items():
            verdict = "intact" if report.ok else f"{len(report.problems)} problems"
            print(f"{name:<14} {verdict}: {report.shards} shards, {report.samples} samples, {report.dataset_id}")
            for problem in report.problems:
                print(f"  {problem}")
    return OK if all(report.ok for report in reports.values()) else REJECTED


def prep_requeue(arguments: argparse.Namespace) -> int:
    """`mcjepa prep requeue`: 4 where inputs are still quarantined."""
    recipe, _ = load_recipe(arguments.recipe, arguments.overrides)
    config: PrepConfig = required(recipe.prep, "prep", recipe)
    from mcjepa.data_prep.requeue import requeue

    with StageProgress("prep") as progress:

        def show(name: str, done: int, total: int) -> None:
            progress.update(f"{name} requeue", done, total)

        reports = requeue(config, reason=arguments.reason, on_shard=show)
    if arguments.json:
        print(json.dumps([describe_requeue(report) for report in reports]))
    else:
        for report in reports:
            print(
                f"{report.name:<14} {report.retried} inputs tried again, {report.saved} saved, "
                f"{report.samples} samples gained; revision {report.manifest.revision}\n"
                f"{'':<14} dataset id {report.manifest.dataset_id}"
            )
    return PARTIAL if any(report.manifest.totals.quarantined for report in reports) else OK


def prep_card(arguments: argparse.Namespace) -> int:
    """`mcjepa prep card`: one page a dataset, in its own folder."""
    recipe, _ = load_recipe(arguments.recipe, arguments.overrides)
    config: PrepConfig = required(recipe.prep, "prep", recipe)
    from mcjepa.data_prep.card.content import write_card

    pages = {name: write_card(location) for name, location in _locations(config).items()}
    print(json.dumps(pages) if arguments.json else "\n".join(f"{name:<14} {page}" for name, page in pages.items()))
    return OK


def _locations(config: PrepConfig) -> dict[str, str]:
    """Where each dataset of the recipe lies."""
    from mcjepa.data_prep.storage import absolute_location, join_location

    return {name: absolute_location(join_location(config.root, name)) for name in config.datasets}


def _submit(address: str, plain: dict[str, Any]) -> int:
    """Runs the job on a cluster; the recipe is sent resolved."""
    import yaml

    from mcjepa.data_prep.workers.ray_submit import submit_prep

    succeeded = submit_prep(address, yaml.safe_dump(plain, sort_keys=False), lambda text: print(text, flush=True))
    return OK if succeeded else REJECTED


def _local_root(recipe: Recipe, config: PrepConfig) -> Path:
    """Where the stage's report lies: beside local datasets, else in the recipe's folder."""
    return Path(recipe.out) if "://" in config.root else Path(config.root)


def _log_run(recipe: Recipe, plain: dict[str, Any], record: dict[str, Any]) -> str:
    """Logs the job to MLflow; the dataset ids link it to the runs that train on them."""
    from mcjepa.pipeline.tracking import Tracker, dataset_tag

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
