"""Repeated inputs are taken out after all shards are made; so are frames of evaluation sets, while they are made."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from mcjepa.data_prep.corpora.image_files import write_png
from mcjepa.data_prep.dataset.audit import audit_dataset
from mcjepa.data_prep.dataset.inputs import read_inputs
from mcjepa.data_prep.dataset.manifest import read_manifest
from mcjepa.data_prep.dataset.shards import ShardWriter
from mcjepa.data_prep.deduplicate import Thinning, thin_shard
from mcjepa.data_prep.errors import PlanMismatch
from mcjepa.data_prep.job import run_prep
from mcjepa.data_prep.settings import (
    CorpusConfig,
    DarkFilter,
    DatasetConfig,
    DuplicateFilter,
    FiltersConfig,
    LeakageFilter,
    PrepConfig,
)
from mcjepa.data_prep.storage import open_store
from mcjepa.data_prep.workers.ray_session import running_ray


@pytest.fixture(scope="module")
def ray_running() -> Iterator[None]:
    with running_ray("", 2):
        yield


def photo(seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).integers(0, 255, (8, 12, 3), np.uint8)
    return cv2.resize(noise, (192, 128), interpolation=cv2.INTER_CUBIC)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Four different photos; a copy of the first and a smaller, re-encoded version of the second come later."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(4):
        write_png(folder / f"{number}.png", photo(number))
    shutil.copy(folder / "0.png", folder / "8-copy.png")
    small = cv2.resize(photo(1), (96, 64), interpolation=cv2.INTER_AREA)
    cv2.imwrite(str(folder / "9-small.jpg"), small[:, :, ::-1])
    return folder


def job(root: Path, folder: Path, filters: FiltersConfig, a_shard: int = 2) -> PrepConfig:
    corpora = (CorpusConfig(reader="images", path=str(folder)),)
    dataset = DatasetConfig(
        kind="image", corpora=corpora, short_side=64, inputs_per_shard=a_shard, filters=filters, order="listed"
    )
    return PrepConfig(root=str(root), datasets={"photos": dataset}, workers=2)


def outcomes(place: Path) -> dict[str, tuple[str, str]]:
    return {r.name.partition("/")[2]: (r.outcome, r.reason) for r in read_inputs(open_store(str(place)))}


def test_copies_and_lookalikes_are_dropped_and_the_dataset_is_that_of_the_others(
    ray_running, photos: Path, tmp_path: Path
) -> None:
    filters = FiltersConfig(duplicates=DuplicateFilter(mode="drop"))
    report = run_prep(job(tmp_path / "d", photos, filters)).datasets[0]
    assert (report.totals.ok, report.totals.filtered, report.totals.samples) == (4, 2, 4)
    place = tmp_path / "d" / "photos"
    found = outcomes(place)
    assert found["8-copy.png"] == ("filtered", "exact duplicate of 0-images/0.png")
    assert found["9-small.jpg"] == ("filtered", "near duplicate of 0-images/1.png")
    assert audit_dataset(str(place)).ok
    whole = read_manifest(str(place)).dataset_id
    # one worker, other shards first: the same; interrupted between shard and sidecar of the thinned one: the same
    (place / "manifest.json").unlink()
    store = open_store(str(place))
    with (tmp_path / "half.tar").open("w+b") as file:
        ShardWriter(file).finish()
    store.write_file("shards/image-000002.tar", tmp_path / "half.tar")
    assert run_prep(job(tmp_path / "d", photos, filters)).datasets[0].dataset_id == whole
    assert audit_dataset(str(place)).ok


def test_a_shard_that_disagrees_with_its_sidecar_is_not_thinned(ray_running, photos: Path, tmp_path: Path) -> None:
    filters = FiltersConfig(duplicates=DuplicateFilter(mode="score"))
    run_prep(job(tmp_path / "d", photos, filters))
    place = tmp_path / "d" / "photos"
    (place / "shards" / "image-000000.tar").write_bytes(b"half")
    assert thin_shard(str(place), Thinning("image-000000", (("0-images/0.png", "x"),))) is False
    assert not (place / "shards" / "image-000000.json").exists()


def test_scored_duplicates_are_listed_and_kept(ray_running, photos: Path, tmp_path: Path) -> None:
    filters = FiltersConfig(duplicates=DuplicateFilter(mode="score"))
    report = run_prep(job(tmp_path / "d", photos, filters)).datasets[0]
    assert report.totals.ok == 6
    lines = gzip.decompress((tmp_path / "d" / "photos" / "duplicates.jsonl.gz").read_bytes()).splitlines()
    listed = {json.loads(line)["input"]: json.loads(line) for line in lines}
    assert set(listed) == {"0-images/8-copy.png", "0-images/9-small.jpg"}
    assert listed["0-images/8-copy.png"]["kind"] == "exact"


def test_evaluation_frames_are_refused_and_listed(ray_running, photos: Path, tmp_path: Path) -> None:
    guarded = tmp_path / "evaluation"
    guarded.mkdir()
    write_png(guarded / "secret.png", photo(2))
    leakage = LeakageFilter(mode="drop", sets=(CorpusConfig(reader="images", path=str(guarded)),))
    report = run_prep(job(tmp_path / "d", photos, FiltersConfig(leakage=leakage), a_shard=1)).datasets[0]
    place = tmp_path / "d" / "photos"
    assert (report.totals.ok, report.totals.filtered, report.totals.dropped) == (5, 1, 1)
    assert outcomes(place)["2.png"][0] == "filtered"
    lines = [json.loads(x) for x in gzip.decompress((place / "dropped.jsonl.gz").read_bytes()).splitlines()]
    assert [(x["input"], x["filter"]) for x in lines] == [("0-images/2.png", "leakage")]
    assert "secret.png" in lines[0]["reason"] and audit_dataset(str(place)).ok
    # other evaluation frames are another plan
    write_png(guarded / "more.png", photo(77))
    with pytest.raises(PlanMismatch, match=r"another plan.*guarded_inputs"):
        run_prep(job(tmp_path / "d", photos, FiltersConfig(leakage=leakage), a_shard=1))


def test_dropped_samples_are_counted_and_scores_stored(ray_running, photos: Path, tmp_path: Path) -> None:
    write_png(photos / "black.png", np.zeros((64, 64, 3), np.uint8))
    report = run_prep(job(tmp_path / "d", photos, FiltersConfig(dark=DarkFilter(mode="drop")))).datasets[0]
    assert (report.totals.filtered, report.totals.dropped, report.totals.ok) == (1, 1, 6)
    assert outcomes(tmp_path / "d" / "photos")["black.png"] == ("filtered", "all 1 samples dropped: 1 dark")
