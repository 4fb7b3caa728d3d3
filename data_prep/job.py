"""The whole preparation job: generate, plan, make shards, publish, for every dataset of a recipe."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Literal

from mcjepa.data_prep.corpora.census import describe_others
from mcjepa.data_prep.corpora.moving_photos.generate import generate
from mcjepa.data_prep.corpora.moving_photos.sets import MovingPhotosIndex
from mcjepa.data_prep.dataset.inputs import InputRecord, Outcome, read_inputs
from mcjepa.data_prep.dataset.manifest import DatasetManifest, Totals, newest_revision, read_manifest
from mcjepa.data_prep.dataset.publish import publish_dataset
from mcjepa.data_prep.dataset.repairs import as_planned, settings_as_planned
from mcjepa.data_prep.errors import DataError
from mcjepa.data_prep.layout import MANIFEST_NAME
from mcjepa.data_prep.plan.files import read_plan, read_plan_inputs, require_same_plan, summarise_plan
from mcjepa.data_prep.plan.listing import list_guarded, list_inputs
from mcjepa.data_prep.plan.plan import PlanSummary, split_into_shards
from mcjepa.data_prep.settings import DatasetConfig, MovingPhotosConfig, PrepConfig
from mcjepa.data_prep.storage import Store, absolute_location, join_location, open_store
from mcjepa.data_prep.storage.lease import Writer, WriterProgress, sole_writer
from mcjepa.data_prep.workers.leakage_index import make_leakage_index
from mcjepa.data_prep.workers.local_job import running_workers
from mcjepa.data_prep.workers.parallel_plan import plan_dataset
from mcjepa.data_prep.workers.shard_maker import ShardResult, ShardWork, make_shard
from mcjepa.data_prep.workers.tasks import RunTasks

MOST_LISTED = 1000
INPUTS_BETWEEN_EVENTS = 20_000

Stage = Literal["generate", "plan", "start", "leakage", "shards", "duplicates", "publish"]


@dataclass(frozen=True)
class ProgressEvent:
    """How far the job is; sent at every stage's start and whenever a shard or a sequence is finished."""

    stage: Stage
    dataset: str
    """Name of the dataset; `moving-photos` while generating."""
    done: int
    total: int
    samples: int = 0
    bytes: int = 0


OnEvent = Callable[[ProgressEvent], None]


@dataclass(frozen=True)
class DatasetReport:
    """What became of one dataset."""

    name: str
    location: str
    dataset_id: str
    totals: Totals
    rejected: tuple[InputRecord, ...]
    """Quarantined, then filtered inputs with their reasons, the first thousand of each."""
    reused_shards: int
    """Finished shards of an earlier run that were kept; all of them when nothing had to be done."""
    others: str = ""
    """What lies in the corpora and is no input, in words."""


@dataclass(frozen=True)
class PrepReport:
    """What became of the job."""

    datasets: tuple[DatasetReport, ...]
    moving_photos: MovingPhotosIndex | None = None

    @property
    def quarantined(self) -> int:
        """Inputs that failed, over all datasets; not zero means: a partial result."""
        return sum(d.totals.quarantined for d in self.datasets)


@dataclass
class _Dataset:
    """One dataset on its way."""

    name: str
    config: DatasetConfig
    store: Store
    plan: PlanSummary
    writer: Writer | None
    """None: it is published already."""
    tell: OnEvent

    def event(self, stage: Stage, done: int, total: int, samples: int = 0, size: int = 0) -> None:
        """Tell the caller and, by the lease, everybody else; stop when the lease is lost."""
        if self.writer:
            self.writer.check()
            self.writer.progress = WriterProgress(stage, done, total, samples, size)
        self.tell(ProgressEvent(stage, self.name, done, total, samples, size))


def run_prep(config: PrepConfig, *, on_event: OnEvent | None = None) -> PrepReport:
    """Prepare every dataset of the recipe; what an earlier run has finished is kept.

    Args:
        config: The job.
        on_event: Called in this process with every ProgressEvent.

    Raises:
        DataError: inputs that are absent, empty or all unusable, a full disk, another plan than before, or
            another writer at work.
    """
    tell = on_event or (lambda event: None)
    if not config.datasets and not config.moving_photos:
        raise DataError("prep.datasets is empty; expected at least one dataset to make; name it in the recipe")
    index = _generate(config.moving_photos, config.workers, tell) if config.moving_photos else None
    with contextlib.ExitStack() as stack:
        datasets = [_begin(name, config, tell, stack) for name in config.datasets]
        run: RunTasks | None = None
        reports = []
        for dataset in datasets:
            if dataset.writer and run is None:
                dataset.event("start", 0, 1)  # a private Ray takes some seconds
                run = stack.enter_context(running_workers(config, sum(d.plan.bytes for d in datasets if d.writer)))
            reports.append(_finish(dataset, run) if dataset.writer and run else _kept(dataset))
    return PrepReport(tuple(reports), index)


def _generate(config: MovingPhotosConfig, workers: int, tell: OnEvent) -> MovingPhotosIndex:
    def on_progress(done: int, total: int) -> None:
        tell(ProgressEvent("generate", "moving-photos", done, total))

    return generate(config, workers=workers, on_progress=on_progress)


def _begin(name: str, job: PrepConfig, tell: OnEvent, stack: contextlib.ExitStack) -> _Dataset:
    """List the inputs, and write the plan or check that it is the one there."""
    config = job.datasets[name]
    store = open_store(absolute_location(join_location(job.root, name)))
    tell(ProgressEvent("plan", name, 0, 1))
    published = store.exists(MANIFEST_NAME)
    if published and newest_revision(store) > 1:
        config = settings_as_planned(store, config)
    writer = None if published else stack.enter_context(sole_writer(store))
    plan = plan_dataset(job, config, store, _teller(name, tell))
    if published and (newest_revision(store) > 1 or plan.plan_digest != read_plan(store).plan_digest):
        plan = summarise_plan(config, as_planned(store, list_inputs(config)), guarded=list_guarded(config))
    require_same_plan(store, config, plan, list_inputs(config))
    tell(ProgressEvent("plan", name, 1, 1))
    return _Dataset(name, config, store, plan, writer, tell)


def _teller(name: str, tell: OnEvent) -> Callable[[int], None]:
    """Tells now and then how many inputs there are so far."""
    told = 0

    def on_listed(listed: int) -> None:
        nonlocal told
        if listed - told >= INPUTS_BETWEEN_EVENTS:
            tell(ProgressEvent("plan", name, listed, listed + 1))
        if listed - told >= INPUTS_BETWEEN_EVENTS or listed < told:  # several workers begin again
            told = listed

    return on_listed


def _kept(dataset: _Dataset) -> DatasetReport:
    """Of a dataset that is published already."""
    manifest = read_manifest(dataset.store)
    dataset.event("publish", 1, 1, manifest.totals.samples, manifest.totals.bytes)
    return _report(dataset, manifest, dataset.plan.shards)


def _finish(dataset: _Dataset, run: RunTasks) -> DatasetReport:
    """Make what is missing of a dataset and publish it."""
    if dataset.config.filters.leakage.mode != "off":
        _index_leakage(dataset, run)
    counter = _make_shards(dataset, run)
    if dataset.config.filters.duplicates.mode != "off":
        while not _deduplicate(dataset, run):
            _make_shards(dataset, run)
    dataset.event("publish", 0, 1, counter.samples, counter.bytes)
    manifest = publish_dataset(dataset.store, dataset.plan)
    dataset.event("publish", 1, 1, manifest.totals.samples, manifest.totals.bytes)
    return _report(dataset, manifest, counter.reused)


def _make_shards(dataset: _Dataset, run: RunTasks) -> _Counter:
    """Make every shard of the plan that is not there; returns what they add up to."""
    counter = _Counter(dataset)
    run(
        make_shard,
        ShardWork(dataset.store.location, dataset.config, dataset.plan.plan_digest),
        split_into_shards(read_plan_inputs(dataset.store), dataset.config),
        on_result=counter.add,
    )
    return counter


def _index_leakage(dataset: _Dataset, run: RunTasks) -> None:
    dataset.event("leakage", 0, 1)
    make_leakage_index(
        dataset.store.location,
        dataset.config,
        list_guarded(dataset.config),
        run=run,
        on_part=lambda done: dataset.event("leakage", done, done + 1),
    )
    dataset.event("leakage", 1, 1)


def _deduplicate(dataset: _Dataset, run: RunTasks) -> bool:
    from mcjepa.data_prep.deduplicate import deduplicate

    dataset.event("duplicates", 0, 1)
    return deduplicate(
        dataset.store.location,
        dataset.config,
        dataset.plan.shard_names,
        run=run,
        on_shard=lambda done, total: dataset.event("duplicates", done, total),
    )


class _Counter:
    """Adds up finished shards and tells of each."""

    def __init__(self, dataset: _Dataset) -> None:
        self._dataset = dataset
        self.done = self.samples = self.bytes = self.reused = 0
        dataset.event("shards", 0, dataset.plan.shards)

    def add(self, result: ShardResult) -> None:
        self.done += 1
        self.samples += result.samples
        self.bytes += result.bytes
        self.reused += result.reused
        self._dataset.event("shards", self.done, self._dataset.plan.shards, self.samples, self.bytes)


def _report(dataset: _Dataset, manifest: DatasetManifest, reused: int) -> DatasetReport:
    return DatasetReport(
        name=dataset.name,
        location=dataset.store.location,
        dataset_id=manifest.dataset_id,
        totals=manifest.totals,
        rejected=(*_first(dataset.store, manifest, "quarantined"), *_first(dataset.store, manifest, "filtered")),
        reused_shards=reused,
        others=describe_others(manifest.census),
    )


def _first(store: Store, manifest: DatasetManifest, outcome: Outcome) -> Iterator[InputRecord]:
    records = (r for r in read_inputs(store, manifest.revision) if r.outcome == outcome)
    return islice(records, MOST_LISTED)
