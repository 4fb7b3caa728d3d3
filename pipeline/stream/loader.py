"""The endless steps of one rank: worker processes read, decode and augment ahead of the training loop.

One item of the loader is a rank's whole step, so both streams advance at a fixed ratio and the position of both is one
integer, the step. A step is the same whichever worker makes it, and steps are handed over in order: neither the number
of workers nor a restart changes what is trained on. On an accelerator the next step is copied while this one trains.
Samples that cannot be decoded are named, and too many of them end the run.

    loader = build_loader(config, rank=0, world_size=1, start_step=0, seed=0)
    for batch in loader:          # StepBatch(step, pairs, views), endless
        ...
    loader.close()
"""

from __future__ import annotations

import itertools
import logging
import multiprocessing
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.synchronize import Event
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from mcjepa.data_prep.errors import DataError
from mcjepa.pipeline.errors import UsageError
from mcjepa.pipeline.settings.stream import SourceConfig, StreamConfig
from mcjepa.pipeline.stream.batches import FloatMemory, PairBatch, RawBatch, StepBatch, ViewBatch
from mcjepa.pipeline.stream.catalogue import Catalogue
from mcjepa.pipeline.stream.interleaving import StreamInterleaving
from mcjepa.pipeline.stream.order import StreamSummary, check_world_size
from mcjepa.pipeline.stream.samples import Cancelled, SampleStream, pair_stream, view_stream
from mcjepa.pipeline.stream.shard_check import find_shard_damage
from mcjepa.pipeline.stream.workers import (
    DeviceFeed,
    close_at_exit,
    close_workers,
    default_workers,
    forking,
    start_worker,
)
from mcjepa.pipeline.world import own_cores


@dataclass(frozen=True)
class _RawStep:
    """A step as it leaves a worker; `fault` is set instead of batches where data was rejected."""

    step: int
    pairs: RawBatch | None = None
    views: RawBatch | None = None
    fault: str = ""

    def pin_memory(self) -> _RawStep:
        pairs, views = (batch and batch.pin_memory() for batch in (self.pairs, self.views))
        return _RawStep(self.step, pairs, views, self.fault)

    def to_device(self, device: torch.device, memory: FloatMemory | None = None) -> StepBatch:
        if self.fault:
            raise DataError(self.fault)
        pairs, views = self.pairs, self.views
        return StepBatch(
            self.step,
            PairBatch(*pairs.to_floats(device, torch.contiguous_format, memory), pairs.keys) if pairs else None,
            ViewBatch(*views.to_floats(device, torch.channels_last, memory), views.keys) if views else None,
            tuple(record for batch in (pairs, views) if batch for record in batch.corrupt),
        )


class _Steps(Dataset[_RawStep]):
    """Step number -> that step of the rank."""

    def __init__(
        self,
        streams: dict[str, SampleStream],
        interleaving: StreamInterleaving,
        rank: int,
        world_size: int,
        stop: Event,
    ) -> None:
        self._streams, self._interleaving, self._stop = streams, interleaving, stop
        self._rank, self._world_size = rank, world_size

    def __getitem__(self, step: int) -> _RawStep:
        try:
            batches = {
                name: self._streams[name].read(own_step, self._rank, self._world_size, self._stop.is_set)
                for name, own_step in self._interleaving.at(step).items()
            }
        except (DataError, Cancelled) as error:
            return _RawStep(step, fault=str(error))  # as a message: a worker's traceback helps no user
        return _RawStep(step, batches.get("pairs"), batches.get("views"))


class _EndlessSteps(Sampler[int]):
    """start, start + 1, start + 2, ..."""

    def __init__(self, start: int) -> None:
        self._start = start

    def __iter__(self) -> Iterator[int]:
        return itertools.count(self._start)


class StepLoader:
    """Iterator over the rank's steps; the workers start with the first `iter` or `next`."""

    def __init__(
        self,
        streams: dict[str, SampleStream],
        config: StreamConfig,
        *,
        rank: int,
        world_size: int,
        start_step: int,
        seed: int,
        device: torch.device,
    ) -> None:
        """See `build_loader`."""
        self._streams, self._config, self._device = streams, config, device
        self._share = {"draw": seed + start_step, "rank": rank, "world_size": world_size}
        workers = config.workers
        if workers is None:
            workers = default_workers(own_cores(world_size), 1, on_gpu=device.type == "cuda")
        self.workers = workers
        """Loading processes of this rank."""
        self._stop = multiprocessing.Event()
        self._interleaving = StreamInterleaving(
            config.sampling, {name: each.order.steps_per_epoch for name, each in streams.items()}
        )
        self._dataset = _Steps(streams, self._interleaving, rank, world_size, self._stop)
        self._next_step = start_step
        self._steps: Any = None
        self._feed: Iterator[StepBatch] = iter(())
        self._corrupt = CorruptLimit(config.max_corrupt)

    @property
    def next_step(self) -> int:
        """The step that `next` gives: the whole state of both streams."""
        return self._next_step

    @property
    def dataset_ids(self) -> dict[str, tuple[str, ...]]:
        """Ids of the datasets behind each stream."""
        return {
            name: tuple(dataset.dataset_id for dataset in stream.catalogue.datasets)
            for name, stream in self._streams.items()
        }

    @property
    def catalogues(self) -> dict[str, Catalogue]:
        """Where the samples of each stream lie."""
        return {name: stream.catalogue for name, stream in self._streams.items()}

    @property
    def steps_per_epoch(self) -> int:
        """Steps of the run in an epoch (`StreamInterleaving.steps_per_epoch`)."""
        return self._interleaving.steps_per_epoch

    @property
    def order(self) -> dict[str, Any]:
        """What the order of samples hangs on beside seed and batches, as plain data that a checkpoint keeps."""
        sources = {
            name: [
                {"dataset_id": dataset_id, "repeat": source.repeat, "weight": source.weight}
                for dataset_id, source in zip(ids, getattr(self._config, name), strict=True)
            ]
            for name, ids in self.dataset_ids.items()
        }
        rule: dict[str, Any] = {"sampling": self._config.sampling, "window": self._config.window}
        if self._config.order_version > 1:  # checkpoints of order 1 do not name it
            rule["version"] = self._config.order_version
            rule["lanes"] = {name: stream.order.lanes for name, stream in self._streams.items()}
        return rule | sources

    def find_damage(self) -> str:
        """What differs between this rank's share of the shards and their manifests, in words; empty: nothing does.

        `stream.store.check` says how much is looked at.

        Raises:
            DataError: a store cannot be read.
        """
        return find_shard_damage(self.catalogues, self._config.store.check, **self._share)

    def describe(self) -> dict[str, StreamSummary]:
        """Counts of the streams that are there, by name: `pairs`, `views`."""
        return {name: stream.order.describe() for name, stream in self._streams.items()}

    def __iter__(self) -> StepLoader:
        self._start()
        return self

    def __next__(self) -> StepBatch:
        self._start()
        batch = next(self._feed)
        self._corrupt.count(batch)
        self._next_step = batch.step + 1
        return batch

    def close(self) -> None:
        """End the workers within two seconds and close the shards; closing twice is fine."""
        self._stop.set()
        if isinstance(self._feed, DeviceFeed):
            self._feed.close()
        steps, self._steps, self._feed = self._steps, None, iter(())
        if steps is not None and self.workers:
            self._leave_open_at_exit()
            close_workers(steps)
        for stream in self._streams.values():
            stream.close()

    def __enter__(self) -> StepLoader:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _start(self) -> None:
        if self._stop.is_set():
            raise RuntimeError("the loader is closed, expected an open one; build another with build_loader")
        if self._steps is not None:
            return
        in_main_thread = threading.current_thread() is threading.main_thread()
        loader = DataLoader(
            self._dataset,
            batch_size=None,
            sampler=_EndlessSteps(self._next_step),
            num_workers=self.workers,
            prefetch_factor=self._config.prefetch if self.workers else None,
            collate_fn=_as_it_is,
            pin_memory=self._device.type == "cuda",
            worker_init_fn=partial(start_worker, in_main_thread=in_main_thread),
            generator=torch.Generator(),  # the loader draws a seed: not from the run's own generator
        )
        with forking():
            self._steps = iter(loader)
        if self.workers:
            self._leave_open_at_exit = close_at_exit(self)
        if self._device.type == "cuda":
            self._feed = DeviceFeed(self._steps, self._device)
        else:
            memory = FloatMemory()
            self._feed = (raw.to_device(self._device, memory) for raw in self._steps)


def build_loader(
    config: StreamConfig,
    *,
    rank: int,
    world_size: int,
    start_step: int,
    seed: int,
    device: torch.device | str = "cpu",
) -> StepLoader:
    """Open the streams of a recipe for one rank.

    Args:
        config: the recipe's stream.
        rank: this process among the run's.
        world_size: processes of the run; divides the batch of every stream.
        start_step: the first step given, steps already trained on; nothing before it is read.
        seed: the run's seed.
        device: where batches are put.

    Raises:
        UsageError: the world size or the kind of a dataset does not fit.
        DataError: a dataset is not published or damaged.
    """
    if not 0 <= rank < world_size or start_step < 0:
        raise UsageError(
            f"rank {rank} of {world_size} at step {start_step}, expected 0 <= rank < world size "
            "and a step of at least 0; check RANK and WORLD_SIZE"
        )
    check_world_size(world_size, config.batches, config.order_version)
    streams: dict[str, SampleStream] = {}
    if config.pair_batch:
        streams["pairs"] = pair_stream(config, seed, shared=True)
    if config.view_batch:
        streams["views"] = view_stream(config, seed, shared=True)
    return StepLoader(
        streams, config,
        rank=rank, world_size=world_size, start_step=start_step, seed=seed, device=torch.device(device),
    )  # fmt: skip


def open_stream(
    pairs: str | Sequence[str] = (),
    views: str | Sequence[str] = (),
    *,
    start_step: int = 0,
    seed: int = 0,
    rank: int = 0,
    world_size: int = 1,
    device: torch.device | str = "cpu",
    settings: StreamConfig | None = None,
) -> StepLoader:
    """The exact, elastic stream of a training run, for a loop of one's own.

    Its order is a pure function of the datasets, the seed and the settings: every sample comes once an epoch, whatever
    the number of ranks, and the whole state is one integer, `next_step`: give it as `start_step` to go on, on any
    number of ranks that divides the batches. Before anything is read, the lengths of the shards and the digests of some
    (`settings.store.check`) are compared with the datasets' manifests.

    Args:
        pairs: locations (folders or `s3://…`) of clip datasets, whose neighbouring frames are the pairs.
        views: locations of image or clip datasets, each of whose images gives two views.
        start_step: the first step given; nothing before it is read.
        seed: of the order and of the augmentations.
        rank: this process among `world_size`.
        world_size: processes that share a step.
        device: where batches are put.
        settings: batch sizes, augmentation, loading processes (`mcjepa recipe paper --keys` explains them); a side
            without datasets is left out whatever its batch size.

    Returns:
        An endless iterator of steps and context manager: `step.pairs.frame0` and `frame1`, each (B, 3, H, W),
        `step.views.view0` and `view1`, each (N, 3, S, S), RGB in [0, 1] and float32, of this rank's share.

    Raises:
        UsageError: no dataset is named, or the world size or the kind of a dataset does not fit.
        DataError: a dataset is not published, or its shards are not those of its manifest.

    Example:
        >>> with open_stream(pairs=CLIPS, settings=StreamConfig(pair_batch=2, workers=0)) as stream:
        ...     first, second = next(stream), next(stream)
        >>> tuple(second.pairs.frame0.shape), stream.next_step
        ((2, 3, 384, 832), 2)
        >>> with open_stream(pairs=CLIPS, start_step=1, settings=StreamConfig(pair_batch=2, workers=0)) as again:
        ...     bool((next(again).pairs.frame0 == second.pairs.frame0).all())
        True
    """
    clips, images = _sources(pairs), _sources(views)
    if not clips and not images:
        raise UsageError("open_stream: neither pairs nor views name a dataset, expected at least one location")
    config = settings or StreamConfig()
    pair_batch, view_batch = (config.pair_batch if clips else 0), (config.view_batch if images else 0)
    config = replace(config, pairs=clips, views=images, pair_batch=pair_batch, view_batch=view_batch)
    loader = build_loader(config, rank=rank, world_size=world_size, start_step=start_step, seed=seed, device=device)
    if problem := loader.find_damage():
        loader.close()
        raise DataError(problem)
    return loader


def _sources(locations: str | Sequence[str]) -> tuple[SourceConfig, ...]:
    return tuple(SourceConfig(location=each) for each in ((locations,) if isinstance(locations, str) else locations))


def _as_it_is(raw_step: Any) -> Any:
    """No collation: a step is whole already."""
    return raw_step


log = logging.getLogger(__name__)


class CorruptLimit:
    """The different corrupt samples that a rank has met since it started."""

    def __init__(self, most: int) -> None:
        """Allow `most` of them."""
        self._most = most
        self._met: set[str] = set()

    def count(self, batch: StepBatch) -> None:
        """Count the replaced samples of a step; each is logged when it is met first.

        Raises:
            DataError: there are more than allowed.
        """
        for record in batch.corrupt:
            if record.sample in self._met:
                continue
            self._met.add(record.sample)
            found = f"step {batch.step}: {record.sample} cannot be decoded ({record.reason})"
            count = f"corrupt sample {len(self._met)} of this rank"
            if len(self._met) > self._most:
                raise DataError(
                    f"{found}, {count}; expected at most stream.max_corrupt={self._most}; run `mcjepa prep audit` on "
                    "the dataset and prepare it again, or raise the limit"
                )
            log.warning("%s, %s; %s takes its place", found, count, record.replaced_by)
