"""One stream of a rank: step number -> the samples of that step -> decoded, augmented, stacked.

    pair_stream    clips  -> two frames, ARFlow's augmentation
    view_stream    images (or one frame of a clip) -> two views, VICReg's recipe

What is drawn for a sample is seeded by (run seed, stream, epoch, sample id): it depends on no rank, no worker
and no world size.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from data_prep.errors import DataError
from pipeline.augment.geometry import draw_below
from pipeline.augment.jpeg import decode_jpeg
from pipeline.augment.pairs import choose_frames, make_pair
from pipeline.augment.views import make_views
from pipeline.batches import RawBatch, stack_images
from pipeline.errors import UsageError
from pipeline.frame_cache import FrameCache
from pipeline.seeding import mix64, seeded_random
from pipeline.shard_reader import Catalogue, ShardReader, StoredSample, open_catalogue
from pipeline.stream import SampleOrder
from pipeline.stream_config import PairAugmentConfig, SourceConfig, StreamConfig, ViewAugmentConfig

FRAME_SUFFIX = "jpg"
"""Ending of the members that are frames: `jpg` of an image, `00.jpg`, `01.jpg`, ... of a clip."""


class Cancelled(Exception):
    """The step being read is no longer wanted."""


class SampleFrames:
    """The frames of one stored sample, read and decoded when they are asked for."""

    def __init__(self, reader: ShardReader, sample: StoredSample, cache: FrameCache) -> None:
        """Name the frames; nothing is read yet."""
        self._reader, self._sample, self._cache = reader, sample, cache
        self._suffixes = sorted(name for name in sample.members if name.rpartition(".")[2] == FRAME_SUFFIX)

    def __len__(self) -> int:
        return len(self._suffixes)

    def decode(self, number: int) -> np.ndarray:
        """Frame `number`, HxWx3 uint8 RGB; read-only where it is cached.

        Raises:
            ValueError: the frame is damaged.
            DataError: its shard is.
        """
        suffix = self._suffixes[number]
        return self._cache.fetch(
            (self._sample.address, number),
            lambda: decode_jpeg(self._reader.read(self._sample, (suffix,))[0]),
        )


ImageMaker = Callable[[SampleFrames, random.Random], tuple[np.ndarray, np.ndarray]]
"""Makes the two images of a sample; every draw comes from the sample's generator."""


class SampleStream:
    """An endless stream, read step by step in any order of steps.

    It travels to worker processes as plain data; shards are opened in the process that reads them.
    """

    def __init__(
        self,
        name: str,
        catalogue: Catalogue,
        order: SampleOrder,
        make: ImageMaker,
        *,
        seed: int,
        cache_mib: int,
    ) -> None:
        """Put together a stream.

        Args:
            name: `pairs` or `views`; for messages.
            catalogue: where the samples lie.
            order: which of them a step takes.
            make: what is made of one.
            seed: the stream's own seed.
            cache_mib: memory for decoded frames in each process, MiB.
        """
        self.name, self.catalogue, self.order = name, catalogue, order
        self._make, self._seed = make, seed
        self._reader = ShardReader(catalogue)
        self._cache = FrameCache(cache_mib << 20)

    def read(self, step: int, rank: int, world_size: int, cancelled: Callable[[], bool]) -> RawBatch:
        """The rank's part of a step.

        Raises:
            DataError: a sample or its shard is damaged or missing; the message names shard and key.
            Cancelled: `cancelled()` became true in between.
        """
        epoch, ids = self.order.step_samples(step, rank=rank, world_size=world_size)
        images: list[tuple[np.ndarray, np.ndarray]] = []
        keys: list[str] = []
        for sample_id in ids.tolist():
            if cancelled():
                raise Cancelled(f"step {step} of the {self.name}")
            sample = self._reader.find(sample_id % self.order.samples)
            images.append(self._make_images(sample, seeded_random(self._seed, "augment", epoch, sample_id)))
            keys.append(sample.key)
        first, second = zip(*images, strict=True)
        return RawBatch(stack_images(first), stack_images(second), tuple(keys))

    def _make_images(self, sample: StoredSample, rng: random.Random) -> tuple[np.ndarray, np.ndarray]:
        try:
            return self._make(SampleFrames(self._reader, sample, self._cache), rng)
        except DataError:
            raise
        except ValueError as error:
            raise DataError(
                f"{self._reader.name(sample)} cannot be used for {self.name}: {error}; "
                "run `mcjepa prep audit` on the dataset, then make it again or correct the recipe"
            ) from error

    def close(self) -> None:
        """Close the open shards of this process."""
        self._reader.close()


def pair_stream(config: StreamConfig, seed: int) -> SampleStream:
    """The motion branch's stream.

    Raises:
        UsageError: a source holds no clips.
        DataError: a source is not published or damaged.
    """
    make = partial(_pair_of_clip, config=config.augment.pair)
    return _build_stream("pairs", ("clip",), config.pairs, config.pair_batch, config, seed, make)


def view_stream(config: StreamConfig, seed: int) -> SampleStream:
    """The content branch's stream; raises as `pair_stream` does."""
    make = partial(_views_of_frame, config=config.augment.view)
    return _build_stream("views", ("image", "clip"), config.views, config.view_batch, config, seed, make)


def _build_stream(
    name: str,
    kinds: Sequence[str],
    sources: Sequence[SourceConfig],
    batch: int,
    config: StreamConfig,
    seed: int,
    make: ImageMaker,
) -> SampleStream:
    if not sources:
        raise UsageError(
            f"stream.{name} is empty, expected a dataset for {batch} {name} a step; "
            "name a published one or set the batch to 0"
        )
    catalogue = open_catalogue(sources)
    for dataset in catalogue.datasets:
        if dataset.kind not in kinds:
            raise UsageError(
                f"stream.{name} has {dataset.location}, a dataset of kind {dataset.kind}, expected "
                f"{' or '.join(kinds)}; name another dataset or prepare one of that kind"
            )
    stream_seed = mix64(seed, name)
    order = SampleOrder(catalogue.shard_samples, batch=batch, window=config.window, seed=stream_seed)
    return SampleStream(name, catalogue, order, make, seed=stream_seed, cache_mib=config.cache_mib)


def _pair_of_clip(
    frames: SampleFrames, rng: random.Random, *, config: PairAugmentConfig
) -> tuple[np.ndarray, np.ndarray]:
    first, second = choose_frames(len(frames), config, rng)
    return make_pair(frames.decode(first), frames.decode(second), config, rng)


def _views_of_frame(
    frames: SampleFrames, rng: random.Random, *, config: ViewAugmentConfig
) -> tuple[np.ndarray, np.ndarray]:
    if not len(frames):
        raise ValueError("it has no frame")
    number = draw_below(rng, len(frames)) if len(frames) > 1 else 0
    return make_views(frames.decode(number), config, rng)
