"""Open shards of a reader: as many as allowed, none that has left the node's cache, no look at all of them a sample."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from small_datasets import publish

from mcjepa.pipeline.settings.stream import ShardStoreConfig, SourceConfig
from mcjepa.pipeline.stream import shard_reader
from mcjepa.pipeline.stream.catalogue import open_catalogue
from mcjepa.pipeline.stream.shard_reader import ShardReader


@contextmanager
def opened(location: str, config: ShardStoreConfig) -> Iterator[ShardReader]:
    reader = ShardReader(open_catalogue((SourceConfig(location=location),)), config)
    try:
        yield reader
    finally:
        reader.close()


def read(reader: ShardReader, *indexes: int) -> None:
    for index in indexes:
        assert reader.read(reader.find(index), ["jpg"])[0][:2] == b"\xff\xd8"


def test_the_least_recently_used_of_too_many_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_reader, "_KEPT_FILES", 3)
    publish(str(tmp_path / "images"), "image", [1] * 6)
    with opened(str(tmp_path / "images"), ShardStoreConfig()) as reader:
        read(reader, 0, 1, 2, 0, 3)
        assert list(reader._files) == [(0, 2), (0, 0), (0, 3)]
        descriptors = [descriptor for descriptor, _ in reader._files.values()]
    for descriptor in descriptors:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(descriptor)


def test_what_has_left_the_cache_is_closed_and_not_looked_for_at_every_sample(
    s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(s3, "image", [1] * 9)
    cache, looks, fstat = tmp_path / "cache", 0, os.fstat

    def counted(descriptor: int) -> os.stat_result:
        nonlocal looks
        looks += 1
        return fstat(descriptor)

    with opened(s3, ShardStoreConfig(cache_dir=str(cache))) as reader:
        read(reader, *range(8))
        deadline = time.monotonic() + 30
        while len(list(cache.glob("*.tar"))) < 8 and time.monotonic() < deadline:
            time.sleep(0.05)
        monkeypatch.setattr(os, "fstat", counted)
        read(reader, *range(8))
        assert len(reader._files) == 8 and looks <= 3 * 8  # of each, as it is opened; of the others none
        for path in cache.glob("*.tar"):
            path.unlink()
        monkeypatch.setattr(shard_reader, "_TOUCH_S", 0.0)
        read(reader, 8)
        while not reader._files.get((0, 8)) and time.monotonic() < deadline:
            read(reader, 8)
        assert list(reader._files) == [(0, 8)]
