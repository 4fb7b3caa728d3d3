"""Trying quarantined inputs again: additional shards, a new revision, nothing published touched; and status."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import webdataset

from mcjepa.data_prep.corpora.moving_photos.generate import write_mp4
from mcjepa.data_prep.dataset.audit import audit_dataset
from mcjepa.data_prep.dataset.inputs import read_inputs
from mcjepa.data_prep.dataset.manifest import read_manifest
from mcjepa.data_prep.dataset.status import read_status
from mcjepa.data_prep.errors import DataError
from mcjepa.data_prep.job import run_prep
from mcjepa.data_prep.requeue import requeue
from mcjepa.data_prep.settings import DatasetConfig, DuplicateFilter, FiltersConfig, PrepConfig
from mcjepa.data_prep.storage import open_store
from mcjepa.data_prep.workers.ray_session import running_ray


@pytest.fixture(scope="module")
def ray_running() -> Iterator[None]:
    with running_ray("", 2):
        yield


def job(root: Path, dataset: DatasetConfig) -> PrepConfig:
    return PrepConfig(root=str(root), datasets={"clips": dataset}, workers=2)


def tree(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def test_repaired_inputs_become_additional_shards_of_a_new_revision(
    ray_running, videos, clips_of, add_bad_videos, tmp_path
) -> None:
    add_bad_videos(videos)
    config = job(tmp_path / "d", clips_of(videos))
    run_prep(config)
    place = tmp_path / "d" / "clips"
    before, first = tree(place), read_manifest(str(place))
    shutil.copy(videos / "b.mp4", videos / "empty.mp4")
    report = requeue(config)[0]
    assert (report.retried, report.saved, report.samples) == (4, 1, 8)
    newest = read_manifest(str(place))
    assert (newest.revision, newest.parent) == (2, first.dataset_id) and newest == report.manifest
    assert newest.shards[: len(first.shards)] == first.shards and len(newest.shards) == len(first.shards) + 1
    assert (newest.totals.ok, newest.totals.quarantined, newest.totals.inputs) == (4, 3, 7)
    after = tree(place)
    assert {name: after[name] for name in before} == before
    assert read_manifest(str(place), revision=1) == first
    assert audit_dataset(str(place)).ok
    record = next(r for r in read_inputs(open_store(str(place)), 2) if r.name == "0-videos/empty.mp4")
    assert (record.outcome, record.samples) == ("ok", 8) and record.shard == newest.shards[-1].name
    urls = [str(place / "shards" / f"{shard.name}.tar") for shard in newest.shards]
    assert len(list(webdataset.WebDataset(urls, shardshuffle=False))) == newest.totals.samples == 24 + 8
    # once more: nothing to gain, nothing changes; and a rerun of the job leaves all as it is
    again = requeue(config)[0]
    assert (again.retried, again.saved, again.manifest) == (3, 0, newest)
    shutil.copy(videos / "a.mp4", videos / "text.mp4")
    third = requeue(config, reason="NO SUCH REASON")[0]
    assert third.retried == 0
    assert requeue(config)[0].manifest.revision == 3 and audit_dataset(str(place)).ok


def test_only_inputs_with_the_reason_are_tried_again(ray_running, videos, clips_of, add_bad_videos, tmp_path) -> None:
    add_bad_videos(videos)
    config = job(tmp_path / "d", clips_of(videos))
    run_prep(config)
    for name in ("empty.mp4", "photo.mp4"):
        shutil.copy(videos / "a.mp4", videos / name)
    report = requeue(config, reason="is empty")[0]
    assert (report.retried, report.saved) == (1, 1)
    outcomes = {r.name: r.outcome for r in read_inputs(open_store(report.location), 2)}
    assert outcomes["0-videos/empty.mp4"] == "ok" and outcomes["0-videos/photo.mp4"] == "quarantined"


def test_other_settings_and_unpublished_datasets_are_refused(ray_running, videos, clips_of, tmp_path) -> None:
    with pytest.raises(DataError, match="expected a published dataset"):
        requeue(job(tmp_path / "d", clips_of(videos)))
    run_prep(job(tmp_path / "d", clips_of(videos)))
    with pytest.raises(DataError, match="published with other settings"):
        requeue(job(tmp_path / "d", clips_of(videos, quality=70)))


def test_status_of_nothing_of_an_interrupted_and_of_a_published_dataset(
    ray_running, videos, clips_of, add_bad_videos, tmp_path
) -> None:
    add_bad_videos(videos)
    config = job(tmp_path / "d", clips_of(videos, inputs_per_shard=1))
    place = tmp_path / "d" / "clips"
    assert read_status(str(place)).state == "nothing"
    run_prep(config)
    published = read_status(str(place))
    assert (published.state, published.totals.inputs, published.totals.ok, published.totals.quarantined) == (
        "published",
        7,
        3,
        4,
    )
    assert published.dataset_id == read_manifest(str(place)).dataset_id and published.revision == 1
    (place / "manifest.json").unlink()
    (place / "shards" / "clip-000000.json").unlink()
    status = read_status(str(place))
    assert (status.state, status.shards_done, status.shards, status.totals.inputs) == ("interrupted", 6, 7, 6)
    assert status.totals.quarantined == 4 and any("empty" in why for _, why in status.reasons) and status.writer is None


def test_five_requeues_with_changing_faults_tell_the_truth(ray_running, videos, clips_of, tmp_path) -> None:
    """What failed is tried anew every time: with another time-out, and for other bytes of the same size."""
    good = (videos / "a.mp4").read_bytes()
    broken = good[:200] + bytes(len(good) - 200)
    for name in ("x.mp4", "y.mp4", "z.mp4"):
        (videos / name).write_bytes(broken)
    settings = clips_of(videos)
    run_prep(job(tmp_path / "d", settings))
    location = str(tmp_path / "d" / "clips")

    def again(**changes: object) -> tuple[int, int, int]:
        report = requeue(job(tmp_path / "d", replace(settings, **changes)))[0]  # type: ignore[arg-type]
        assert audit_dataset(location).ok
        run_prep(job(tmp_path / "d", settings))  # an idempotent step stays one
        return report.retried, report.saved, report.manifest.revision

    assert again() == (3, 0, 1)
    assert again(timeout_s=9.0, memory_cap_mib=2048) == (3, 0, 1)
    (videos / "x.mp4").write_bytes(good)  # the same size as before
    assert again() == (3, 1, 2)
    (videos / "y.mp4").write_bytes(broken[:-50])  # another size, still broken
    assert again() == (2, 0, 2)
    (videos / "y.mp4").write_bytes((videos / "b.mp4").read_bytes())
    assert again() == (2, 1, 3)
    (videos / "y.mp4").write_bytes(good)  # what a requeue has taken must not change
    with pytest.raises(DataError, match=r"another plan .*y\.mp4"):
        run_prep(job(tmp_path / "d", settings))


def test_a_requeue_drops_copies_of_what_is_published(ray_running, videos, clips_of, tmp_path) -> None:
    (videos / "x.mp4").write_bytes(b"")
    (videos / "y.mp4").write_bytes(b"")
    settings = clips_of(videos, filters=FiltersConfig(duplicates=DuplicateFilter(mode="drop")))
    run_prep(job(tmp_path / "d", settings))
    place = tmp_path / "d" / "clips"
    before = read_manifest(str(place))
    shutil.copy(videos / "a.mp4", videos / "x.mp4")
    write_mp4(videos / "y.mp4", np.random.default_rng(5).integers(0, 255, (6, 64, 96, 3), np.uint8), 10, 20)
    report = requeue(job(tmp_path / "d", settings))[0]
    assert (report.retried, report.saved) == (2, 2) and audit_dataset(str(place)).ok
    records = {r.name: r for r in read_inputs(open_store(str(place)), 2)}
    copy, fresh = records["0-videos/x.mp4"], records["0-videos/y.mp4"]
    assert (copy.outcome, copy.reason, copy.samples) == ("filtered", "exact duplicate of 0-videos/a.mp4", 0)
    assert (fresh.outcome, fresh.samples) == ("ok", 5)
    assert report.manifest.totals.samples == before.totals.samples + 5
    assert run_prep(job(tmp_path / "d", settings)).datasets[0].dataset_id == report.manifest.dataset_id
