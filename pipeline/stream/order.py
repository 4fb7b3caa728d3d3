"""The order of samples: which one is the k-th of a stream's epoch, a pure function of counts, seed and epoch.

    Every source passes over its samples without end, in the order of its shards. Epoch e takes the stretch
    [e n, (e + 1) n) of that row, n samples; the sources' stretches one behind the other are the epoch's *ids* 0 .. E-1.
    Without weights n is a whole number of passes, so every sample comes once a pass; with weights n is the source's
    share of E, and over the epochs every sample of a source comes equally often, to within one.

    The ids are cut into L *lanes* of equal length: with q, t = divmod(E, L), lane l holds the q ids from
    l q + min(l, t) on, and one more where l < t. A boundary may fall inside a shard.
    In an epoch a lane visits its stretches of shards in a seeded order, shuffling `window` samples at a time.
    Global sample k of the epoch is sample k div L of lane k mod L; rank r of W takes the samples k = r mod W.

So ranks cut the step and not the lanes: the global order is the same for every W that divides the batch, and every
rank has as many samples in every step. Where W is above the batch, the first ranks have one and the others none.
L is free. Where W divides L or L divides W, a rank reads the fewest lanes.
An epoch is as many whole batches as its ids fill; the tail that fills no batch is left out, other samples in every
epoch. Samples fewer than a batch are passed over several times an epoch.

This is version 2 of the order. In version 1, in which older runs go on, L is the largest power of two up to 64 that
divides the batch, lane l holds the ids [l E // L, (l + 1) E // L), and W must divide L.

The state of a stream is one integer, the samples consumed (batch x steps); to seek is to compute the windows
around it, whatever the position.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from mcjepa.pipeline.errors import UsageError
from mcjepa.pipeline.stream.seeding import seeded_permutation

ORDER_VERSION = 2
"""Of new runs; one that has no version has 1."""
USUAL_LANES = 64
"""Most lanes of a stream whose recipe does not say: each is a window in memory and a shard that is read."""


def lanes_for(batch: int, version: int = ORDER_VERSION) -> int:
    """Lanes of a stream whose recipe does not say how many: the largest divisor of its batch up to 64.

    Args:
        batch: samples a step over all ranks.
        version: of the order; in 1, the largest power of two among them.

    >>> lanes_for(384), lanes_for(20), lanes_for(7), lanes_for(20, version=1)
    (64, 20, 7, 4)
    """
    if batch < 1:
        raise UsageError(f"global batch is {batch}, expected at least 1 sample a step")
    if version == 1:
        return min(batch & -batch, USUAL_LANES)
    return max(lanes for lanes in range(1, min(batch, USUAL_LANES) + 1) if batch % lanes == 0)


def fitting_world_sizes(batches: Mapping[str, int], version: int = ORDER_VERSION) -> list[int]:
    """The numbers of ranks that can share a step, least first.

    They divide the batch of every stream. Beside views they may be more than the pairs: rank r then has pair r of the
    step, or none. Views are for all ranks: VICReg and the expander's norm count on as many of each.

    Args:
        batches: `pairs` and `views`, or one of them -> samples a step over all ranks.
        version: of the order; in 1 ranks divide its lanes.

    >>> fitting_world_sizes({"pairs": 8, "views": 20}), fitting_world_sizes({"pairs": 12})
    ([1, 2, 4, 10, 20], [1, 2, 3, 4, 6, 12])
    >>> fitting_world_sizes({"pairs": 8, "views": 20}, version=1)
    [1, 2, 4]
    """
    held = {name: batch if version > 1 else lanes_for(batch, version) for name, batch in batches.items()}
    shared = held.get("views") or next(iter(held.values()))
    small = [size for size in range(1, math.isqrt(shared) + 1) if shared % size == 0]
    pairs = held.get("pairs", shared)
    divisors = sorted({*small, *(shared // size for size in small)})
    return [size for size in divisors if pairs % size == 0 or (size > pairs and version > 1)]


def check_world_size(world_size: int, batches: Mapping[str, int], version: int = ORDER_VERSION) -> None:
    """Refuse a world size that is none of `fitting_world_sizes`.

    Args:
        world_size: ranks of the run.
        batches: global batch of each stream of the run, samples.
        version: of the order.

    Raises:
        UsageError: with the world sizes that fit these batches.
    """
    fitting = fitting_world_sizes(batches, version)
    if world_size not in fitting:
        cut = "" if version > 1 else f" in {fitting[-1]} lanes (order 1)"
        words = " and ".join(f"{batch} {name}" for name, batch in batches.items())
        raise UsageError(
            f"world size {world_size} does not divide the global batch of {words}{cut}; "
            f"world sizes that fit: {', '.join(map(str, fitting))}; start that many ranks or change "
            "stream.pair_batch / stream.view_batch"
        )


@dataclass(frozen=True, eq=False)
class SourceCounts:
    """What the order needs to know of one source."""

    shard_samples: Sequence[int] | np.ndarray
    """Samples of each shard, in the manifest's order."""
    repeat: int = 1
    """Passes an epoch; without weights only."""
    weight: float = 0.0
    """Share of the epoch relative to the other sources' weights; 0 where no source has one."""

    @cached_property
    def shard_ends(self) -> np.ndarray:
        """Samples up to the end of each shard, int64 of shape (shards,); made once for all that count them."""
        return np.cumsum(self.shard_samples, dtype=np.int64)

    @property
    def samples(self) -> int:
        """Samples of the source."""
        return int(self.shard_ends[-1]) if len(self.shard_ends) else 0


def epoch_shares(sources: Sequence[SourceCounts], batch: int) -> list[int]:
    """Samples that an epoch takes of every source.

    Without weights: its samples times `repeat`, and all of that again until a batch is filled. With weights: the
    shares of as many samples as the sources hold together (again, at least a batch), rounded so that they add up.

    >>> epoch_shares([SourceCounts((30,)), SourceCounts((5,), repeat=4)], 8)
    [30, 20]
    >>> epoch_shares([SourceCounts((90,), weight=1.0), SourceCounts((10,), weight=3.0)], 8)
    [25, 75]
    """
    held = [source.samples * source.repeat for source in sources]
    passes = -(-batch // max(sum(held), 1))
    weights = [source.weight for source in sources]
    if not any(weights):
        return [passes * samples for samples in held]
    total = passes * sum(held)
    exact = [total * weight / sum(weights) for weight in weights]
    shares = [int(share) for share in exact]
    by_rest = sorted(range(len(exact)), key=lambda number: (shares[number] - exact[number], number))
    for number in by_rest[: total - sum(shares)]:
        shares[number] += 1
    return shares


@dataclass(frozen=True, kw_only=True)
class StreamSummary:
    """The counts of a stream, for logs and plans."""

    samples: int
    """Samples of the sources, repetitions included."""
    batch: int
    """Samples per step over all ranks."""
    lanes: int
    """Stretches of an epoch that are read side by side."""
    ranks: int
    """The most ranks that have a sample in every step."""
    passes: int
    """How often an epoch takes as many samples as there are; above 1 only where they do not fill one batch."""
    shares: tuple[int, ...]
    """Samples that an epoch takes of every source."""
    steps_per_epoch: int
    """Whole batches of an epoch."""
    tail: int
    """Samples (of all passes) that an epoch leaves out because they fill no batch."""

    def in_words(self) -> str:
        """One line for a person.

        >>> counts = {"samples": 157, "batch": 8, "lanes": 8, "ranks": 8, "passes": 1, "steps_per_epoch": 19, "tail": 5}
        >>> StreamSummary(**counts, shares=(100, 57)).in_words()
        '157 samples of 2 datasets, 8 a step: 19 steps an epoch, 5 samples left out of each; for up to 8 ranks'
        """
        sources = len(self.shares)
        of = f" of {sources} datasets" if sources > 1 else ""
        passes = f", {self.passes} passes" if self.passes > 1 else ""
        left = f", {self.tail} samples left out of each" if self.tail else ""
        steps = f"{self.steps_per_epoch} step{'' if self.steps_per_epoch == 1 else 's'} an epoch"
        ranks = f"for up to {self.ranks} rank{'' if self.ranks == 1 else 's'}"
        return f"{self.samples} samples{of}, {self.batch} a step: {steps}{passes}{left}; {ranks}"


class SampleOrder:
    """The endless order of one stream.

    An epoch's sample ids run from 0 to E - 1; `sample_indexes` gives the samples behind ids. An id comes at most
    once an epoch, so (epoch, id) seeds what is drawn for it.
    """

    def __init__(
        self,
        sources: Sequence[SourceCounts],
        *,
        batch: int,
        window: int,
        seed: int,
        lanes: int = 0,
        version: int = ORDER_VERSION,
    ) -> None:
        """Lay out the lanes.

        Args:
            sources: the datasets' counts; either all have a weight or none.
            batch: samples per step over all ranks.
            window: samples that a lane shuffles at a time.
            seed: the stream's own seed.
            lanes: how many; 0: `lanes_for` the batch, as always in version 1.
            version: of the order.

        Raises:
            UsageError: there is no sample, a source has none, or the batch or the window is below 1.
        """
        self.version = version
        self.lanes = lanes if lanes and version > 1 else lanes_for(batch, version)
        sizes = [source.samples for source in sources]
        self.samples = sum(size * source.repeat for size, source in zip(sizes, sources, strict=True))
        if not sizes or min(sizes) < 1 or window < 1:
            raise UsageError(
                f"a stream of sources with {sizes} samples and window {window}, expected at least 1 of each; "
                "check that the datasets hold samples and set stream.window"
            )
        self.batch, self.window, self.seed = batch, window, seed
        self._shares = np.array(epoch_shares(sources, batch), dtype=np.int64)
        if self._shares.min() < 1:
            raise UsageError(
                f"source {int(self._shares.argmin())} (from 0) of a stream has so small a weight that an epoch of "
                f"{int(self._shares.sum())} samples takes none of it; raise its weight or leave it out"
            )
        self._sizes = np.array(sizes, dtype=np.int64)
        self._ends = np.cumsum(self._shares)  # of the sources among an epoch's ids
        self._bases = np.cumsum(self._sizes) - self._sizes  # of the sources among the catalogue's samples
        self._shard_ends = [source.shard_ends for source in sources]
        self._total = int(self._ends[-1])
        self.steps_per_epoch = self._total // batch
        self._stretches: dict[int, tuple[int, np.ndarray, np.ndarray]] = {}
        self._windows: dict[int, tuple[int, int, np.ndarray]] = {}

    @property
    def epoch_ids(self) -> int:
        """Ids of an epoch, those of its tail included."""
        return self._total

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
            ranks=self.batch if self.version > 1 else self.lanes,
            passes=self._total // self.samples,
            shares=tuple(self._shares.tolist()),
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
            world_size: ranks, one of `fitting_world_sizes`.

        Returns:
            The epoch and the rank's sample ids, int64 of shape (batch / world_size,), of more ranks than samples (1,)
            or (0,). The global batch is the ranks' ids interleaved: its entry i is entry i // W of rank i mod W.
        """
        whole = self.batch if self.version > 1 else self.lanes
        if whole % world_size and (world_size < whole or self.version == 1):
            check_world_size(world_size, {"samples": self.batch}, self.version)
        epoch, index = self.position(step * self.batch)
        places = index + np.arange(rank, self.batch, world_size)
        ids = np.empty_like(places)
        turn = self.lanes // math.gcd(self.lanes, world_size)  # after so many of a rank's samples a lane comes again
        for start in range(min(turn, len(places))):
            slots = places[start::turn] // self.lanes
            first = int(slots[0])
            of_lane = self._lane_samples(int(places[start]) % self.lanes, epoch, first, int(slots[-1]) + 1 - first)
            ids[start::turn] = of_lane[slots - first]
        return epoch, ids

    def sample_indexes(self, epoch: int, ids: np.ndarray) -> np.ndarray:
        """Which of the catalogue's samples are behind ids of an epoch, int64 of the same shape."""
        source = np.searchsorted(self._ends, ids, side="right")
        share = self._shares[source]
        place = epoch * share + ids - (self._ends[source] - share)
        return self._bases[source] + place % self._sizes[source]

    def lane_start(self, lane: int) -> int:
        """First id of a lane, the same in every epoch."""
        if self.version == 1:
            return lane * self._total // self.lanes
        length, longer = divmod(self._total, self.lanes)
        return lane * length + min(lane, longer)

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
        low, high = self.lane_start(lane), self.lane_start(lane + 1)
        bounds = np.unique(np.concatenate([[low], *self._shard_bounds(low, high, epoch), [high]]))
        order = seeded_permutation(len(bounds) - 1, self.seed, "shards", epoch, lane)
        starts, ends = bounds[:-1][order], np.cumsum(np.diff(bounds)[order])
        self._stretches[lane] = (epoch, starts, ends)
        return starts, ends

    def _shard_bounds(self, low: int, high: int, epoch: int) -> Iterator[np.ndarray]:
        """Ids within (low, high) at which a shard or a source begins in an epoch."""
        for source, ends in enumerate(self._shard_ends):
            size, share = int(self._sizes[source]), int(self._shares[source])
            base = int(self._ends[source]) - share
            begin, end = max(low, base), min(high, base + share)
            if begin >= end:
                continue
            shift = epoch * share - base  # from an id to its place in the source's endless row
            for number in range((begin + shift) // size, (end - 1 + shift) // size + 1):
                start = number * size - shift  # of a pass over the source, as an id
                first, last = np.searchsorted(ends, (begin - start + 1, end - start))
                yield ends[first:last] + start
            yield np.array([begin])
