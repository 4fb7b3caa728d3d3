"""The endless steps of one rank: worker processes read, decode and augment ahead of the training loop.

One item of the loader is a rank's whole step, pairs and views together, so both streams advance at a fixed
ratio and the position of both is one integer, the step. A step is the same whichever worker makes it, and
steps are handed over in order: neither the number of workers nor a restart changes what is trained on.

    loader = build_loader(config, rank=0, world_size=1, start_step=0, seed=0)
    for batch in loader:          # StepBatch(step, pairs, views), endless
        ...
    loader.close()
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from multiprocessing.synchronize import Event
from typing import Any

import cv2
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from data_prep.errors import DataError
from pipeline.batches import PairBatch, RawBatch, StepBatch, ViewBatch
from pipeline.errors import UsageError
from pipeline.sample_stream import Cancelled, SampleStream, pair_stream, view_stream
from pipeline.stream import StreamSummary, check_world_size
from pipeline.stream_config import StreamConfig

_CLOSE_GRACE_S = 1.0
"""How long workers may finish the sample in hand before they are ended."""
_PR_SET_PDEATHSIG = 1
"""Linux prctl(2): the signal a process gets when the thread that made it ends."""
_FOR_THE_PARENT = (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
"""Ctrl-C and Slurm reach whole process groups: workers leave these to the parent."""


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


class _Steps(Dataset[_RawStep]):
    """Step number -> that step of the rank."""

    def __init__(self, streams: dict[str, SampleStream], rank: int, world_size: int, stop: Event) -> None:
        self._streams, self._rank, self._world_size, self._stop = streams, rank, world_size, stop

    def __getitem__(self, step: int) -> _RawStep:
        try:
            batches = {
                name: stream.read(step, self._rank, self._world_size, self._stop.is_set)
                for name, stream in self._streams.items()
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
        device: torch.device,
    ) -> None:
        """See `build_loader`."""
        self._streams, self._config, self._device = streams, config, device
        self._stop = multiprocessing.Event()
        self._dataset = _Steps(streams, rank, world_size, self._stop)
        self._next_step = start_step
        self._steps: Any = None

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

    def describe(self) -> dict[str, StreamSummary]:
        """Counts of the streams that are there, by name: `pairs`, `views`."""
        return {name: stream.order.describe() for name, stream in self._streams.items()}

    def __iter__(self) -> StepLoader:
        self._start()
        return self

    def __next__(self) -> StepBatch:
        self._start()
        raw: _RawStep = next(self._steps)
        if raw.fault:
            raise DataError(raw.fault)
        self._next_step = raw.step + 1
        pairs, views = raw.pairs, raw.views
        return StepBatch(
            raw.step,
            PairBatch(*pairs.to_floats(self._device), pairs.keys) if pairs else None,
            ViewBatch(*views.to_floats(self._device), views.keys) if views else None,
        )

    def close(self) -> None:
        """End the workers within two seconds and close the shards; closing twice is fine."""
        self._stop.set()
        steps, self._steps = self._steps, None
        if steps is not None and self._config.workers:
            ending = threading.Timer(_CLOSE_GRACE_S, _end_workers, args=(steps,))
            ending.start()
            steps._shutdown_workers()  # joins each worker for five seconds at most, hence the timer
            ending.cancel()
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
            num_workers=self._config.workers,
            prefetch_factor=self._config.prefetch if self._config.workers else None,
            collate_fn=_as_it_is,
            pin_memory=self._device.type == "cuda",
            worker_init_fn=partial(_start_worker, in_main_thread=in_main_thread),
            generator=torch.Generator(),  # the loader draws a seed: not from the run's own generator
        )
        with _interrupts_held_back():
            self._steps = iter(loader)


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
        world_size: processes of the run; divides the lanes of every stream.
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
    check_world_size(world_size, [batch for batch in (config.pair_batch, config.view_batch) if batch])
    streams: dict[str, SampleStream] = {}
    if config.pair_batch:
        streams["pairs"] = pair_stream(config, seed)
    if config.view_batch:
        streams["views"] = view_stream(config, seed)
    return StepLoader(
        streams, config, rank=rank, world_size=world_size, start_step=start_step, device=torch.device(device)
    )


def _as_it_is(raw_step: Any) -> Any:
    """No collation: a step is whole already."""
    return raw_step


@contextlib.contextmanager
def _interrupts_held_back() -> Iterator[None]:
    """Keep Ctrl-C and Slurm's signals waiting while workers are made: none of them sees one before it ignores it."""
    held = signal.pthread_sigmask(signal.SIG_BLOCK, _FOR_THE_PARENT)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, held)


def _start_worker(_number: int, *, in_main_thread: bool) -> None:
    """Prepare a worker: it leaves signals to the parent and dies with it, and OpenCV starts no threads.

    The kernel tells of the death of the thread that forked, so it is asked to only where that is the parent's
    main thread; elsewhere torch's own watch ends the worker within some seconds.
    """
    for number in _FOR_THE_PARENT:
        signal.signal(number, signal.SIG_IGN)
    if in_main_thread and sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    cv2.setNumThreads(0)


def _end_workers(steps: Any) -> None:
    """SIGTERM, which torch's workers answer by leaving with success."""
    for worker in steps._workers:
        if worker.is_alive():
            os.kill(worker.pid, signal.SIGTERM)
