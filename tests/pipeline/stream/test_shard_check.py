"""Shards that are not the manifest's are found before a training starts, in a folder and on s3."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from small_datasets import encode, publish

from mcjepa.data_prep.dataset.manifest import read_sidecar
from mcjepa.data_prep.storage import open_store
from mcjepa.pipeline.settings.stream import SourceConfig
from mcjepa.pipeline.stream.catalogue import Catalogue, open_catalogue
from mcjepa.pipeline.stream.shard_check import find_shard_damage


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
