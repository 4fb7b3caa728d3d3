"""The datasets that the measurements of the stream share: frames of the packaged clips, 256 px high, in many shards.

A few dozen real frames are decoded once and stored again and again under other keys: what a sample costs depends on its
bytes, not on how many others are like it.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np

from benchmarks.prep_corpus import clip_dataset, plan_into
from mcjepa.data_prep.dataset.manifest import (
    DatasetManifest,
    ShardEntry,
    Sidecar,
    Totals,
    compute_dataset_id,
    read_sidecar,
    write_manifest,
    write_sidecar,
)
from mcjepa.data_prep.dataset.shards import ShardWriter
from mcjepa.data_prep.layout import shard_key
from mcjepa.data_prep.storage import open_store
from mcjepa.data_prep.workers.shard_maker import ShardMaker
from mcjepa.pipeline.settings.stream import AugmentConfig, PairAugmentConfig, SourceConfig, StreamConfig
from mcjepa.pipeline.stream.frames import decode_jpeg, jpeg_size

Kind = Literal["clip", "image"]


def packaged_samples(kind: Kind, short_side_px: int = 256) -> list[dict[str, bytes]]:
    """Samples of the packaged clips, each as its members by suffix."""
    with tempfile.TemporaryDirectory() as folder:
        work, plans, _ = plan_into(f"{folder}/d", replace(clip_dataset(1), kind=kind, short_side=short_side_px))
        maker = ShardMaker(work)
        maker.make(plans[0])
        maker.close()
        (shard,) = Path(f"{folder}/d/shards").glob("*.tar")
        content, samples = shard.read_bytes(), read_sidecar(f"{folder}/d", shard.stem).samples
        return [{m.suffix: content[m.offset : m.offset + m.bytes] for m in sample.members} for sample in samples]


def publish_copies(
    location: str, kind: Kind, samples: Sequence[Mapping[str, bytes]], shards: int, samples_per_shard: int
) -> str:
    """Publish a dataset of `shards` x `samples_per_shard` samples, the given ones in turn; returns its location."""
    store, entries, endless, number = open_store(location), [], itertools.cycle(samples), itertools.count()
    for shard in range(shards):
        name = f"{kind}-{shard:06d}"
        with tempfile.TemporaryFile() as file:
            writer = ShardWriter(file)
            for _ in range(samples_per_shard):
                writer.add(f"{next(number):016d}", next(endless))
            digest, size, stored = writer.finish()
            file.seek(0)
            store.write(shard_key(name), file.read())
        write_sidecar(store, Sidecar(name, digest, size, "plan", stored))
        entries.append(ShardEntry(name, digest, size, samples_per_shard))
    count = shards * samples_per_shard
    totals = Totals(shards, count, sum(entry.bytes for entry in entries), count, count, 0, 0)
    dataset_id = compute_dataset_id(entries)
    write_manifest(store, DatasetManifest(kind, dataset_id, "plan", "inputs", "", "", {}, tuple(entries), totals))
    return location


def stream_of(images: str = "", clips: str = "", *, view_batch: int = 48, pair_batch: int = 4) -> StreamConfig:
    """The paper's views of 224 px and pairs of 256 x 384 px, loaded in the calling process."""
    return StreamConfig(
        pairs=(SourceConfig(location=clips),) if clips else (),
        views=(SourceConfig(location=images),) if images else (),
        pair_batch=pair_batch if clips else 0,
        view_batch=view_batch if images else 0,
        augment=AugmentConfig(pair=PairAugmentConfig(crop=(256, 384))),
        workers=0,
    )


class MemoryFrame:
    """A JPEG whose bytes are at hand, for the augmentations; nothing around the decoder's two calls."""

    reducible = True

    def __init__(self, data: bytes) -> None:
        """Hold the file's bytes."""
        self._data = data

    @property
    def size(self) -> tuple[int, int]:
        """Height and width, px."""
        return jpeg_size(self._data)

    def decode(self, reduction: int = 1) -> np.ndarray:
        """RGB."""
        return decode_jpeg(self._data, reduction)
