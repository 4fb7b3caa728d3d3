"""Shards that are not the manifest's are found before a training starts, in a folder and on s3."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from small_datasets import encode, publish

from mcjepa.data_prep.dataset.manifest import read_sidecar
from mcjepa.data_prep.errors import DataError
from mcjepa.data_prep.storage import FileEntry, KeySpan, open_store
from mcjepa.pipeline.settings.stream import SourceConfig
from mcjepa.pipeline.stream import shard_check
from mcjepa.pipeline.stream.catalogue import Catalogue, open_catalogue
from mcjepa.pipeline.stream.shard_check import _listed_lengths, find_shard_damage


@pytest.fixture(params=["folder", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Six shards of two images."""
    location = str(tmp_path / "images") if request.param == "folder" else request.getfixturevalue("s3")
    publish(location, "image", [2] * 6)
    return str(location)


def catalogues(location: str) -> dict[str, Catalogue]:
    return {"views": open_catalogue((SourceConfig(location=location),))}


def repaint(location: str, shard: str) -> None:
    """Other pictures of the same length in the place of all pictures of a shard."""
    store, key = open_store(location), f"shards/{shard}.tar"
    content = bytearray(store.read(key))
    for sample in read_sidecar(store, shard).samples:
        member = sample.members[0]
        other = encode(np.zeros((8, 8, 3), np.uint8))[: member.bytes]
        content[member.offset : member.offset + member.bytes] = other.ljust(member.bytes, b"\0")
    store.write(key, bytes(content))


def test_replaced_pictures_are_found_by_their_digest(place: str) -> None:
    for check in ("sizes", "sampled", "full"):
        assert find_shard_damage(catalogues(place), check, draw=0) == ""  # type: ignore[arg-type]
    for shard in range(6):
        repaint(place, f"image-{shard:06d}")
    assert find_shard_damage(catalogues(place), "sizes", draw=0) == ""
    assert "expected" in find_shard_damage(catalogues(place), "sampled", draw=0)
    problem = find_shard_damage(catalogues(place), "full", draw=0)
    assert "has sha256" in problem and "as in the manifest" in problem and "prep audit" in problem
    assert find_shard_damage(catalogues(place), "none", draw=0) == ""


def test_a_shard_that_is_cut_or_gone_is_found_by_some_rank(place: str) -> None:
    store = open_store(place)
    whole = store.read("shards/image-000004.tar")
    store.write("shards/image-000004.tar", whole[: len(whole) // 2])
    found = [find_shard_damage(catalogues(place), "sizes", draw=3, rank=r, world_size=4) for r in range(4)]
    [problem] = [text for text in found if text]
    assert f"shard image-000004 of {place} has {len(whole) // 2} bytes, expected {len(whole)}" in problem
    store.remove("shards/image-000004.tar")
    assert any(
        "is absent" in find_shard_damage(catalogues(place), "full", draw=3, rank=r, world_size=4) for r in range(4)
    )


def test_full_looks_at_every_shard_once_and_sampled_at_others_every_start(place: str) -> None:
    repaint(place, "image-000002")
    hits = [find_shard_damage(catalogues(place), "full", draw=0, rank=r, world_size=2) != "" for r in range(2)]
    assert sorted(hits) == [False, True]
    sampled = {find_shard_damage(catalogues(place), "sampled", draw=draw) != "" for draw in range(12)}
    assert sampled == {False, True}


class CountingBucket:
    """A bucket before a folder: a folder's answers, its requests counted."""

    def __init__(self, location: str, *, listed: bool = True) -> None:
        self._store, self._listed, self.location = open_store(location), listed, location
        self.asked: list[str] = []

    def files(self, prefix: str, span: KeySpan) -> Iterator[FileEntry]:
        self.asked.append("list")
        if not self._listed:
            raise DataError("AccessDenied")
        return self._store.files(prefix, span)

    def size(self, key: str) -> int:
        self.asked.append("head")
        return self._store.size(key)


def look(bucket: CountingBucket, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What each of three ranks finds."""
    known = catalogues(bucket.location)
    monkeypatch.setattr(shard_check, "open_store", lambda location: bucket)
    monkeypatch.setattr(shard_check, "LISTED", 4)
    return [find_shard_damage(known, "sizes", draw=1, rank=rank, world_size=3) for rank in range(3)]


def test_a_bucket_is_asked_once_for_neighbouring_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(str(tmp_path), "image", [1] * 10)
    bucket = CountingBucket(str(tmp_path))
    assert look(bucket, monkeypatch) == ["", "", ""] and bucket.asked == ["list"] * 3
    path = tmp_path / "shards" / "image-000009.tar"
    path.write_bytes(path.read_bytes()[:-1])
    (tmp_path / "shards" / "image-000003.tar").unlink()
    problems = " ".join(look(bucket, monkeypatch))
    assert "image-000009" in problems and "image-000003" in problems and "is absent" in problems


def test_a_bucket_that_may_not_be_listed_is_asked_shard_by_shard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(str(tmp_path), "image", [1] * 10)
    bucket = CountingBucket(str(tmp_path), listed=False)
    assert look(bucket, monkeypatch) == ["", "", ""]
    assert bucket.asked.count("head") == 10


def test_shard_a_million_stands_before_its_neighbour_and_is_found(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    names = [f"image-{number:06d}" for number in range(999_998, 1_000_002)]
    for length, name in enumerate((*names, "image-500000")):
        store.write(f"shards/{name}.tar", b"x" * length)
    assert _listed_lengths(store, names) == dict(zip(names, range(4), strict=True))
