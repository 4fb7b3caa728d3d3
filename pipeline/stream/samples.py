"""One stream of a rank: step number -> the samples of that step -> decoded, augmented, stacked.

    pair_stream    clips  -> two frames, ARFlow's augmentation
    view_stream    images (or one frame of a clip) -> two views, VICReg's recipe

What is drawn for a sample is seeded by (run seed, stream, epoch, sample id): it depends on no rank, no worker
and no world size. The frames are drawn first, so that a bucket can be asked for several samples at a time.

A sample that is damaged is replaced by a seeded draw from the whole stream, the first that is not damaged: a function
of what is stored and of (run seed, stream, epoch, sample id), so it is the same for any world size, all ranks keep
their equal steps, and a shard of which many samples are lost does not repeat one of them.
"""

from __future__ import annotations

import contextlib
import random
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mcjepa.data_prep.errors import DataError
from mcjepa.pipeline.errors import UsageError
from mcjepa.pipeline.settings.stream import PairAugmentConfig, SourceConfig, StreamConfig, ViewAugmentConfig
from mcjepa.pipeline.stream.augment.geometry import FrameSource, draw_below
from mcjepa.pipeline.stream.augment.pairs import choose_frames, make_pair
from mcjepa.pipeline.stream.augment.views import make_views
from mcjepa.pipeline.stream.batches import CorruptRecord, ImageStack, RawBatch
from mcjepa.pipeline.stream.catalogue import Catalogue, StoredSample, open_catalogue
from mcjepa.pipeline.stream.frames import FrameCache, StoredFrame, frame_suffixes
from mcjepa.pipeline.stream.manifest_index import index_folder
from mcjepa.pipeline.stream.order import SampleOrder
from mcjepa.pipeline.stream.seeding import mix64, seeded_random
from mcjepa.pipeline.stream.shard_reader import CorruptSample, Reading, ShardReader

_MOST_DRAWS = 64
"""Samples tried in the place of a damaged one, before the dataset is taken for damaged as a whole."""
_ROW_BYTES = 4 << 20
"""Of the files that are read before the first of them is decoded: those of a whole step at the usual sizes."""

Places = tuple[np.ndarray, np.ndarray]
"""Where the two images of a sample are written, HxWx3 uint8 each."""


class Augmentation(NamedTuple):
    """What a stream makes of a sample."""

    choose: Callable[[int, random.Random], Sequence[int]]
    """(frames of the sample, its generator) -> numbers of the frames that are used."""
    make: Callable[[Sequence[FrameSource], random.Random, Places], None]
    """(those frames, the generator after that, places) writes the two images of the sample."""
    size: tuple[int, int]
    """Height and width of the images, px."""


class Cancelled(Exception):
    """The step being read is no longer wanted."""


class SampleStream:
    """An endless stream, read step by step in any order of steps.

    It travels to worker processes as plain data; shards are opened in the process that reads them.
    """

    def __init__(
        self,
        name: str,
        catalogue: Catalogue,
        config: StreamConfig,
        augmentation: Augmentation,
        *,
        batch: int,
        seed: int,
    ) -> None:
        """Put together a stream.

        Args:
            name: `pairs` or `views`; for messages and seeds.
            catalogue: where the samples lie.
            config: the recipe's stream.
            augmentation: what is made of a sample.
            batch: samples per step over all ranks.
            seed: the run's seed.
        """
        self.name, self.catalogue = name, catalogue
        self.augmentation, self._seed = augmentation, mix64(seed, name)
        rule = {"window": config.window, "lanes": config.lanes, "version": config.order_version}
        self.order = SampleOrder(catalogue.counts, batch=batch, seed=self._seed, **rule)
        self._reader = ShardReader(catalogue, config.store)
        self._cache = FrameCache(config.cache_mib << 20)
        # Nothing is read or asked for ahead of its turn where frames may be kept already.
        self._ahead = config.store.readers if self._reader.remote and not config.cache_mib else 0
        self._in_rows = not self._reader.remote and not config.cache_mib
        self._reduced_decode = config.augment.reduced_decode

    def read(self, step: int, rank: int, world_size: int, cancelled: Callable[[], bool]) -> RawBatch:
        """The rank's part of a step of this stream.

        Raises:
            DataError: a shard or its store cannot be read, or nothing drawn in a damaged sample's place can be decoded.
            Cancelled: `cancelled()` became true in between.
        """
        epoch, ids = self.order.step_samples(step, rank=rank, world_size=world_size)
        samples = self._reader.find_all(self.order.sample_indexes(epoch, ids))
        first, second = (ImageStack(len(samples), self.augmentation.size) for _ in range(2))
        keys: list[str] = []
        corrupt: list[CorruptRecord] = []
        begin = self._begin_in_rows if self._in_rows else self._begin_ahead
        for place, begun in enumerate(begin(samples, epoch, ids)):
            if cancelled():
                raise Cancelled(f"step {step} of the {self.name}")
            places, key = (first.places[place], second.places[place]), begun.sample.key
            try:
                self._finish(begun, places)
            except CorruptSample as error:
                record = self._replace(begun, places, error)
                key = record.replaced_by
                corrupt.append(record)
            keys.append(key)
        return RawBatch(first.tensor, second.tensor, tuple(keys), tuple(corrupt))

    def close(self) -> None:
        """Close the open shards of this process."""
        self._reader.close()

    def _begin_ahead(self, samples: Sequence[StoredSample], epoch: int, ids: np.ndarray) -> Iterator[PendingSample]:
        """The samples in order, some of the next ones asked of the bucket already."""
        begun: deque[PendingSample] = deque()
        for sample, sample_id in zip(samples, ids.tolist(), strict=True):
            begun.append(self._begin(sample, epoch, sample_id))
            if len(begun) > self._ahead:
                yield begun.popleft()
        yield from begun

    def _begin_in_rows(self, samples: Sequence[StoredSample], epoch: int, ids: np.ndarray) -> Iterator[PendingSample]:
        """The samples in order, a row of them begun and read at a time.

        In turn with the decoder, each read would find the processor's caches full of pixels: twice the cost.
        """
        row: list[PendingSample] = []
        held = 0
        for sample, sample_id in zip(samples, ids.tolist(), strict=True):
            row.append(self._begin(sample, epoch, sample_id))
            held += row[-1].content.fetch()
            if held >= _ROW_BYTES:
                yield from row
                row, held = [], 0
        yield from row

    def _begin(self, sample: StoredSample, epoch: int, sample_id: int) -> PendingSample:
        """Draw a sample's frames and begin to read them."""
        rng = seeded_random(self._seed, "augment", epoch, sample_id)
        suffixes = frame_suffixes(sample.members)
        try:
            numbers = self.augmentation.choose(len(suffixes), rng)
        except ValueError as error:
            raise self._misfit(sample, error) from error
        taken = [suffixes[number] for number in numbers]
        later = partial(self._reader.read, sample, taken)
        return PendingSample(
            sample,
            (epoch, sample_id),
            rng,
            numbers,
            LazyBytes(self._reader.request(sample, taken) if self._ahead else later),
        )

    def _finish(self, begun: PendingSample, places: Places) -> None:
        """Write the two images of a sample.

        Raises:
            CorruptSample: it is damaged.
        """
        frames = [
            StoredFrame(
                (begun.sample.address, number),
                partial(begun.content.part, place),
                self._cache,
                reduced_decode=self._reduced_decode,
            )
            for place, number in enumerate(begun.numbers)
        ]
        try:
            self.augmentation.make(frames, begun.rng, places)
        except (DataError, CorruptSample):
            raise
        except ValueError as error:
            raise self._misfit(begun.sample, error) from error

    def _replace(self, begun: PendingSample, places: Places, error: CorruptSample) -> CorruptRecord:
        """Write the images of the first seeded draw from the stream that can be decoded."""
        for sample in self._substitutes(begun):
            with contextlib.suppress(CorruptSample):  # it is counted when its own turn comes
                self._finish(self._begin(sample, *begun.drawn_for), places)
                return CorruptRecord(self._reader.name(begun.sample), str(error), sample.key)
        raise DataError(
            f"{self._reader.name(begun.sample)} cannot be decoded ({error}), nor any of {_MOST_DRAWS} others drawn "
            "from the stream; expected damage to single samples only; run `mcjepa prep audit` on the dataset, then "
            "make it again"
        ) from error

    def _substitutes(self, begun: PendingSample) -> Iterator[StoredSample]:
        """Samples drawn for a damaged one, by the shares that an epoch takes of every source."""
        epoch, sample_id = begun.drawn_for
        for draw in range(_MOST_DRAWS):
            drawn = mix64(self._seed, "substitute", epoch, sample_id, draw) % self.order.epoch_ids
            [sample] = self._reader.find_all(self.order.sample_indexes(epoch, np.array([drawn])))
            if sample.address != begun.sample.address:
                yield sample

    def _misfit(self, sample: StoredSample, error: ValueError) -> DataError:
        """The error of a recipe that does not fit a sample."""
        return DataError(
            f"{self._reader.name(sample)} cannot be used for {self.name}: {error}; "
            "run `mcjepa prep audit` on the dataset, then make it again or correct the recipe"
        )


class LazyBytes:
    """The bytes of some members, taken when the first is asked for."""

    def __init__(self, reading: Reading) -> None:
        self._reading = reading
        self._parts: list[bytes] | None = None

    def part(self, place: int) -> bytes:
        self._parts = self._parts or self._reading()
        return self._parts[place]

    def fetch(self) -> int:
        """Take them now; returns how many bytes they are."""
        with contextlib.suppress(CorruptSample):  # raised again when its turn comes
            self._parts = self._reading()
        return sum(map(len, self._parts or ()))


class PendingSample(NamedTuple):
    """A sample whose frames are drawn and, from a bucket, on their way."""

    sample: StoredSample
    drawn_for: tuple[int, int]
    """Epoch and sample id that seed it."""
    rng: random.Random
    numbers: Sequence[int]
    content: LazyBytes


def pair_stream(config: StreamConfig, seed: int, *, shared: bool = False) -> SampleStream:
    """The motion branch's stream.

    Args:
        config: the recipe's stream.
        seed: the run's seed.
        shared: whether the processes of this machine share what they read of manifests, in files that stay.

    Raises:
        UsageError: a source holds no clips.
        DataError: a source is not published or damaged.
    """
    folder = index_folder(config.store.cache_dir) if shared else None
    catalogue = _open_sources("pairs", ("clip",), config.pairs, config.pair_batch, folder)
    pair = config.augment.pair
    augmentation = Augmentation(partial(choose_frames, config=pair), partial(_make_pair, config=pair), pair.crop)
    return SampleStream("pairs", catalogue, config, augmentation, batch=config.pair_batch, seed=seed)


def view_stream(config: StreamConfig, seed: int, *, shared: bool = False) -> SampleStream:
    """The content branch's stream; arguments and errors as of `pair_stream`."""
    folder = index_folder(config.store.cache_dir) if shared else None
    catalogue = _open_sources("views", ("image", "clip"), config.views, config.view_batch, folder)
    view = config.augment.view
    augmentation = Augmentation(_choose_one, partial(_make_views, config=view), (view.size, view.size))
    return SampleStream("views", catalogue, config, augmentation, batch=config.view_batch, seed=seed)


def _open_sources(
    name: str, kinds: Sequence[str], sources: Sequence[SourceConfig], batch: int, folder: Path | None
) -> Catalogue:
    if not sources:
        raise UsageError(
            f"stream.{name} is empty, expected a dataset for {batch} {name} a step; "
            "name a published one or set the batch to 0"
        )
    catalogue = open_catalogue(sources, folder)
    for dataset in catalogue.datasets:
        if dataset.kind not in kinds:
            raise UsageError(
                f"stream.{name} has {dataset.location}, a dataset of kind {dataset.kind}, expected "
                f"{' or '.join(kinds)}; name another dataset or prepare one of that kind"
            )
    return catalogue


def _choose_one(frame_count: int, rng: random.Random) -> tuple[int]:
    if not frame_count:
        raise ValueError("it has no frame")
    return (draw_below(rng, frame_count) if frame_count > 1 else 0,)


def _make_pair(frames: Sequence[FrameSource], rng: random.Random, places: Places, *, config: PairAugmentConfig) -> None:
    if frames[0].size != frames[1].size:
        raise CorruptSample(f"its frames have {frames[0].size} and {frames[1].size} px")
    make_pair(frames[0], frames[1], config, rng, places)


def _make_views(
    frames: Sequence[FrameSource], rng: random.Random, places: Places, *, config: ViewAugmentConfig
) -> None:
    make_views(frames[0], config, rng, places)
