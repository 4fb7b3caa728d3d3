"""A requeue takes what is in a repaired tar or folder, by other settings and libraries where a video needs them."""

from __future__ import annotations

import shutil
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

from mcjepa.data_prep.corpora.image_files import write_png
from mcjepa.data_prep.dataset.audit import audit_dataset
from mcjepa.data_prep.dataset.inputs import InputRecord, read_inputs
from mcjepa.data_prep.dataset.manifest import read_manifest
from mcjepa.data_prep.errors import DataError, PlanMismatch
from mcjepa.data_prep.job import run_prep
from mcjepa.data_prep.plan.files import read_plan
from mcjepa.data_prep.requeue import RequeueReport, requeue
from mcjepa.data_prep.settings import CorpusConfig, DatasetConfig, PrepConfig
from mcjepa.data_prep.storage import open_store
from tests.data_prep.small_corpora import build_dataset, smooth_frames


def job(root: Path, dataset: DatasetConfig) -> PrepConfig:
    return PrepConfig(root=str(root), datasets={"d": dataset}, workers=1, workers_by="processes")


def records(report: RequeueReport) -> dict[str, InputRecord]:
    return {r.name: r for r in read_inputs(open_store(report.location), report.manifest.revision)}


def write_tar(path: Path, count: int) -> bytes:
    with tarfile.open(path, "w") as tar:
        for number in range(count):
            write_png(path.with_suffix(".png"), smooth_frames(number, 1, 40, 48)[0])
            tar.add(path.with_suffix(".png"), f"{number}.png")
    path.with_suffix(".png").unlink()
    return path.read_bytes()


def pretend_version(folder: Path, library: str, number: str) -> str:
    """A folder that makes Python find this version of a library."""
    found = folder / number / f"{library}-{number}.dist-info"
    found.mkdir(parents=True)
    (found / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {library}\nVersion: {number}\n")
    return str(found.parent)


def test_members_of_tars_that_were_torn_come_with_their_repair(tmp_path: Path) -> None:
    corpus = tmp_path / "tars"
    corpus.mkdir()
    whole = {name: write_tar(corpus / name, count) for name, count in (("a.tar", 3), ("b.tar", 4), ("c.tar", 2))}
    (corpus / "b.tar").write_bytes(whole["b.tar"][: len(whole["b.tar"]) // 3])  # in the second member or so
    (corpus / "c.tar").write_bytes(b"no tar" * 300)
    settings = DatasetConfig(
        kind="image", corpora=(CorpusConfig(reader="tars", path=str(corpus)),), short_side=32, inputs_per_shard=3
    )
    before = run_prep(job(tmp_path / "d", settings)).datasets[0]
    failed = {r.name.removeprefix("0-tars/") for r in before.rejected}
    assert {"b.tar", "c.tar"} <= failed and before.totals.ok < 9
    for name, content in whole.items():
        (corpus / name).write_bytes(content)
    assert run_prep(job(tmp_path / "d", settings)).datasets[0].dataset_id == before.dataset_id
    report = requeue(job(tmp_path / "d", settings))[0]
    found = records(report)
    ok = {f"0-tars/{name}/{n}.png" for name, count in (("a.tar", 3), ("b.tar", 4), ("c.tar", 2)) for n in range(count)}
    assert {name for name, record in found.items() if record.outcome == "ok"} == ok
    opened = {name: record.outcome for name, record in found.items() if name not in ok}
    assert opened == {"0-tars/b.tar": "filtered", "0-tars/c.tar": "filtered"}
    totals = report.manifest.totals
    assert (totals.ok, totals.filtered, totals.quarantined, totals.samples) == (9, 2, 0, 9)
    assert report.samples == 9 - before.totals.samples and audit_dataset(report.location).problems == ()
    assert report.manifest.parameters == read_manifest(report.location, 1).parameters
    assert requeue(job(tmp_path / "d", settings))[0].retried == 0
    again = run_prep(job(tmp_path / "d", settings)).datasets[0]
    assert again.dataset_id == report.manifest.dataset_id
    write_png(corpus / "0.png", smooth_frames(7, 1, 48, 40)[0])
    with tarfile.open(corpus / "c.tar", "w") as tar:
        tar.add(corpus / "0.png", "0.png")
    (corpus / "0.png").unlink()
    with pytest.raises(PlanMismatch, match=r"c\.tar/0\.png had \d+ bytes when it was requeued"):
        run_prep(job(tmp_path / "d", settings))


def test_a_tar_of_which_only_the_end_was_lost_is_whole_again(tmp_path: Path) -> None:
    """Nothing in it is new, but its last member."""
    corpus = tmp_path / "tars"
    corpus.mkdir()
    whole = write_tar(corpus / "a.tar", 3)
    end = len(whole.rstrip(b"\0"))
    (corpus / "a.tar").write_bytes(whole[: end - 9])
    settings = DatasetConfig(kind="image", corpora=(CorpusConfig(reader="tars", path=str(corpus)),), short_side=32)
    first = run_prep(job(tmp_path / "d", settings)).datasets[0]
    assert (first.totals.ok, first.totals.quarantined) == (2, 2)
    (corpus / "a.tar").write_bytes(whole)
    report = requeue(job(tmp_path / "d", settings))[0]
    assert (report.retried, report.saved, report.manifest.totals.ok) == (1, 2, 3)
    assert audit_dataset(report.location).ok
    assert run_prep(job(tmp_path / "d", settings)).datasets[0].dataset_id == report.manifest.dataset_id


def test_another_decoder_and_size_limit_may_save_a_video_and_are_written_down(
    videos: Path, clips_of, tmp_path: Path
) -> None:
    (videos / "x.mp4").write_bytes(b"")
    settings = clips_of(videos, max_megapixels=0.01)
    run_prep(job(tmp_path / "d", settings))
    shutil.copy(videos / "b.mp4", videos / "x.mp4")
    others = replace(settings, decoder="pyav", max_megapixels=1.0)
    report = requeue(job(tmp_path / "d", others))[0]
    assert (report.retried, report.saved, records(report)["0-videos/x.mp4"].decoder) == (1, 1, "pyav")
    (made,) = report.manifest.requeued_by
    assert made["parameters"] == {"decoder": "pyav", "max_megapixels": 1.0} and made["decoder"].startswith("av ")
    assert report.manifest.decoder.startswith("decord2 ") and audit_dataset(report.location).ok
    for recipe in (settings, others):
        assert run_prep(job(tmp_path / "d", recipe)).datasets[0].dataset_id == report.manifest.dataset_id
    with pytest.raises(PlanMismatch, match=r"decoder: decord -> pyav"):
        run_prep(job(tmp_path / "d", replace(settings, decoder="pyav")))
    with pytest.raises(DataError, match=r"other settings than the recipe's \(quality, short_side\)"):
        requeue(job(tmp_path / "d", replace(settings, quality=70, short_side=24)))


def test_shards_of_a_requeue_are_of_its_own_versions(
    videos: Path, clips_of, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (videos / "x.mp4").write_bytes(b"")
    settings = clips_of(videos)
    run_prep(job(tmp_path / "d", settings))
    shutil.copytree(tmp_path / "d", tmp_path / "other")
    shutil.copy(videos / "a.mp4", videos / "x.mp4")
    same = requeue(job(tmp_path / "d", settings))[0].manifest
    monkeypatch.syspath_prepend(pretend_version(tmp_path, "simplejpeg", "99.0"))
    other = requeue(job(tmp_path / "other", settings))[0].manifest
    assert "simplejpeg 99.0" in other.requeued_by[0]["encoder"] and "99.0" not in other.encoder
    assert same.dataset_id == other.dataset_id and same.requeue_digests != other.requeue_digests
    assert same.requeued_by[0]["encoder"] == same.encoder == other.encoder


def test_a_begun_dataset_is_not_gone_on_with_by_other_libraries(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = DatasetConfig(kind="image", corpora=(CorpusConfig(reader="images", path=str(images)),), short_side=32)
    manifest, _ = build_dataset(tmp_path / "d" / "d", settings)
    store = open_store(str(tmp_path / "d" / "d"))
    digest = read_plan(store).plan_digest
    assert manifest.libraries == read_plan(store).libraries and manifest.libraries["pillow"].count("littlecms2 ") == 1
    monkeypatch.syspath_prepend(pretend_version(tmp_path, "pillow", "99.0"))
    kept = run_prep(job(tmp_path / "d", settings)).datasets[0]
    assert kept.dataset_id == manifest.dataset_id  # published: nothing depends on them any more
    store.remove("manifest.json")
    with pytest.raises(PlanMismatch, match=r"begun with other libraries \(pillow: .* -> 99\.0 \("):
        run_prep(job(tmp_path / "d", settings))
    assert build_dataset(tmp_path / "new", settings)[0].plan_digest == digest  # they are in no digest
