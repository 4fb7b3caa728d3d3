"""A damaged sample is named, counted and replaced by a seeded draw on any number of ranks; too many stop the run."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_datasets import open_loader, publish, take

from mcjepa.data_prep.dataset.manifest import read_sidecar
from mcjepa.data_prep.errors import DataError
from mcjepa.pipeline.settings.stream import SourceConfig, StreamConfig
from mcjepa.pipeline.stream.batches import CorruptRecord, StepBatch


def damage(root: Path, shard: str, places: Sequence[int]) -> list[str]:
    """Overwrite the beginning of some samples' JPEGs; returns their keys."""
    samples = read_sidecar(str(root), shard).samples
    with (root / "shards" / f"{shard}.tar").open("r+b") as file:
        for place in places:
            file.seek(samples[place].members[0].offset)
            file.write(bytes(64))
    return [samples[place].key for place in places]


@pytest.fixture()
def damaged(small_stream: StreamConfig, own_images: Path) -> StreamConfig:
    """Views of two shards of 4 images: 0 and 3 of the second cannot be decoded."""
    assert damage(own_images, "image-000001", (0, 3)) == ["image00004", "image00007"]
    return replace(small_stream, pair_batch=0, views=(SourceConfig(location=str(own_images)),), view_batch=4)


def corrupt_in(batches: list[StepBatch]) -> list[CorruptRecord]:
    return [record for batch in batches for record in batch.corrupt]


def test_a_seeded_draw_from_the_stream_takes_its_place(damaged: StreamConfig, own_images: Path) -> None:
    batches = take(open_loader(damaged), 2)  # an epoch
    keys = [key for batch in batches if batch.views for key in batch.views.keys]
    records = sorted(corrupt_in(batches), key=lambda record: record.sample)
    assert [record.sample for record in records] == [
        f"shard image-000001 of {own_images}, sample image0000{n}" for n in (4, 7)
    ]
    drawn = [record.replaced_by for record in records]
    whole = [f"image0000{n}" for n in (0, 1, 2, 3, 5, 6)]
    assert set(drawn) <= set(whole) and sorted(keys) == sorted([*whole, *drawn])
    assert all(record.reason for record in records)


def test_many_lost_samples_of_a_shard_are_replaced_by_many_others(small_stream: StreamConfig, tmp_path: Path) -> None:
    publish(str(tmp_path), "image", [64, 64])
    shard = tmp_path / "shards" / "image-000001.tar"
    half = shard.stat().st_size // 2
    shard.write_bytes(shard.read_bytes()[:half])
    entries = read_sidecar(str(tmp_path), "image-000001").samples
    lost = [e.key for e in entries if e.members[0].offset + e.members[0].bytes > half]
    views = replace(small_stream, pair_batch=0, views=(SourceConfig(location=str(tmp_path)),), view_batch=8)
    alone = take(open_loader(views), 16)  # an epoch
    drawn = [record.replaced_by for record in corrupt_in(alone)]
    assert sorted(record.sample.split()[-1] for record in corrupt_in(alone)) == lost and len(lost) >= 30
    assert len(set(drawn)) > 20 and not set(drawn) & set(lost)
    assert any(key < "image00064" for key in drawn) and any(key >= "image00064" for key in drawn)
    ranks = [take(open_loader(views, rank, 4), 16) for rank in range(4)]
    assert sorted(r.replaced_by for batches in ranks for r in corrupt_in(batches)) == sorted(drawn)


@pytest.mark.parametrize("workers", [0, 2])
def test_ranks_and_workers_replace_alike(damaged: StreamConfig, workers: int) -> None:
    alone = take(open_loader(damaged), 4)
    ranks = [take(open_loader(replace(damaged, workers=workers), rank, 2), 4) for rank in range(2)]
    for step, whole in enumerate(alone):
        assert whole.views
        for rank in range(2):
            part = ranks[rank][step].views
            assert part and part.keys == whole.views.keys[rank::2]
            assert torch.equal(part.view0, whole.views.view0[rank::2])
    assert len(corrupt_in(ranks[0]) + corrupt_in(ranks[1])) == len(corrupt_in(alone)) == 4


def test_each_is_logged_once_and_one_above_the_limit_stops_the_run(
    damaged: StreamConfig, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "mcjepa.pipeline.stream.loader"):
        take(open_loader(replace(damaged, max_corrupt=2)), 8)
    assert sorted(record.getMessage().split("sample ")[1].split(" ")[0] for record in caplog.records) == [
        "image00004",
        "image00007",
    ]
    with pytest.raises(
        DataError, match=r"sample image0000[47] cannot be decoded .*, corrupt sample 2 .* stream.max_corrupt=1;"
    ):
        take(open_loader(replace(damaged, max_corrupt=1)), 2)
    with pytest.raises(DataError, match=r"expected at most stream.max_corrupt=0"):
        take(open_loader(replace(damaged, max_corrupt=0)), 2)


def test_a_stream_without_any_decodable_sample_stops_the_run(damaged: StreamConfig, own_images: Path) -> None:
    damage(own_images, "image-000001", (1, 2))
    assert len(corrupt_in(take(open_loader(damaged), 2))) == 4
    damage(own_images, "image-000000", (0, 1, 2, 3))
    with pytest.raises(DataError, match=r"of .* cannot be decoded .* nor any of 64 others drawn from the stream"):
        take(open_loader(damaged), 2)


def test_a_damaged_second_frame_replaces_the_pair(small_stream: StreamConfig, tmp_path: Path) -> None:
    publish(str(tmp_path), "clip", [4], frames=2)
    member = read_sidecar(str(tmp_path), "clip-000000").samples[1].members[1]
    with (tmp_path / "shards" / "clip-000000.tar").open("r+b") as file:
        file.seek(member.offset + member.bytes // 2)
        file.write(bytes(member.bytes // 2))  # its header is fine: the damage shows when it is decoded
    pairs = replace(small_stream, pairs=(SourceConfig(location=str(tmp_path)),), view_batch=0)
    batch = take(open_loader(pairs), 1)[0]
    [drawn] = [record.replaced_by for record in batch.corrupt]
    assert drawn != "clip00001"
    assert batch.pairs and sorted(batch.pairs.keys) == sorted(["clip00000", "clip00002", "clip00003", drawn])
