"""Publishes a dataset whose shards are finished: inputs.jsonl.gz, then the manifest by conditional put.

ROOT/dropped.jsonl.gz     one line a sample that a filter refused: input, frame_index, filter, reason
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from mcjepa.data_prep.dataset.inputs import InputRecord, InputsDigest, read_inputs, record_from
from mcjepa.data_prep.dataset.manifest import (
    MANIFEST_VERSION,
    DatasetManifest,
    ShardEntry,
    Sidecar,
    Totals,
    compute_dataset_id,
    read_manifest,
    read_sidecar,
    write_manifest,
)
from mcjepa.data_prep.errors import DataError, PlanMismatch
from mcjepa.data_prep.layout import (
    DUPLICATES_NAME,
    PLAN_INPUTS_NAME,
    PLAN_NAME,
    dropped_key,
    inputs_key,
    shard_key,
    shard_name,
    sidecar_key,
)
from mcjepa.data_prep.plan.plan import PlanSummary
from mcjepa.data_prep.storage import Store, explained_disk_errors
from mcjepa.data_prep.storage.json_files import read_lines, write_lines

REASONS_SHOWN = 5
OPENED = "can be opened now: what is in it are inputs of their own"


@dataclass
class Tally:
    """What a pass over the sidecars adds up to."""

    shards: list[ShardEntry] = field(default_factory=list)
    digest: InputsDigest = field(default_factory=InputsDigest)
    outcomes: dict[str, int] = field(default_factory=lambda: {"ok": 0, "filtered": 0, "quarantined": 0})
    dropped: int = 0
    rejected: list[InputRecord] = field(default_factory=list)
    """The first records that are not `ok`."""

    def add_shard(self, sidecar: Sidecar) -> None:
        """Take in one shard; one without samples is not listed."""
        if sidecar.samples:
            self.shards.append(ShardEntry(sidecar.name, sidecar.sha256, sidecar.bytes, len(sidecar.samples)))

    def add(self, record: InputRecord) -> None:
        """Take in one input."""
        self.digest.add(record)
        self.outcomes[record.outcome] += 1
        self.dropped += record.dropped
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
            dropped=self.dropped,
        )


def publish_dataset(store: Store, plan: PlanSummary) -> DatasetManifest:
    """Write inputs.jsonl.gz and manifest.json from the sidecars of a finished plan.

    Shards without samples stay in the store, so that numbers have no gap, but are not in the manifest.

    Raises:
        DataError: no input gave a sample; what was begun is removed again.
        PlanMismatch: another dataset was published here meanwhile.
    """
    tally = Tally()
    names = plan.shard_names
    with _written_lines(store, inputs_key(1), _lines(store, names, tally)) as write_inputs:
        totals = tally.totals()
        _check_conservation(store, plan.inputs, totals)
        if not totals.samples:
            discard_plan(store, plan)
            raise _nothing_left(store, totals, tally.rejected)
        write_inputs()
    if totals.dropped:
        _write_dropped(store, 1, _dropped_lines(store, names))
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
        files=plan.files,
        census=plan.census,
        libraries=plan.libraries,
    )
    return _publish(store, manifest)


@dataclass(frozen=True)
class Addition:
    """Additional shards, of inputs that had failed."""

    names: Sequence[str]
    digest: str
    """Plan digest of these shards."""
    made_by: dict[str, Any]
    """Their line of `requeued_by`."""
    members: dict[str, list[str]]
    """Failed inputs that can be opened now (a tar, a folder) to the names of the inputs in them, which are new."""
    files: int
    """Files that the new ones hold."""


def publish_revision(store: Store, parent: DatasetManifest, addition: Addition) -> DatasetManifest:
    """Publish a dataset once more, with additional shards of inputs that had failed.

    Args:
        store: The dataset.
        parent: Its newest manifest.
        addition: What is added.

    Returns:
        The new manifest; the parent itself when every input has failed again.
    """
    names, members, added = addition.names, addition.members, Tally()
    records = {line["name"]: line for line in _lines(store, names, added)}
    if not added.outcomes["ok"] + added.outcomes["filtered"]:
        return parent
    tally = Tally(shards=[*parent.shards, *added.shards])

    def lines() -> Iterator[dict[str, Any]]:
        for record in read_inputs(store, parent.revision):
            opened = {"outcome": "filtered", "reason": OPENED} if record.name in members else {}
            own = records.get(record.name) or dataclasses.asdict(record) | opened
            for line in (own, *(records[name] for name in members.get(record.name, ()))):
                tally.add(InputRecord(**line))
                yield line

    revision = parent.revision + 1
    with _written_lines(store, inputs_key(revision), lines()) as write_inputs:
        totals = tally.totals()
        _check_conservation(store, parent.totals.inputs + sum(map(len, members.values())), totals)
        write_inputs()
    if totals.dropped:
        before = read_lines(store, dropped_key(parent.revision)) if parent.totals.dropped else ()
        _write_dropped(store, revision, chain(before, _dropped_lines(store, names)))
    manifest = dataclasses.replace(
        parent,
        dataset_id=compute_dataset_id(tally.shards),
        inputs_digest=tally.digest.hexdigest(),
        shards=tuple(tally.shards),
        totals=totals,
        revision=revision,
        parent=parent.dataset_id,
        requeue_digests=(*parent.requeue_digests, addition.digest),
        requeued_by=(*parent.requeued_by, addition.made_by),
        files=parent.files + addition.files,
        census=parent.census and parent.census | {"entries": parent.census.get("entries", 0) + addition.files},
        version=MANIFEST_VERSION,
    )
    return _publish(store, manifest)


@contextlib.contextmanager
def _written_lines(store: Store, key: str, lines: Iterable[object]) -> Iterator[Callable[[], None]]:
    """Write lines to a scratch file; the body may put it under its key, else it is removed."""
    path = store.scratch() / f"{key}.{os.getpid()}.partial"
    try:
        with explained_disk_errors(str(path)), path.open("wb") as file:
            write_lines(file, lines)
        yield lambda: store.write_file(key, path)
    finally:
        path.unlink(missing_ok=True)


def _publish(store: Store, manifest: DatasetManifest) -> DatasetManifest:
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
    others = [entry.key for entry in store.files("leakage")]
    for key in (PLAN_NAME, PLAN_INPUTS_NAME, DUPLICATES_NAME, dropped_key(1), *others):
        store.remove(key)


def _lines(store: Store, names: Iterable[str], tally: Tally) -> Iterator[dict[str, Any]]:
    """Input lines of every sidecar in order; the tally is filled on the way."""
    for name in names:
        sidecar = read_sidecar(store, name)
        tally.add_shard(sidecar)
        for line in sidecar.inputs:
            tally.add(record_from(line, f"{store.location}/{sidecar_key(sidecar.name)}"))
            yield line


def _write_dropped(store: Store, revision: int, lines: Iterable[object]) -> None:
    with _written_lines(store, dropped_key(revision), lines) as write:
        write()


def _dropped_lines(store: Store, names: Iterable[str]) -> Iterator[dict[str, Any]]:
    for name in names:
        yield from read_sidecar(store, name).dropped


def _check_conservation(store: Store, planned: int, totals: Totals) -> None:
    if totals.inputs != planned:
        raise DataError(
            f"{store.location} accounts for {totals.inputs} inputs; expected the plan's {planned}; "
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
    existing = read_manifest(store, manifest.revision)
    if existing.dataset_id != manifest.dataset_id:
        raise PlanMismatch(
            f"{store.location} was published meanwhile as dataset {existing.dataset_id[:12]}; "
            f"expected {manifest.dataset_id[:12]}; use another location"
        )
    return existing
