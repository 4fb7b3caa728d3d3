"""What a run would do: `mcjepa prep plan`. Nothing is written but scratch files of the timed probe."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mcjepa.data_prep.dataset.manifest import MANIFEST_NAME, SHARD_FOLDER
from mcjepa.data_prep.filters.leakage_index import list_guarded
from mcjepa.data_prep.plan.estimate import Estimate, InputSampler, estimate
from mcjepa.data_prep.plan.files import PLAN_NAME, read_plan, summarise_plan
from mcjepa.data_prep.plan.listing import list_inputs
from mcjepa.data_prep.plan.plan import PlanSummary
from mcjepa.data_prep.settings import DatasetConfig, PrepConfig
from mcjepa.data_prep.storage import Store, absolute_location, join_location, open_store
from mcjepa.data_prep.workers.process import usable_cores

PlanState = Literal["new", "begun", "published", "other plan"]


@dataclass(frozen=True)
class DatasetPlan:
    """What a run would do for one dataset."""

    name: str
    location: str
    summary: PlanSummary
    state: PlanState
    reused_shards: int
    """Finished shards that a run would keep."""
    estimate: Estimate | None
    """None: not asked for, or nothing is left to do."""


def plan_prep(config: PrepConfig, *, probe: bool = False) -> tuple[DatasetPlan, ...]:
    """What `run_prep` would do; generated folders must be there.

    Args:
        config: The job.
        probe: Cut a few inputs of every dataset to estimate samples, bytes and time.

    Raises:
        DataError: inputs that are absent or empty.
    """
    workers = config.workers or usable_cores()
    return tuple(_plan(name, dataset, config.root, workers, probe) for name, dataset in config.datasets.items())


def _plan(name: str, config: DatasetConfig, root: str, workers: int, probe: bool) -> DatasetPlan:
    store = open_store(absolute_location(join_location(root, name)))
    sampler = InputSampler()
    summary = summarise_plan(config, sampler.watch(list_inputs(config)), guarded=list_guarded(config))
    state = _state(store, summary)
    reused = _finished(store) if state in ("begun", "published") else 0
    forecast = None
    if probe and state != "published":
        left = 1 - reused / summary.shards
        forecast = estimate(config, sampler.kept, summary.inputs, summary.bytes, workers, left)
    return DatasetPlan(name, store.location, summary, state, reused, forecast)


def _state(store: Store, summary: PlanSummary) -> PlanState:
    if not store.exists(PLAN_NAME):
        return "new"
    if read_plan(store).plan_digest != summary.plan_digest:
        return "other plan"
    return "published" if store.exists(MANIFEST_NAME) else "begun"


def _finished(store: Store) -> int:
    return sum(entry.key.endswith(".json") for entry in store.files(f"{SHARD_FOLDER}/"))
