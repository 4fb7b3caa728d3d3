"""`mcjepa prep`: plan, run, watch, audit, repair and describe the datasets of a recipe."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mcjepa.pipeline.cli.output import StageProgress, print_next
from mcjepa.pipeline.exits import OK, PARTIAL, REJECTED
from mcjepa.pipeline.recipe.recipe import load_recipe, required

if TYPE_CHECKING:
    from mcjepa.data_prep.dataset.status import DatasetStatus
    from mcjepa.data_prep.job import ProgressEvent
    from mcjepa.data_prep.plan.forecast import DatasetPlan
    from mcjepa.data_prep.settings import PrepConfig


def _config(arguments: argparse.Namespace) -> PrepConfig:
    recipe, _ = load_recipe(arguments.recipe, arguments.overrides)
    config: PrepConfig = required(recipe.prep, "prep", recipe)
    return config


def plan(arguments: argparse.Namespace) -> int:
    """`mcjepa prep plan`: writes nothing."""
    from mcjepa.data_prep.plan.forecast import plan_prep

    config = _config(arguments)
    made = config.moving_photos
    if made and not Path(made.out).is_dir():
        print(
            f"moving-photos  not made yet: {made.sequences} + {made.heldout_sequences} sequences in {made.out}; "
            "datasets that read it are planned once it is there (mcjepa prep run)"
        )
        return OK
    plans = plan_prep(config, probe=not arguments.no_probe)
    if arguments.json:
        print(json.dumps([dataclasses.asdict(each) for each in plans]))
    else:
        for each in plans:
            _print_plan(each)
    return OK


def run(arguments: argparse.Namespace) -> int:
    """`mcjepa prep run`: 4 where inputs are quarantined."""
    recipe, plain = load_recipe(arguments.recipe, arguments.overrides)
    required(recipe.prep, "prep", recipe)
    from mcjepa.pipeline.stages.preparation import run_preparation, submit_preparation

    if arguments.submit:
        return OK if submit_preparation(arguments.submit, plain, lambda text: print(text, flush=True)) else REJECTED
    with StageProgress("prep") as progress:
        speed = _Speed()

        def show(event: ProgressEvent) -> None:
            progress.update(f"{event.dataset} {event.stage}", event.done, event.total, speed.describe(event))

        record = run_preparation(recipe, plain, show)
    if arguments.json:
        print(json.dumps(record))
    else:
        from mcjepa.pipeline.stages.following import after_prep

        _print_record(record)
        print_next(after_prep((arguments.recipe, *arguments.overrides)) if recipe.train else (), sys.stdout)
    return PARTIAL if record["quarantined"] else OK


def status(arguments: argparse.Namespace) -> int:
    """`mcjepa prep status`: reads the datasets' folders only."""
    from mcjepa.data_prep.dataset.status import read_status
    from mcjepa.pipeline.stages.preparation import dataset_locations

    found = {name: read_status(location) for name, location in dataset_locations(_config(arguments)).items()}
    if arguments.json:
        print(json.dumps({name: dataclasses.asdict(each) for name, each in found.items()}))
    else:
        for name, each in found.items():
            _print_status(name, each)
    return OK


def audit(arguments: argparse.Namespace) -> int:
    """`mcjepa prep audit`: 0 where everything agrees, else 3."""
    from mcjepa.data_prep.dataset.audit import audit_dataset
    from mcjepa.pipeline.stages.preparation import dataset_locations

    reports = {name: audit_dataset(location) for name, location in dataset_locations(_config(arguments)).items()}
    if arguments.json:
        print(json.dumps({name: dataclasses.asdict(report) | {"ok": report.ok} for name, report in reports.items()}))
    else:
        for name, report in reports.items():
            verdict = "intact" if report.ok else f"{len(report.problems)} problems"
            print(f"{name:<14} {verdict}: {report.shards} shards, {report.samples} samples, {report.dataset_id}")
            if report.entries:
                left = report.others or "no others"
                print(f"  {report.entries} entries in the corpora: {report.files} of inputs; {left}")
            for problem in report.problems:
                print(f"  {problem}")
    return OK if all(report.ok for report in reports.values()) else REJECTED


def requeue(arguments: argparse.Namespace) -> int:
    """`mcjepa prep requeue`: 4 where inputs are still quarantined."""
    from mcjepa.data_prep import requeue as again
    from mcjepa.pipeline.stages.preparation import describe_requeue

    config = _config(arguments)
    with StageProgress("prep") as progress:

        def show(name: str, done: int, total: int) -> None:
            progress.update(f"{name} requeue", done, total)

        reports = again.requeue(config, reason=arguments.reason, on_shard=show)
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


def card(arguments: argparse.Namespace) -> int:
    """`mcjepa prep card`: one page per dataset, in its own folder."""
    from mcjepa.data_prep.card.content import write_card
    from mcjepa.pipeline.stages.preparation import dataset_locations

    pages = {name: write_card(location) for name, location in dataset_locations(_config(arguments)).items()}
    print(json.dumps(pages) if arguments.json else "\n".join(f"{name:<14} {page}" for name, page in pages.items()))
    return OK


class _Speed:
    """Samples and megabytes per second of the current phase."""

    def __init__(self) -> None:
        self._phase: tuple[str, str] | None = None
        self._started = 0.0

    def describe(self, event: ProgressEvent) -> str:
        """Totals and speed."""
        phase = (event.dataset, event.stage)
        if phase != self._phase:
            self._phase, self._started = phase, time.perf_counter()
        if not event.samples:
            return ""
        text = f"{event.samples} samples, {event.bytes / 1e6:.1f} MB"
        spent = time.perf_counter() - self._started
        if event.stage != "shards" or spent < 1.0:
            return text
        return f"{text}, {event.samples / spent:.0f} samples/s, {event.bytes / 1e6 / spent:.1f} MB/s"


def _print_plan(plan: DatasetPlan) -> None:
    summary = plan.summary
    print(
        f"{plan.name:<14} {plan.state:<10} {summary.inputs} inputs, {summary.bytes / 1e6:.1f} MB -> "
        f"{summary.shards} shards at {plan.location}; {plan.reused_shards} shards exist already"
    )
    from mcjepa.data_prep.corpora.census import describe_others

    if left := describe_others(summary.census):
        print(f"{'':<14} no inputs: {left}")
    if plan.estimate:
        found = plan.estimate
        print(
            f"{'':<14} about {found.samples} samples, {found.bytes / 1e6:.1f} MB of shards, {found.seconds:.0f} s "
            f"(from {found.probed} inputs that were processed as a probe)"
        )


def _print_status(name: str, status: DatasetStatus) -> None:
    if status.state == "nothing":
        print(f"{name:<14} nothing at {status.location}")
        return
    done = status.totals
    print(
        f"{name:<14} {status.state}: {status.shards_done} of {status.shards} shards, {done.inputs} of {status.inputs} "
        f"inputs = {done.ok} ok + {done.filtered} filtered + {done.quarantined} quarantined; "
        f"{done.samples} samples, {done.bytes / 1e6:.1f} MB"
    )
    if status.dataset_id:
        print(f"{'':<14} dataset id {status.dataset_id}, revision {status.revision}")
    if status.writer:
        now = status.writer.progress
        word = "writing" if status.writer.alive else "was killed while writing"
        print(
            f"{'':<14} process {status.writer.pid} on {status.writer.host} {word}: {now.stage} {now.done}/{now.total}"
        )
    for input_name, why in status.reasons:
        print(f"{'':<14} {input_name}: {why}")


def _print_record(record: dict[str, Any]) -> None:
    for name, d in record["datasets"].items():
        print(
            f"{name:<14} {d['inputs']} inputs = {d['ok']} ok + {d['filtered']} filtered + {d['quarantined']} "
            f"quarantined; {d['samples']} samples in {d['shards']} shards, {d['bytes'] / 1e6:.1f} MB\n"
            f"{'':<14} dataset id {d['dataset_id']}"
        )
        if d["others"]:
            print(f"{'':<14} no inputs: {d['others']}")
    for item in record["quarantined"]:
        print(f"quarantined: {item['uri']}: {item['reason']}", file=sys.stderr)
