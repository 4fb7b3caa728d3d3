"""What a run would do: `mcjepa prep plan`. Nothing is written but scratch files of the timed probe.

What it will take comes from a probe of a few inputs, chosen while the plan is listed, scaled to all.
"""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from mcjepa.data_prep.corpora.census import Census
from mcjepa.data_prep.decode.client import DecodeClient
from mcjepa.data_prep.decode.cutter import CutSample
from mcjepa.data_prep.decode.fetch import local_input
from mcjepa.data_prep.decode.messages import DecodeFailure, Unwanted
from mcjepa.data_prep.layout import MANIFEST_NAME, PLAN_NAME, SHARD_FOLDER
from mcjepa.data_prep.plan.files import read_plan, summarise_plan
from mcjepa.data_prep.plan.listing import list_guarded, list_inputs
from mcjepa.data_prep.plan.plan import PlannedInput, PlanSummary
from mcjepa.data_prep.process import one_processor, usable_cores
from mcjepa.data_prep.settings import DatasetConfig, PrepConfig
from mcjepa.data_prep.storage import Store, absolute_location, join_location, open_store

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
    census = Census()
    inputs = sampler.watch(list_inputs(config, census))
    summary = summarise_plan(config, inputs, guarded=list_guarded(config), census=census)
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


PROBED_INPUTS = 8
BUDGET_S = 20.0


@dataclass(frozen=True)
class Estimate:
    """A forecast; all its figures are rough."""

    probed: int
    """Inputs that were decoded for it."""
    samples: int
    bytes: int
    """Of the shards."""
    seconds: float
    """With the workers asked for, without what is reused."""


class InputSampler:
    """Passes a stream of inputs on and keeps a few of them, each with equal chance (seeded)."""

    def __init__(self, wanted: int = PROBED_INPUTS) -> None:
        """Keep `wanted` inputs."""
        self.kept: list[PlannedInput] = []
        self._wanted = wanted
        self._random = random.Random(0)

    def watch(self, inputs: Iterable[PlannedInput]) -> Iterator[PlannedInput]:
        """The same inputs."""
        for seen, planned in enumerate(inputs):
            if seen < self._wanted:
                self.kept.append(planned)
            elif (place := self._random.randrange(seen + 1)) < self._wanted:
                self.kept[place] = planned
            yield planned


def estimate(
    config: DatasetConfig, probe: list[PlannedInput], inputs: int, size: int, workers: int, left: float = 1.0
) -> Estimate:
    """Cut some inputs as a worker would, at most for `BUDGET_S`, and scale to all.

    Videos are scaled by their bytes; by their number where that decides: images, samples capped an input, no sizes.

    Args:
        config: The dataset's settings.
        probe: Inputs to cut; nothing is stored.
        inputs: Inputs of the dataset.
        size: Their bytes.
        workers: Processes that will work at a time.
        left: Part of the work that is not done yet.
    """
    guarded = config.filters.leakage
    if guarded.mode != "off":  # its index is made by the run; what it drops is little
        config = replace(config, filters=replace(config.filters, leakage=replace(guarded, mode="off")))
    probed = samples = stored = probed_bytes = 0
    started = time.monotonic()
    with one_processor(), DecodeClient(config) as client, tempfile.TemporaryDirectory() as scratch:
        _cut(client, probe[0], Path(scratch))  # starting the decoder is not part of the measure
        begun = time.monotonic()
        for planned in probe:
            if time.monotonic() - started > BUDGET_S and probed:
                break
            found, took = _cut(client, planned, Path(scratch))
            probed += 1
            samples += found
            stored += took
            probed_bytes += max(0, planned.bytes)
        seconds = time.monotonic() - begun
    by_number = config.max_samples_per_input or all(planned.item.kind == "image" for planned in probe)
    scale = size / probed_bytes if probed_bytes and not by_number else inputs / probed
    return Estimate(probed, round(samples * scale), round(stored * scale), seconds * scale * left / workers)


def _cut(client: DecodeClient, planned: PlannedInput, scratch: Path) -> tuple[int, int]:
    """Samples of an input and their bytes; none when it cannot be used."""
    samples = size = 0
    try:
        if not planned.item.refusal:
            with local_input(planned.item, scratch) as item:
                for piece in client.cut(item):
                    if isinstance(piece, CutSample):
                        samples += 1
                        size += sum(len(member) for member in piece.members.values())
    except (DecodeFailure, Unwanted):
        return 0, 0
    return samples, size
