"""Small corpora and settings, and datasets built in this process without Ray."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from mcjepa.data_prep.corpora.census import Census
from mcjepa.data_prep.corpora.moving_photos.generate import write_mp4
from mcjepa.data_prep.dataset.manifest import DatasetManifest
from mcjepa.data_prep.dataset.publish import publish_dataset
from mcjepa.data_prep.plan.files import begin_plan, read_plan_inputs, require_same_plan
from mcjepa.data_prep.plan.listing import list_inputs
from mcjepa.data_prep.plan.plan import split_into_shards
from mcjepa.data_prep.settings import CorpusConfig, DatasetConfig
from mcjepa.data_prep.storage import open_store
from mcjepa.data_prep.workers.shard_maker import ShardMaker, ShardResult, ShardWork


def smooth_frames(seed: int, frames: int, height: int, width: int) -> np.ndarray:
    """A smooth random texture that moves 2 px to the right a frame, RGB (T, H, W, 3) uint8."""
    noise = np.random.default_rng(seed).integers(60, 190, (height // 16 + 2, width // 16 + 4, 3), np.uint8)
    texture = cv2.resize(noise, (width + 2 * frames, height), interpolation=cv2.INTER_CUBIC)
    return np.stack([texture[:, 2 * (frames - t) :][:, :width] for t in range(frames)])


def make_videos(folder: Path) -> Path:
    """Three readable videos of 6, 9 and 12 frames, 64x96 px."""
    (folder / "deep").mkdir(parents=True)
    for number, name in enumerate(("a.mp4", "b.mp4", "deep/c.MP4")):
        write_mp4(folder / name, smooth_frames(number, 6 + 3 * number, 64, 96), 10, 20)
    return folder


def clip_settings(*folders: Path, **changes: object) -> DatasetConfig:
    """Settings of a small clip dataset from folders of videos."""
    corpora = tuple(CorpusConfig(reader="videos", path=str(f)) for f in folders)
    values: dict[str, object] = {
        "clip_stride": 1,
        "short_side": 32,
        "inputs_per_shard": 2,
        "timeout_s": 20.0,
        "order": "listed",
    }
    return DatasetConfig(kind="clip", corpora=corpora, **{**values, **changes})  # type: ignore[arg-type]


def build_dataset(location: Path | str, config: DatasetConfig) -> tuple[DatasetManifest, list[ShardResult]]:
    """Builds and publishes a dataset in this process, by the same parts as the job but without Ray."""
    store = open_store(str(location))
    census = Census()
    plan = begin_plan(store, config, list_inputs(config, census), census=census)
    require_same_plan(store, config, plan, list_inputs(config))
    maker = ShardMaker(ShardWork(str(location), config, plan.plan_digest))
    try:
        results = [maker.make(shard) for shard in split_into_shards(read_plan_inputs(store), config)]
    finally:
        maker.close()
    return publish_dataset(store, plan), results
