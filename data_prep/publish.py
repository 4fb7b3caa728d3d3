"""Publishes a dataset whose shards are finished: inputs.jsonl.gz, then the manifest by conditional put."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from data_prep.errors import DataError, PlanMismatch
from data_prep.manifest import (
    INPUTS_NAME,
    DatasetManifest,
    ShardEntry,
    Totals,
    compute_dataset_id,
    read_manifest,
    read_sidecar,
    shard_key,
    sidecar_key,
    write_manifest,
)
from data_prep.plan import PlanSummary, shard_name
from data_prep.plan_files import PLAN_INPUTS_NAME, PLAN_NAME
from data_prep.quarantine import InputRecord, InputsDigest, record_from, write_lines
from data_prep.storage import Store, explained_disk_errors

REASONS_SHOWN = 5


@dataclass
class Tally:
    """What a pass over the sidecars adds up to."""

    shards: list[ShardEntry] = field(default_factory=list)
    digest: InputsDigest = field(default_factory=InputsDigest)
    outcomes: dict[str, int] = field(default_factory=lambda: {"ok": 0, "filtered": 0, "quarantined": 0})
    rejected: list[InputRecord] = field(default_factory=list)
    """The first records that are not `ok`."""

    def add(self, record: InputRecord) -> None:
        """Take in one input."""
        self.digest.add(record)
        self.outcomes[record.outcome] += 1
        if record.outcome != "ok" and len(self.rejected) < REASONS_SHOWN:
            self.rejected.append(record)

    def totals(self) -> Totals:
        """The sums for the manifest."""
        return Totals(
            shards=len(self.shards),
            samples=sum(s.samples for s in self.shards),
            bytes=sum(s.bytes for s in self.shards),
            inputs=sum(self.outcomes.values()),
            ok=self.outcomes["ok"],
            filtered=self.outcomes["filtered"],
            quarantined=self.outcomes["quarantined"],
        )


def publish_dataset(store: Store, plan: PlanSummary) -> DatasetManifest:
    """Write inputs.jsonl.gz and manifest.json from the sidecars of a finished plan.

    Shards without samples stay in the store, so that numbers have no gap, but are not in the manifest.

    Raises:
        DataError: no input gave a sample; what was begun is removed again.
        PlanMismatch: another dataset was published here meanwhile.
    """
    tally = Tally()
    path = store.scratch() / f"{INPUTS_NAME}.{os.getpid()}.partial"
    try:
        with explained_disk_errors(str(path)), path.open("wb") as file:
            write_lines(file, _lines(store, plan, tally))
        totals = tally.totals()
        _check_conservation(store, plan, totals)
        if not totals.samples:
            discard_plan(store, plan)
            raise _nothing_left(store, totals, tally.rejected)
        store.write_file(INPUTS_NAME, path)
    finally:
        path.unlink(missing_ok=True)
    manifest = DatasetManifest(
        kind=plan.kind,
        dataset_id=compute_dataset_id(tally.shards),
        plan_digest=plan.plan_digest,
        inputs_digest=tally.digest.hexdigest(),
        decoder=plan.decoder,
        encoder=plan.encoder,
        parameters=plan.parameters,
        shards=tuple(tally.shards),
        totals=totals,
    )
    if not write_manifest(store, manifest):
        manifest = _other_manifest(store, manifest)
    store.clear_scratch()
    return manifest


def discard_plan(store: Store, plan: PlanSummary) -> None:
    """Remove an unpublished plan with its shards: a rerun with other inputs starts from nothing."""
    for number in range(plan.shards):
        name = shard_name(plan.kind, number)
        store.remove(sidecar_key(name))
        store.remove(shard_key(name))
    store.remove(PLAN_NAME)
    store.remove(PLAN_INPUTS_NAME)


def _lines(store: Store, plan: PlanSummary, tally: Tally) -> Iterator[dict[str, Any]]:
    """Input lines of every sidecar in order; the tally is filled on the way."""
    for number in range(plan.shards):
        sidecar = read_sidecar(store, shard_name(plan.kind, number))
        if sidecar.samples:
            entry = ShardEntry(sidecar.name, sidecar.sha256, sidecar.bytes, len(sidecar.samples))
            tally.shards.append(entry)
        for line in sidecar.inputs:
            tally.add(record_from(line, f"{store.location}/{sidecar_key(sidecar.name)}"))
            yield line


def _check_conservation(store: Store, plan: PlanSummary, totals: Totals) -> None:
    if totals.inputs != plan.inputs:
        raise DataError(
            f"{store.location} accounts for {totals.inputs} inputs; expected the plan's {plan.inputs}; "
            f"remove {store.location}/shards and run again"
        )


def _nothing_left(store: Store, totals: Totals, rejected: Iterable[InputRecord]) -> DataError:
    reasons = "; ".join(f"{r.name}: {r.reason}" for r in rejected)
    return DataError(
        f"none of {totals.inputs} inputs of {store.location} gave a sample "
        f"({totals.quarantined} quarantined, {totals.filtered} filtered: {reasons}); "
        "expected at least one; correct the inputs or the recipe; nothing was published"
    )


def _other_manifest(store: Store, manifest: DatasetManifest) -> DatasetManifest:
    existing = read_manifest(store)
    if existing.dataset_id != manifest.dataset_id:
        raise PlanMismatch(
            f"{store.location} was published meanwhile as dataset {existing.dataset_id[:12]}; "
            f"expected {manifest.dataset_id[:12]}; use another location"
        )
    return existing
