"""How `mcjepa prep` puts plans, progress, status and results into words."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mcjepa.data_prep.dataset.status import DatasetStatus
    from mcjepa.data_prep.job import PrepReport, ProgressEvent
    from mcjepa.data_prep.plan.forecast import DatasetPlan
    from mcjepa.data_prep.requeue import RequeueReport


class Speed:
    """Samples and megabytes a second of the stage that is under way."""

    def __init__(self) -> None:
        self._phase: tuple[str, str] | None = None
        self._started = 0.0

    def describe(self, event: ProgressEvent) -> str:
        """Totals, speed and, for shards, the time that is left."""
        phase = (event.dataset, event.stage)
        if phase != self._phase:
            self._phase, self._started = phase, time.perf_counter()
        if not event.samples:
            return ""
        text = f"{event.samples} samples, {event.bytes / 1e6:.1f} MB"
        spent = time.perf_counter() - self._started
        if event.stage != "shards" or spent < 1.0:
            return text
        left = spent / event.done * (event.total - event.done)
        return f"{text}, {event.samples / spent:.0f} samples/s, {event.bytes / 1e6 / spent:.1f} MB/s, {left:.0f} s left"


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


def print_plan(plan: DatasetPlan) -> None:
    """What a run would do for a dataset."""
    summary = plan.summary
    print(
        f"{plan.name:<14} {plan.state:<10} {summary.inputs} inputs, {summary.bytes / 1e6:.1f} MB -> "
        f"{summary.shards} shards at {plan.location}; {plan.reused_shards} shards are there already"
    )
    if plan.estimate:
        found = plan.estimate
        print(
            f"{'':<14} about {found.samples} samples, {found.bytes / 1e6:.1f} MB of shards, {found.seconds:.0f} s "
            f"(by {found.probed} inputs that were cut to try)"
        )


def print_status(name: str, status: DatasetStatus) -> None:
    """Where a dataset stands."""
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


def print_report(record: dict[str, Any], *, as_json: bool) -> None:
    """The result of a run."""
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
