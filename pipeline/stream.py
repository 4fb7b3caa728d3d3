"""The order of a stream: which sample is the k-th of an epoch, a pure function of counts, seed and epoch.

    samples 0 .. N-1, in the order of the shards, are cut into L *lanes* of equal length (to within one):
    lane l holds [l N // L, (l + 1) N // L), and a boundary may fall inside a shard.
    In an epoch a lane visits its stretches of shards in a seeded order, shuffling `window` samples at a time.
    Global sample k of the epoch comes from lane k mod L; rank r of W reads the lanes l with l mod W = r.

L divides the batch and W divides L, so the global order is the same for every W, and every rank has as many
samples in every step. An epoch is as many whole batches as N samples fill; the tail that fills no batch is
left out, other samples in every epoch. A dataset smaller than a batch is passed over several times an epoch.

The state of a stream is one integer, the samples consumed (batch x steps); to seek is to compute the windows
around it, whatever the position.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.errors import UsageError
from pipeline.seeding import seeded_permutation

MAX_LANES = 64


def lanes_for(global_batch: int) -> int:
    """The largest power of two up to 64 that divides `global_batch`.

    >>> lanes_for(384), lanes_for(8), lanes_for(20), lanes_for(7)
    (64, 8, 4, 1)
    """
    if global_batch < 1:
        raise UsageError(f"global batch is {global_batch}, expected at least 1 sample a step")
    return min(global_batch & -global_batch, MAX_LANES)


def check_world_size(world_size: int, batches: Sequence[int]) -> None:
    """Refuse a world size that does not divide the lanes of every stream.

    Args:
        world_size: ranks of the run.
        batches: global batch of each stream of the run, samples.

    Raises:
        UsageError: with the world sizes that fit these batches.
    """
    lanes = min(lanes_for(batch) for batch in batches)  # powers of two: the least divides the others
    if world_size < 1 or lanes % world_size:
        fitting = [size for size in range(1, lanes + 1) if lanes % size == 0]
        raise UsageError(
            f"world size {world_size} does not divide the {lanes} lanes of global batch "
            f"{' and '.join(map(str, batches))}; world sizes that fit: {', '.join(map(str, fitting))}; "
            "start that many ranks or change stream.pair_batch / stream.view_batch"
        )


@dataclass(frozen=True, kw_only=True)
class StreamSummary:
    """The counts of a stream, for logs and plans."""

    samples: int
    """Samples of the dataset, repetitions included."""
    batch: int
    """Samples a step over all ranks."""
    lanes: int
    """Parallel lanes, the most ranks that can share the stream."""
    passes: int
    """How often an epoch passes over the samples; above 1 only where they do not fill one batch."""
    steps_per_epoch: int
    """Whole batches of an epoch."""
    tail: int
    """Samples (of all passes) that an epoch leaves out because they fill no batch."""


class SampleOrder:
    """The endless order of one stream.

    Sample ids run from 0 to `passes` x samples - 1; the dataset's sample behind an id is `id % samples`. An
    id comes at most once an epoch, so (epoch, id) seeds what is drawn for it.
    """

    def __init__(self, shard_samples: Sequence[int], *, batch: int, window: int, seed: int) -> None:
        """Lay out the lanes.

        Args:
            shard_samples: samples of each shard, in the sources' order; a repeated shard is listed again.
            batch: samples a step over all ranks.
            window: samples that a lane shuffles at a time.
            seed: the stream's own seed.

        Raises:
            UsageError: there is no sample, or the batch or the window is below 1.
        """
        self.lanes = lanes_for(batch)
        self.samples = int(sum(shard_samples))
        if self.samples < 1 or window < 1:
            raise UsageError(
                f"a stream of {self.samples} samples with window {window}, expected at least 1 of each; "
                "check that the datasets hold samples and set stream.window"
            )
        self.batch, self.window, self.seed = batch, window, seed
        self.passes = -(-batch // self.samples)
        counts = np.asarray(list(shard_samples) * self.passes, dtype=np.int64)
        self._shard_ends = np.cumsum(counts)
        self._total = self.samples * self.passes
        self.steps_per_epoch = self._total // batch
        self._stretches: dict[int, tuple[int, np.ndarray, np.ndarray]] = {}
        self._windows: dict[int, tuple[int, int, np.ndarray]] = {}

    @property
    def epoch_samples(self) -> int:
        """Samples of an epoch: its whole batches."""
        return self.steps_per_epoch * self.batch

    def describe(self) -> StreamSummary:
        """The stream's counts."""
        return StreamSummary(
            samples=self.samples,
            batch=self.batch,
            lanes=self.lanes,
            passes=self.passes,
            steps_per_epoch=self.steps_per_epoch,
            tail=self._total - self.epoch_samples,
        )

    def position(self, cursor: int) -> tuple[int, int]:
        """Epoch of the sample consumed after `cursor` others, and its index within that epoch."""
        return divmod(cursor, self.epoch_samples)

    def step_samples(self, step: int, *, rank: int = 0, world_size: int = 1) -> tuple[int, np.ndarray]:
        """What a rank reads in a step.

        Args:
            step: steps before this one since the stream began.
            rank: which of the ranks.
            world_size: ranks, a divisor of `lanes`.

        Returns:
            The epoch and the rank's sample ids, int64 of shape (batch / world_size,). The global batch is the
            ranks' ids interleaved: its entry i is entry i // W of rank i mod W.
        """
        check_world_size(world_size, (self.batch,))
        epoch, index = self.position(step * self.batch)
        first, count = index // self.lanes, self.batch // self.lanes
        lanes = range(rank, self.lanes, world_size)
        columns = [self._lane_samples(lane, epoch, first, count) for lane in lanes]
        return epoch, np.stack(columns, axis=1).reshape(-1)

    def _lane_samples(self, lane: int, epoch: int, first: int, count: int) -> np.ndarray:
        """Ids of slots first .. first + count - 1 of a lane's order in an epoch."""
        parts = []
        slot, end = first, first + count
        while slot < end:
            number = slot // self.window
            start = number * self.window
            part = self._lane_window(lane, epoch, number)[slot - start : end - start]
            parts.append(part)
            slot += len(part)
        return np.concatenate(parts)

    def _lane_window(self, lane: int, epoch: int, number: int) -> np.ndarray:
        """One shuffled window of a lane; the last one asked for is kept."""
        kept = self._windows.get(lane)
        if kept is not None and kept[:2] == (epoch, number):
            return kept[2]
        starts, ends = self._lane_stretches(lane, epoch)
        first = number * self.window
        length = min(self.window, int(ends[-1]) - first)
        slots = first + seeded_permutation(length, self.seed, "window", epoch, lane, number)
        stretch = np.searchsorted(ends, slots, side="right")
        ids = starts[stretch] + slots - np.concatenate(([0], ends[:-1]))[stretch]
        self._windows[lane] = (epoch, number, ids)
        return ids

    def _lane_stretches(self, lane: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """A lane's stretches of shards in an epoch's order: first id of each, running total of lengths."""
        kept = self._stretches.get(lane)
        if kept is not None and kept[0] == epoch:
            return kept[1:]
        low, high = lane * self._total // self.lanes, (lane + 1) * self._total // self.lanes
        inner = self._shard_ends[(self._shard_ends > low) & (self._shard_ends < high)]
        bounds = np.unique(np.concatenate(([low], inner, [high])))
        order = seeded_permutation(len(bounds) - 1, self.seed, "shards", epoch, lane)
        starts, ends = bounds[:-1][order], np.cumsum(np.diff(bounds)[order])
        self._stretches[lane] = (epoch, starts, ends)
        return starts, ends
