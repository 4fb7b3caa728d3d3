"""Steps of the loader on real shards: same for any workers and ranks, exact resume, named faults."""

from __future__ import annotations

import os
import tarfile
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from small_datasets import HEIGHT, WIDTH, assert_equal_steps, frame_of, open_loader, publish, take

from mcjepa.data_prep.errors import DataError
from mcjepa.pipeline.errors import UsageError
from mcjepa.pipeline.settings.stream import (
    AugmentConfig,
    ColourJitterConfig,
    PairAugmentConfig,
    ShardStoreConfig,
    SourceConfig,
    StreamConfig,
    ViewAugmentConfig,
)
from mcjepa.pipeline.stream import samples as sample_stream
from mcjepa.pipeline.stream.catalogue import open_catalogue
from mcjepa.pipeline.stream.frames import FrameCache
from mcjepa.pipeline.stream.shard_reader import ShardReader
from mcjepa.pipeline.stream.workers import default_workers


def test_steps_have_the_stated_shapes_types_and_ranges(small_stream: StreamConfig) -> None:
    batches = take(open_loader(small_stream), 3)
    assert [batch.step for batch in batches] == [0, 1, 2]
    for batch in batches:
        assert batch.pairs and batch.views
        assert batch.pairs.frame0.shape == batch.pairs.frame1.shape == (4, 3, 24, 32)
        assert batch.views.view0.shape == batch.views.view1.shape == (8, 3, 16, 16)
        assert all(frames.is_contiguous() for frames in batch.pairs.as_dict().values())
        assert all(views.is_contiguous(memory_format=torch.channels_last) for views in batch.views.as_dict().values())
        for images in (*batch.pairs.as_dict().values(), *batch.views.as_dict().values()):
            assert images.dtype == torch.float32
            assert images.min() >= 0 and images.max() <= 1 and images.max() > 0.05
        assert len(batch.pairs.keys) == 4 and len(batch.views.keys) == 8


@pytest.mark.parametrize("workers", [0, 1])
def test_of_more_ranks_than_pairs_the_first_have_one_and_the_others_an_empty_batch(
    small_stream: StreamConfig, workers: int
) -> None:
    stream = replace(small_stream, pair_batch=2, workers=workers)
    [whole] = take(open_loader(stream), 1)
    shares = [take(open_loader(stream, rank=rank, world_size=4), 1)[0] for rank in range(4)]
    assert all(share.pairs and share.views and len(share.views.keys) == 2 for share in shares)
    assert [share.pairs.frame0.shape for share in shares if share.pairs] == 2 * [(1, 3, 24, 32)] + 2 * [(0, 3, 24, 32)]
    assert whole.pairs and [key for share in shares if share.pairs for key in share.pairs.keys] == [*whole.pairs.keys]


def test_cores_that_slurm_has_bound_to_a_task_are_not_shared_again(
    small_stream: StreamConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    usable = len(os.sched_getaffinity(0))
    told = {"SLURM_STEP_ID": "0", "SLURM_NTASKS": "4", "SLURM_CPUS_PER_TASK": str(usable)}
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    loader = open_loader(replace(small_stream, workers=None), rank=1, world_size=4)
    assert loader.workers == default_workers(usable, 1, on_gpu=False)


@pytest.mark.parametrize("swap", [0.0, 1.0])
def test_a_pair_is_two_consecutive_frames_of_the_sample_its_key_names(small_stream: StreamConfig, swap: float) -> None:
    pair = PairAugmentConfig(crop=(HEIGHT, WIDTH), flip=0, swap=swap)
    plain = replace(small_stream, view_batch=0, augment=AugmentConfig(pair=pair))
    firsts = set()
    for batch in take(open_loader(plain), 6):
        assert batch.pairs is not None and batch.views is None
        for place, key in enumerate(batch.pairs.keys):
            number = int(key.removeprefix("clip"))
            levels = [float(images[place].mean() * 255) for images in batch.pairs.as_dict().values()]
            places = [round((level - 4 * number % 160 - frame_of(0, 0).mean()) / 30) for level in levels]
            assert places[1] - places[0] == (-1 if swap else 1)
            firsts.add(min(places))
            for images, frame in zip(batch.pairs.as_dict().values(), places, strict=True):
                difference = images[place].permute(1, 2, 0) * 255 - torch.from_numpy(frame_of(number, frame))
                assert difference.abs().max() <= 3
    assert firsts == {0, 1}


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than cores, on purpose
@pytest.mark.parametrize("workers", [1, 3])
def test_steps_are_the_same_for_any_number_of_workers(small_stream: StreamConfig, workers: int) -> None:
    assert_equal_steps(take(open_loader(replace(small_stream, workers=workers)), 9), take(open_loader(small_stream), 9))


@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_interleave_to_the_steps_of_one_rank(small_stream: StreamConfig, world_size: int) -> None:
    alone = take(open_loader(small_stream), 8)
    ranks = [take(open_loader(small_stream, rank, world_size), 8) for rank in range(world_size)]
    for step, whole in enumerate(alone):
        for rank in range(world_size):
            part = ranks[rank][step]
            assert part.pairs and part.views and whole.pairs and whole.views
            assert part.pairs.keys == whole.pairs.keys[rank::world_size]
            assert part.views.keys == whole.views.keys[rank::world_size]
            assert torch.equal(part.pairs.frame1, whole.pairs.frame1[rank::world_size])
            assert torch.equal(part.views.view0, whole.views.view0[rank::world_size])


def test_resuming_twice_and_on_other_ranks_continues_the_uninterrupted_run(
    small_stream: StreamConfig,
) -> None:
    whole = take(open_loader(small_stream), 12)
    first = take(open_loader(small_stream), 5)
    second = take(open_loader(small_stream, start_step=5), 3)
    third = take(open_loader(replace(small_stream, workers=2), start_step=8), 4)
    assert_equal_steps([*first, *second, *third], whole)
    halves = [take(open_loader(small_stream, rank, 2, start_step=9), 1)[0] for rank in range(2)]
    for rank, half in enumerate(halves):
        assert half.views and whole[9].views and half.views.keys == whole[9].views.keys[rank::2]


def test_each_stream_has_its_own_epochs_with_every_sample_once(small_stream: StreamConfig) -> None:
    batches = take(
        open_loader(small_stream), 12
    )  # 26 clips: 6 steps and a tail of 2; 37 images: 4 steps and a tail of 5
    for epoch in range(2):
        keys = [key for b in batches[6 * epoch : 6 * epoch + 6] if b.pairs for key in b.pairs.keys]
        assert len(set(keys)) == len(keys) == 24
    for epoch in range(3):
        keys = [key for b in batches[4 * epoch : 4 * epoch + 4] if b.views for key in b.views.keys]
        assert len(set(keys)) == len(keys) == 32


def test_the_same_sample_is_augmented_anew_in_every_epoch(small_stream: StreamConfig) -> None:
    views: dict[str, list[torch.Tensor]] = {}
    for batch in take(open_loader(small_stream), 8):
        assert batch.views
        for place, key in enumerate(batch.views.keys):
            views.setdefault(key, []).append(batch.views.view0[place])
    repeated = [both for both in views.values() if len(both) == 2]
    assert len(repeated) > 20 and not any(torch.equal(*both) for both in repeated)


def test_counts_and_dataset_ids_are_described(small_stream: StreamConfig, datasets: Path) -> None:
    loader = open_loader(small_stream)
    pairs, views = loader.describe()["pairs"], loader.describe()["views"]
    assert (pairs.samples, pairs.lanes, pairs.steps_per_epoch, pairs.tail) == (26, 4, 6, 2)
    assert (views.samples, views.lanes, views.steps_per_epoch, views.tail) == (37, 8, 4, 5)
    assert [len(ids[0]) for ids in loader.dataset_ids.values()] == [64, 64]
    assert loader.next_step == 0
    loader.close()


def test_a_repeated_dataset_comes_as_often_as_it_is_repeated(small_stream: StreamConfig, datasets: Path) -> None:
    sources = (
        SourceConfig(location=str(datasets / "clips")),
        SourceConfig(location=str(datasets / "few"), repeat=6),
    )
    mixed = replace(small_stream, pairs=sources, pair_batch=1, view_batch=0)
    counts = Counter(key for batch in take(open_loader(mixed), 44) if batch.pairs for key in batch.pairs.keys)
    assert counts["clip00000"] == counts["clip00001"] == counts["clip00002"] == 7  # both sets name these keys
    assert {counts[f"clip{number:05d}"] for number in range(3, 26)} == {1}


def test_a_weighted_dataset_has_its_share_whatever_its_size(small_stream: StreamConfig, datasets: Path) -> None:
    sources = (
        SourceConfig(location=str(datasets / "images"), weight=1.0),
        SourceConfig(location=str(datasets / "few"), weight=3.0),
    )
    mixed = replace(small_stream, views=sources, view_batch=8, pair_batch=0)
    loader = open_loader(mixed)
    assert loader.describe()["views"].shares == (10, 30)  # of 40 samples
    keys = [key for batch in take(loader, 20) if batch.views for key in batch.views.keys]
    assert sum(key.startswith("clip") for key in keys) == 120
    images = Counter(key for key in keys if key.startswith("image"))
    assert sum(images.values()) == 40 and len(images) == 37 and set(images.values()) == {1, 2}


@pytest.mark.parametrize("sampling", ["alternate-batch", "alternate-epoch"])
def test_streams_take_turns_and_keep_their_orders(
    small_stream: StreamConfig, sampling: Literal["alternate-batch", "alternate-epoch"]
) -> None:
    combined = take(open_loader(small_stream), 8)
    turns = replace(small_stream, sampling=sampling)
    batches = [*take(open_loader(turns), 5), *take(open_loader(replace(turns, workers=2), start_step=5), 9)]
    assert all((batch.pairs is None) != (batch.views is None) for batch in batches)
    pairs, views = ([each for b in batches if (each := getattr(b, name))] for name in ("pairs", "views"))
    assert len(pairs) >= 6 and len(views) >= 7
    for own, whole in zip(pairs, combined, strict=False):
        assert whole.pairs and own.keys == whole.pairs.keys and torch.equal(own.frame0, whole.pairs.frame0)
    for own, whole in zip(views, combined, strict=False):
        assert whole.views and own.keys == whole.views.keys and torch.equal(own.view1, whole.views.view1)
    half = take(open_loader(turns, 1, 2, start_step=6), 1)[0]
    assert (half.pairs is None) == (batches[6].pairs is None)


def test_a_set_smaller_than_the_batch_fills_it_with_different_views(small_stream: StreamConfig, datasets: Path) -> None:
    source = SourceConfig(location=str(datasets / "few"))
    batch = take(open_loader(replace(small_stream, pair_batch=0, views=(source,), view_batch=16)), 1)[0]
    assert batch.views and batch.pairs is None
    assert Counter(batch.views.keys).keys() == {"clip00000", "clip00001", "clip00002"}
    assert len({view.numpy().tobytes() for view in batch.views.view0}) == 16


def test_views_of_clips_come_from_all_their_frames(small_stream: StreamConfig, datasets: Path) -> None:
    plain = ViewAugmentConfig(size=32, jitter=ColourJitterConfig(probability=0), grey=0, blur=(0, 0), solarize=(0, 0))
    source = SourceConfig(location=str(datasets / "few"))
    small = replace(small_stream, pair_batch=0, views=(source,), view_batch=16, augment=AugmentConfig(view=plain))
    places = set()
    for batch in take(open_loader(small), 2):
        assert batch.views
        for view, key in zip(batch.views.view0, batch.views.keys, strict=True):
            level = float(view.mean() * 255) - 4 * int(key.removeprefix("clip"))
            places.add(int(level // 30) if level >= 0 else 0)
    assert {0, 1, 2} <= places


@pytest.mark.parametrize(("encoding", "most"), [("png", 0), ("webp", 8)])
def test_frames_in_other_encodings_are_read_too(
    small_stream: StreamConfig, tmp_path: Path, encoding: str, most: int
) -> None:
    publish(str(tmp_path), "clip", [4], encoding=encoding)
    pair = PairAugmentConfig(crop=(HEIGHT, WIDTH), flip=0, swap=0)
    source = (SourceConfig(location=str(tmp_path)),)
    config = replace(small_stream, pairs=source, view_batch=0, augment=AugmentConfig(pair=pair))
    for batch in take(open_loader(config), 2):
        assert batch.pairs
        for image, key in zip(batch.pairs.frame0, batch.pairs.keys, strict=True):
            found = (image.permute(1, 2, 0) * 255).round().numpy().astype(int)
            stored = [frame_of(int(key.removeprefix("clip")), frame).astype(int) for frame in (0, 1)]
            assert min(np.abs(found - each).max() for each in stored) <= most


def test_cached_frames_change_nothing(small_stream: StreamConfig) -> None:
    assert_equal_steps(take(open_loader(replace(small_stream, cache_mib=1)), 12), take(open_loader(small_stream), 12))


@pytest.mark.parametrize("row_bytes", [1, 3000])
def test_how_many_samples_are_read_before_decoding_changes_nothing(
    small_stream: StreamConfig, row_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = take(open_loader(small_stream), 3)
    monkeypatch.setattr(sample_stream, "_ROW_BYTES", row_bytes)
    assert_equal_steps(take(open_loader(small_stream), 3), expected)


def test_the_frame_cache_keeps_to_its_cap_and_drops_the_least_recently_used() -> None:
    cache, decoded = FrameCache(250), []

    def frame(name: int) -> np.ndarray:
        def decode() -> np.ndarray:
            decoded.append(name)
            return np.full(100, name, np.uint8)

        return cache.fetch(name, decode)

    assert [int(frame(name)[0]) for name in (1, 2, 1, 3, 1, 2)] == [1, 2, 1, 3, 1, 2]
    assert decoded == [1, 2, 3, 2]
    with pytest.raises(ValueError, match="read-only"):
        frame(2)[0] = 9
    assert FrameCache(0).fetch(1, lambda: np.zeros(4, np.uint8)).flags.writeable


def test_the_reader_gives_the_bytes_of_the_tar(datasets: Path) -> None:
    catalogue = open_catalogue((SourceConfig(location=str(datasets / "clips")),))
    reader = ShardReader(catalogue, ShardStoreConfig())
    with tarfile.open(datasets / "clips" / "shards" / "clip-000001.tar") as tar:
        names = [name for name in tar.getnames() if name.startswith("clip00012.")]
        expected = {name.partition(".")[2]: tar.extractfile(name).read() for name in names}  # type: ignore[union-attr]
    sample = reader.find(12)
    assert sample.key == "clip00012" and set(sample.members) == {"00.jpg", "01.jpg", "02.jpg", "json"}
    assert reader.read(sample, ("02.jpg", "00.jpg")) == [expected["02.jpg"], expected["00.jpg"]]
    with pytest.raises(DataError, match=r"clip00012 has members .* expected \['07.jpg'\] too"):
        reader.read(sample, ("00.jpg", "07.jpg"))
    reader.close()


def remove_shard(root: Path) -> None:
    (root / "shards" / "image-000001.tar").unlink()


def remove_sidecar(root: Path) -> None:
    (root / "shards" / "image-000001.json").unlink()


def exchange_sidecar(root: Path) -> None:
    text = (root / "shards" / "image-000000.json").read_text()
    (root / "shards" / "image-000001.json").write_text(text)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (remove_shard, r"cannot open .*image-000001.tar: No such file or directory, expected .*; run"),
        (remove_sidecar, r"has no shards/image-000001.json; expected"),
        (exchange_sidecar, r"shard image-000001 of .*: its sidecar has sha256 .* expected"),
    ],
)
def test_damaged_data_is_named_without_a_traceback(
    small_stream: StreamConfig, own_images: Path, damage: Callable[[Path], None], message: str, workers: int
) -> None:
    damage(own_images)
    views = (SourceConfig(location=str(own_images)),)
    loader = open_loader(replace(small_stream, pair_batch=0, views=views, workers=workers))
    with pytest.raises(DataError, match=message) as caught:
        take(loader, 1)
    assert "Traceback" not in str(caught.value)


def test_settings_that_do_not_fit_the_data_are_refused(
    small_stream: StreamConfig, datasets: Path, tmp_path: Path
) -> None:
    images = (SourceConfig(location=str(datasets / "images")),)
    with pytest.raises(UsageError, match=r"stream.pairs has .* of kind image, expected clip"):
        open_loader(replace(small_stream, pairs=images))
    with pytest.raises(UsageError, match=r"stream.views is empty, expected a dataset for 8 views"):
        open_loader(replace(small_stream, views=()))
    with pytest.raises(UsageError, match="world sizes that fit: 1, 2, 4, 8;"):
        open_loader(small_stream, world_size=3)
    with pytest.raises(UsageError, match="rank 2 of 2"):
        open_loader(small_stream, rank=2, world_size=2)
    with pytest.raises(DataError, match=r"manifest.json is not there"):
        open_loader(replace(small_stream, pairs=(SourceConfig(location=str(tmp_path)),)))
    far = AugmentConfig(pair=PairAugmentConfig(frame_gap=3))
    with pytest.raises(DataError, match="3 frames, expected more than frame_gap=3"):
        take(open_loader(replace(small_stream, augment=far)), 1)


def test_the_runs_own_random_numbers_are_left_alone(small_stream: StreamConfig) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    take(open_loader(replace(small_stream, workers=1)), 2)
    assert torch.equal(torch.rand(3), expected)
