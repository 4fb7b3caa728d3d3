"""Where a preparation job stands, read from its store: running or dead, how far, what failed so far."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from mcjepa.data_prep.dataset.inputs import record_from
from mcjepa.data_prep.dataset.manifest import Totals, read_manifest, read_sidecar
from mcjepa.data_prep.dataset.publish import Tally
from mcjepa.data_prep.layout import MANIFEST_NAME, PLAN_NAME, SHARD_FOLDER
from mcjepa.data_prep.plan.files import read_plan
from mcjepa.data_prep.storage import Store, open_store
from mcjepa.data_prep.storage.lease import Lease, newest_lease

State = Literal["nothing", "running", "interrupted", "published"]


@dataclass(frozen=True)
class DatasetStatus:
    """Where a dataset stands."""

    location: str
    state: State
    shards_done: int = 0
    shards: int = 0
    inputs: int = 0
    """Of the plan; those that are done are in `totals`."""
    totals: Totals = field(default_factory=lambda: Totals(0, 0, 0, 0, 0, 0, 0))
    """Sums over the finished shards."""
    revision: int = 0
    """Of the newest manifest; 0: none."""
    dataset_id: str = ""
    reasons: tuple[tuple[str, str], ...] = ()
    """The first inputs that are not ok, and why."""
    writer: Lease | None = None
    """Who writes, or wrote when it was killed."""


def read_status(location: str) -> DatasetStatus:
    """Where the dataset at `location` stands; nothing is written.

    Raises:
        DataError: its files are damaged.
    """
    store = open_store(location)
    if not store.exists(PLAN_NAME):
        return DatasetStatus(location, "nothing")
    if store.exists(MANIFEST_NAME):
        return _published(store)
    plan = read_plan(store)
    tally = Tally()
    done = 0
    for entry in store.files(f"{SHARD_FOLDER}/"):
        name, _, ending = entry.key.removeprefix(f"{SHARD_FOLDER}/").rpartition(".")
        if ending != "json":
            continue
        sidecar = read_sidecar(store, name)
        if sidecar.plan_digest != plan.plan_digest:
            continue
        done += 1
        tally.add_shard(sidecar)
        for line in sidecar.inputs:
            tally.add(record_from(line, f"{location}/{entry.key}"))
    writer = newest_lease(store)
    return DatasetStatus(
        location=location,
        state="running" if writer and writer.alive else "interrupted",
        shards_done=done,
        shards=plan.shards,
        inputs=plan.inputs,
        totals=tally.totals(),
        reasons=tuple((r.name, r.reason) for r in tally.rejected),
        writer=writer,
    )


def _published(store: Store) -> DatasetStatus:
    manifest = read_manifest(store)
    return DatasetStatus(
        location=store.location,
        state="published",
        shards_done=manifest.totals.shards,
        shards=manifest.totals.shards,
        inputs=manifest.totals.inputs,
        totals=manifest.totals,
        revision=manifest.revision,
        dataset_id=manifest.dataset_id,
        writer=newest_lease(store),
    )
