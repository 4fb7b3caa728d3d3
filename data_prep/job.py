"""The whole preparation job: generate, plan, make shards, publish, for every dataset of a recipe."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Literal

from data_prep.config import DatasetConfig, MovingPhotosConfig, PrepConfig
from data_prep.corpora.moving_photos import generate
from data_prep.corpora.moving_photos_index import MovingPhotosIndex
from data_prep.listing import list_inputs
from data_prep.manifest import MANIFEST_NAME, DatasetManifest, Totals, read_manifest
from data_prep.plan import PlanSummary, split_into_shards
from data_prep.plan_files import PLAN_NAME, begin_plan, read_plan, require_same_plan, summarise_plan
from data_prep.publish import publish_dataset
from data_prep.quarantine import InputRecord, Outcome, read_inputs
from data_prep.ray_job import count_workers, make_shards, running_ray
from data_prep.shard_maker import ShardResult
from data_prep.storage import absolute_location, join_location, open_store

MOST_LISTED = 1000

Stage = Literal["generate", "plan", "start", "shards", "publish"]


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


@dataclass(frozen=True)
class PrepReport:
    """What became of the job."""

    datasets: tuple[DatasetReport, ...]
    moving_photos: MovingPhotosIndex | None = None

    @property
    def quarantined(self) -> int:
        """Inputs that failed, over all datasets; not zero means: a partial result."""
        return sum(d.totals.quarantined for d in self.datasets)


@dataclass(frozen=True)
class DatasetPlan:
    """What a run would do for one dataset."""

    name: str
    location: str
    summary: PlanSummary
    state: Literal["new", "begun", "published", "other plan"]


def run_prep(config: PrepConfig, *, on_event: OnEvent | None = None) -> PrepReport:
    """Prepare every dataset of the recipe; what an earlier run has finished is kept.

    Args:
        config: The job.
        on_event: Called in this process with every ProgressEvent.

    Raises:
        DataError: inputs that are absent, empty or all unusable, a full disk, or another plan than before.
    """
    tell = on_event or (lambda event: None)
    index = _generate(config.moving_photos, config.workers, tell) if config.moving_photos else None
    plans = [_plan(name, dataset, config.root, tell) for name, dataset in config.datasets.items()]
    reports = []
    with contextlib.ExitStack() as stack:
        workers = 0
        for plan in plans:
            if plan.state != "published" and not workers:
                workers = count_workers(config.workers, "") if not config.ray_address else 0
                tell(ProgressEvent("start", plan.name, 0, 1))  # a private Ray takes some seconds
                stack.enter_context(running_ray(config.ray_address, workers))
                workers = workers or count_workers(config.workers, config.ray_address)
            reports.append(_finish(plan, config.datasets[plan.name], workers, tell))
    return PrepReport(tuple(reports), index)


def plan_prep(config: PrepConfig) -> tuple[DatasetPlan, ...]:
    """What `run_prep` would do; nothing is written, generated folders must be there."""
    plans = []
    for name, dataset in config.datasets.items():
        location = absolute_location(join_location(config.root, name))
        summary = summarise_plan(dataset, list_inputs(dataset))
        plans.append(DatasetPlan(name, location, summary, _state(location, summary)))
    return tuple(plans)


def _generate(config: MovingPhotosConfig, workers: int, tell: OnEvent) -> MovingPhotosIndex:
    def on_progress(done: int, total: int) -> None:
        tell(ProgressEvent("generate", "moving-photos", done, total))

    return generate(config, workers=workers, on_progress=on_progress)


def _plan(name: str, config: DatasetConfig, root: str, tell: OnEvent) -> DatasetPlan:
    """List the inputs, and write the plan or check that it is the one there."""
    location = absolute_location(join_location(root, name))
    store = open_store(location)
    tell(ProgressEvent("plan", name, 0, 1))
    summary = begin_plan(store, config, list_inputs(config))
    require_same_plan(store, summary, list_inputs(config))
    tell(ProgressEvent("plan", name, 1, 1))
    return DatasetPlan(name, location, summary, "published" if store.exists(MANIFEST_NAME) else "begun")


def _state(location: str, summary: PlanSummary) -> Literal["new", "begun", "published", "other plan"]:
    store = open_store(location)
    if not store.exists(PLAN_NAME):
        return "new"
    if read_plan(store).plan_digest != summary.plan_digest:
        return "other plan"
    return "published" if store.exists(MANIFEST_NAME) else "begun"


def _finish(plan: DatasetPlan, config: DatasetConfig, workers: int, tell: OnEvent) -> DatasetReport:
    """Make what is missing of a dataset and publish it."""
    store = open_store(plan.location)
    if plan.state == "published":
        manifest = read_manifest(store)
        totals = manifest.totals
        tell(ProgressEvent("publish", plan.name, 1, 1, totals.samples, totals.bytes))
        return _report(plan, manifest, plan.summary.shards)
    counter = _Counter(plan, tell)
    make_shards(
        plan.location,
        config,
        plan.summary.plan_digest,
        split_into_shards(list_inputs(config), config),
        workers=min(workers, plan.summary.shards),
        on_result=counter.add,
    )
    tell(ProgressEvent("publish", plan.name, 0, 1, counter.samples, counter.bytes))
    manifest = publish_dataset(store, plan.summary)
    tell(ProgressEvent("publish", plan.name, 1, 1, counter.samples, counter.bytes))
    return _report(plan, manifest, counter.reused)


class _Counter:
    """Adds up finished shards and tells of each."""

    def __init__(self, plan: DatasetPlan, tell: OnEvent) -> None:
        self._plan, self._tell = plan, tell
        self.done = self.samples = self.bytes = self.reused = 0
        tell(ProgressEvent("shards", plan.name, 0, plan.summary.shards))

    def add(self, result: ShardResult) -> None:
        self.done += 1
        self.samples += result.samples
        self.bytes += result.bytes
        self.reused += result.reused
        shards = self._plan.summary.shards
        self._tell(ProgressEvent("shards", self._plan.name, self.done, shards, self.samples, self.bytes))


def _report(plan: DatasetPlan, manifest: DatasetManifest, reused: int) -> DatasetReport:
    return DatasetReport(
        name=plan.name,
        location=plan.location,
        dataset_id=manifest.dataset_id,
        totals=manifest.totals,
        rejected=(*_first(plan.location, "quarantined"), *_first(plan.location, "filtered")),
        reused_shards=reused,
    )


def _first(location: str, outcome: Outcome) -> Iterator[InputRecord]:
    records = (r for r in read_inputs(open_store(location)) if r.outcome == outcome)
    return islice(records, MOST_LISTED)
