"""Tries quarantined inputs again and publishes what they give as additional shards: a new revision.

Nothing that is published is touched: old shards, sidecars and manifests stay, and a reader of an old revision
goes on. The new manifest lists the old shards and then the new ones, and names its parent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from mcjepa.data_prep.dataset.inputs import holder_of, read_inputs
from mcjepa.data_prep.dataset.manifest import DatasetManifest, newest_revision, read_manifest
from mcjepa.data_prep.dataset.publish import Addition, publish_revision
from mcjepa.data_prep.dataset.repairs import FREE_SETTINGS
from mcjepa.data_prep.deduplicate import deduplicate
from mcjepa.data_prep.errors import DataError
from mcjepa.data_prep.layout import SHARD_FOLDER, duplicates_key
from mcjepa.data_prep.plan.files import read_plan
from mcjepa.data_prep.plan.libraries import codec_versions, library_versions
from mcjepa.data_prep.plan.listing import list_inputs
from mcjepa.data_prep.plan.plan import PlanDigest, PlannedInput, describe_parameters, split_into_shards
from mcjepa.data_prep.settings import DatasetConfig, PrepConfig
from mcjepa.data_prep.storage import Store, absolute_location, join_location, open_store
from mcjepa.data_prep.storage.lease import sole_writer
from mcjepa.data_prep.workers.local_job import running_workers
from mcjepa.data_prep.workers.shard_maker import ShardResult, ShardWork, make_shard
from mcjepa.data_prep.workers.tasks import RunTasks


@dataclass(frozen=True)
class RequeueReport:
    """What trying again has given."""

    name: str
    location: str
    retried: int
    saved: int
    """Inputs that are no longer quarantined, less those in an opened tar that are."""
    samples: int
    """Samples gained."""
    manifest: DatasetManifest
    """The newest: the old one when nothing was saved."""


def requeue(
    config: PrepConfig, *, reason: str = "", on_shard: Callable[[str, int, int], None] | None = None
) -> tuple[RequeueReport, ...]:
    """Try the quarantined inputs of every dataset of a recipe again.

    Args:
        config: The job that published the datasets.
        reason: Only inputs whose reason contains these words (any case); empty: all.
        on_shard: Called with the dataset's name, shards made and shards in all.

    Raises:
        DataError: a dataset is not published, was published with other settings, or another writer is at work.
    """
    tell = on_shard or (lambda name, done, total: None)
    jobs = [
        _Requeue(name, dataset, open_store(absolute_location(join_location(config.root, name))), reason)
        for name, dataset in config.datasets.items()
    ]
    if not any(job.inputs for job in jobs):
        return tuple(job.unchanged() for job in jobs)
    size = sum(max(0, planned.bytes) for job in jobs for planned in job.inputs)
    with running_workers(config, size) as run:
        return tuple(job.run(run, tell) if job.inputs else job.unchanged() for job in jobs)


class _Requeue:
    """The quarantined inputs of one dataset."""

    def __init__(self, name: str, config: DatasetConfig, store: Store, reason: str) -> None:
        self._name, self._config, self._store = name, config, store
        self._manifest = read_manifest(store)
        self._plan = read_plan(store)
        self._changed = self._other_settings()
        wanted = {
            record.name
            for record in read_inputs(store, self._manifest.revision)
            if record.outcome == "quarantined" and reason.lower() in record.reason.lower()
        }
        self._members: dict[str, list[str]] = {}
        self.inputs = tuple(self._list(wanted)) if wanted else ()
        digest = PlanDigest(config, *codec_versions(config), guarded=self._manifest.dataset_id)
        for planned in self.inputs:
            digest.add(planned)
        self._digest = digest.summary().plan_digest
        self._first = _first_free(self._plan.shards, self._manifest)

    def _other_settings(self) -> dict[str, object]:
        """The parameters that are not the dataset's, all of them free.

        Raises:
            DataError: another one differs.
        """
        before, now = self._plan.parameters, describe_parameters(self._config)
        names = sorted((before.keys() | now.keys()) - {"guarded_inputs"})
        changed = {name: now.get(name) for name in names if before.get(name) != now.get(name)}
        if fixed := [name for name in changed if name not in FREE_SETTINGS]:
            raise DataError(
                f"{self._store.location} was published with other settings than the recipe's ({', '.join(fixed)}); "
                f"expected the same but for {' and '.join(FREE_SETTINGS)}; requeue with the recipe that made it (its "
                "settings are in manifest.json under `parameters`)"
            )
        return changed

    def _list(self, wanted: set[str]) -> Iterator[PlannedInput]:
        """The wanted inputs, and those that are new in a wanted tar or folder which can be opened now."""
        known = {
            record.name
            for record in read_inputs(self._store, self._manifest.revision)
            if holder_of(record.name, wanted)
        }
        listed = set()
        for planned in list_inputs(self._config):
            holder = holder_of(planned.name, wanted)
            if planned.name in wanted:
                listed.add(planned.name)
            elif holder and planned.name not in known:
                self._members.setdefault(holder, []).append(planned.name)
            if holder:
                listed.add(f"{holder}/")
            if planned.name in wanted or (holder and planned.name not in known):
                yield planned
        for name in wanted - listed:
            if f"{name}/" in listed:
                self._members.setdefault(name, [])  # read to its end now, and nothing new in it

    def unchanged(self) -> RequeueReport:
        return RequeueReport(self._name, self._store.location, 0, 0, 0, self._manifest)

    def run(self, run: RunTasks, tell: Callable[[str, int, int], None]) -> RequeueReport:
        shards = list(split_into_shards(self.inputs, self._config, first=self._first))
        names = [shard.name for shard in shards]
        done = 0

        def count(_: ShardResult) -> None:
            nonlocal done
            done += 1
            writer.check()
            tell(self._name, min(done, len(shards)), len(shards))

        def make() -> None:
            work = ShardWork(self._store.location, self._config, self._digest)
            run(make_shard, work, shards, on_result=count)

        with sole_writer(self._store) as writer:
            self._clear_leftovers()
            make()
            if self._config.filters.duplicates.mode != "off":
                while not self._deduplicate(names, run):
                    make()
            manifest = publish_revision(self._store, self._manifest, self._addition(names))
        before, after = self._manifest.totals, manifest.totals
        return RequeueReport(
            name=self._name,
            location=self._store.location,
            retried=len(self.inputs),
            saved=before.quarantined - after.quarantined,
            samples=after.samples - before.samples,
            manifest=manifest,
        )

    def _addition(self, names: list[str]) -> Addition:
        decoder, encoder = codec_versions(self._config)
        new = {name for members in self._members.values() for name in members}
        return Addition(
            names=names,
            digest=self._digest,
            made_by={
                "decoder": decoder,
                "encoder": encoder,
                "libraries": library_versions(self._config),
                "parameters": self._changed,
            },
            members=self._members,
            files=sum(len(planned.item.files) for planned in self.inputs if planned.name in new),
        )

    def _clear_leftovers(self) -> None:
        """Remove what a requeue left that failed or was killed: an input is tried anew, whatever has changed.

        Raises:
            DataError: another requeue has published meanwhile.
        """
        revision = self._manifest.revision
        if newest_revision(self._store) != revision:
            raise DataError(
                f"{self._store.location} was requeued meanwhile; expected revision {revision}; run it again"
            )
        for entry in list(self._store.files(f"{SHARD_FOLDER}/")):
            if int(entry.key.rpartition("-")[2].partition(".")[0]) >= self._first:
                self._store.remove(entry.key)
        self._store.remove(duplicates_key(revision + 1))

    def _deduplicate(self, names: list[str], run: RunTasks) -> bool:
        later = [s.name for s in self._manifest.shards if int(s.name.rpartition("-")[2]) >= self._plan.shards]
        return deduplicate(
            self._store.location,
            self._config,
            names,
            run=run,
            on_shard=lambda done, total: None,
            earlier=[*self._plan.shard_names, *later],
            revision=self._manifest.revision + 1,
        )


def _first_free(planned: int, manifest: DatasetManifest) -> int:
    """Number of the first additional shard: after the plan's and after every one that is listed."""
    listed = [int(shard.name.rpartition("-")[2]) for shard in manifest.shards]
    return max(planned, max(listed, default=-1) + 1)
