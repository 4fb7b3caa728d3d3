"""The stream while its store fails: the same steps as from a disk, in the same order, and clear ends."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest

from mcjepa.data_prep.dataset.manifest import read_manifest
from mcjepa.data_prep.errors import DataError
from mcjepa.data_prep.storage import open_store, s3_client
from mcjepa.pipeline.settings.stream import (
    AugmentConfig,
    PairAugmentConfig,
    ShardStoreConfig,
    SourceConfig,
    StreamConfig,
    ViewAugmentConfig,
)
from mcjepa.pipeline.stream.shard_cache import ShardCache
from tests.faults.proxy import FaultProxy
from tests.pipeline.small_datasets import assert_equal_steps, open_loader, publish, take
from tests.servers.seaweed import SeaweedServer

CLIPS, IMAGES = [10, 9, 7], [20, 17]


def stream_of(root: str, **settings: object) -> StreamConfig:
    """Small steps of both streams from the datasets below `root`."""
    config = StreamConfig(
        pairs=(SourceConfig(location=f"{root}/clips"),),
        views=(SourceConfig(location=f"{root}/images"),),
        pair_batch=4,
        view_batch=8,
        augment=AugmentConfig(pair=PairAugmentConfig(crop=(24, 32)), view=ViewAugmentConfig(size=16)),
        window=8,
        workers=0,
    )
    return replace(config, **settings)  # type: ignore[arg-type]


@pytest.fixture
def local(tmp_path: Path) -> StreamConfig:
    """The stream from a folder."""
    publish(str(tmp_path / "local" / "clips"), "clip", CLIPS)
    publish(str(tmp_path / "local" / "images"), "image", IMAGES)
    return stream_of(str(tmp_path / "local"))


@pytest.fixture
def remote(s3: str) -> str:
    """The same datasets in a bucket."""
    publish(f"{s3}/clips", "clip", CLIPS)
    publish(f"{s3}/images", "image", IMAGES)
    return s3


def wait_for_shards(folder: Path, count: int) -> None:
    end = time.monotonic() + 30
    while len(list(folder.glob("[!.]*.tar"))) < count and time.monotonic() < end:
        time.sleep(0.05)
    assert len(list(folder.glob("[!.]*.tar"))) == count


@pytest.mark.parametrize("cached", [False, True])
def test_errors_and_cut_bodies_change_no_step(
    local: StreamConfig, remote: str, proxy: FaultProxy, tmp_path: Path, cached: bool
) -> None:
    store = ShardStoreConfig(cache_dir=str(tmp_path / "cache") if cached else "", cache_gib=0.01)
    proxy.fail_at_random(seed=5, errors=0.05, cuts=0.05)
    assert_equal_steps(take(open_loader(stream_of(remote, store=store)), 14), take(open_loader(local), 14))
    counts = proxy.counts
    if not cached:
        assert counts["error before"] + counts["error after"] >= 3 and counts["cut response"] >= 3, counts
        return
    wait_for_shards(tmp_path / "cache", len(CLIPS) + len(IMAGES))
    proxy.fail_at_random(seed=5, errors=0, cuts=0)
    before = counts["requests"]
    again = open_loader(stream_of(remote, store=store))
    assert_equal_steps(take(again, 14), take(open_loader(local), 14))
    described = 2 * 4 + len(CLIPS) + len(IMAGES)  # manifests and looks for newer ones, sidecars
    assert counts["requests"] - before <= described  # no sample came from the bucket
    assert ShardCache(tmp_path / "cache", 1 << 30).held_bytes() <= 0.01 * 2**30


@pytest.mark.slow
def test_a_server_that_dies_for_twenty_seconds_is_waited_for(
    local: StreamConfig, remote: str, s3_server: SeaweedServer
) -> None:
    loader = open_loader(stream_of(remote, workers=1, prefetch=1))
    first = [next(loader) for _ in range(3)]
    s3_server.kill()
    time.sleep(20)
    s3_server.start()
    assert_equal_steps([*first, *take(loader, 9)], take(open_loader(local), 12))


def test_a_server_that_stays_away_is_named(
    remote: str, s3_server: SeaweedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_client, "PATIENCE_S", 0.5)
    loader = open_loader(stream_of(remote))
    next(loader)
    s3_server.kill()
    try:
        with loader, pytest.raises(DataError, match=r"S3 at http://127.0.0.1:\d+ .* AWS_ENDPOINT_URL, then run again"):
            for _ in range(12):
                next(loader)
    finally:
        s3_server.start()


def test_a_shard_cut_short_in_the_bucket_stops_the_run_when_it_enters_the_cache(remote: str, tmp_path: Path) -> None:
    store = open_store(f"{remote}/images")
    store.write("shards/image-000001.tar", store.read("shards/image-000001.tar")[:-512])
    assert len(read_manifest(f"{remote}/images").shards) == len(IMAGES)
    config = stream_of(remote, store=ShardStoreConfig(cache_dir=str(tmp_path / "cache")), pair_batch=0)
    with open_loader(config) as loader, pytest.raises(DataError, match=r"image-000001.tar of .*: a shard in the store"):
        for _ in range(300):
            next(loader)
            time.sleep(0.02)


def test_a_cache_that_cannot_be_written_is_said_and_done_without(
    local: StreamConfig, remote: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    store = ShardStoreConfig(cache_dir=str(tmp_path / "cache"))
    assert_equal_steps(take(open_loader(stream_of(remote, store=store)), 6), take(open_loader(local), 6))
    assert "shards are no longer cached by this process" in caplog.text
