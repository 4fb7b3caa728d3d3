"""Building datasets: conservation, the same bytes on every run, resume, refusal, and the audit."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import webdataset

from mcjepa.data_prep.corpora.census import Census
from mcjepa.data_prep.corpora.image_files import decode_rgb
from mcjepa.data_prep.dataset.audit import audit_dataset
from mcjepa.data_prep.dataset.inputs import read_inputs
from mcjepa.data_prep.dataset.manifest import read_manifest, read_sidecar
from mcjepa.data_prep.decode.messages import DecodeFailure
from mcjepa.data_prep.errors import DataError, PlanMismatch
from mcjepa.data_prep.plan.files import begin_plan
from mcjepa.data_prep.plan.listing import list_inputs
from mcjepa.data_prep.plan.plan import ShardPlan, split_into_shards
from mcjepa.data_prep.settings import CorpusConfig, DatasetConfig
from mcjepa.data_prep.storage import open_store
from mcjepa.data_prep.workers.shard_maker import ShardMaker, ShardWork, content_digest


def tree(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def samples_of(root: Path) -> list[dict]:
    urls = [str(p) for p in sorted((root / "shards").glob("*.tar"))]
    return list(webdataset.WebDataset(urls, shardshuffle=False, empty_check=False))


def test_clips_are_read_by_webdataset_with_frames_and_times(published) -> None:
    manifest = read_manifest(str(published))
    samples = samples_of(published)
    assert len(samples) == manifest.totals.samples == 5 + 8 + 11
    assert len({s["__key__"] for s in samples}) == 24
    for sample in samples:
        meta = json.loads(sample["json"])
        assert set(meta) == {"fps_hz", "pts_s", "frame_index", "input"}
        assert meta["frame_index"][1] == meta["frame_index"][0] + 1
        assert decode_rgb(sample["00.jpg"], "0").shape == decode_rgb(sample["01.jpg"], "1").shape == (32, 48, 3)
    assert json.loads(samples[-1]["json"])["input"] == "0-videos/deep/c.MP4"


def test_images_are_one_jpg_a_sample(images, build, tmp_path) -> None:
    config = DatasetConfig(kind="image", corpora=(CorpusConfig(reader="images", path=str(images)),))
    build(tmp_path / "d", config)
    samples = samples_of(tmp_path / "d")
    assert len(samples) == 5 and all({"jpg", "json"} <= set(s) for s in samples)


def test_bad_inputs_are_quarantined_whole_and_counted(videos, clips_of, build, add_bad_videos, tmp_path) -> None:
    good, _ = build(tmp_path / "good", clips_of(videos, inputs_per_shard=100))
    bad = add_bad_videos(videos)
    manifest, _ = build(tmp_path / "d", clips_of(videos, inputs_per_shard=100))
    totals = manifest.totals
    assert (totals.inputs, totals.ok, totals.quarantined) == (7, 3, 4)
    records = list(read_inputs(open_store(str(tmp_path / "d"))))
    assert {Path(r.uri).name for r in records if r.outcome == "quarantined"} == bad
    assert all(r.reason for r in records if r.outcome != "ok")
    # no trace of them in the shard: it is the one that the good inputs alone give
    assert manifest.dataset_id == good.dataset_id


def test_the_same_inputs_elsewhere_give_the_same_dataset(videos, clips_of, build, tmp_path) -> None:
    first, _ = build(tmp_path / "one", clips_of(videos))
    moved = tmp_path / "elsewhere"
    videos.rename(moved)
    second, _ = build(tmp_path / "two", clips_of(moved))
    assert first == second
    one, two = tree(tmp_path / "one"), tree(tmp_path / "two")
    assert {k for k in one if k.endswith(".tar")} == {k for k in two if k.endswith(".tar")}
    assert all(one[k] == two[k] for k in one if k.endswith(".tar"))


def test_a_rerun_writes_the_same_bytes_in_every_file(videos, clips_of, build, add_bad_videos, tmp_path) -> None:
    add_bad_videos(videos)
    build(tmp_path / "one", clips_of(videos))
    build(tmp_path / "two", clips_of(videos))
    assert tree(tmp_path / "one") == tree(tmp_path / "two")


def test_resuming_keeps_finished_shards_and_ends_with_the_same_bytes(videos, clips_of, build, tmp_path) -> None:
    config = clips_of(videos, inputs_per_shard=1)
    build(tmp_path / "whole", config)
    part = tmp_path / "part"
    store = open_store(str(part))
    census = Census()
    plan = begin_plan(store, config, list_inputs(config, census), census=census)
    maker = ShardMaker(ShardWork(str(part), config, plan.plan_digest))
    maker.make(next(split_into_shards(list_inputs(config), config)))
    maker.close()
    # a shard without its sidecar, and the litter of a killed process, are no finished shards
    (part / "shards" / "clip-000001.tar").write_bytes(b"half")
    (store.scratch() / "clip-000002.99.partial").write_bytes(b"half")
    _, results = build(part, config)
    assert [r.reused for r in results] == [True, False, False]
    assert tree(part) == tree(tmp_path / "whole")


def test_a_shard_of_another_length_or_plan_is_made_again(videos, clips_of, build, tmp_path) -> None:
    config = clips_of(videos, inputs_per_shard=1)
    build(tmp_path / "d", config)
    intact = tree(tmp_path / "d")
    (tmp_path / "d" / "manifest.json").unlink()
    (tmp_path / "d/shards/clip-000000.tar").write_bytes(b"cut")
    path = tmp_path / "d/shards/clip-000001.json"
    path.write_text(path.read_text().replace('"plan_digest":"', '"plan_digest":"0'))
    _, results = build(tmp_path / "d", config)
    assert [r.reused for r in results] == [False, False, True]
    assert tree(tmp_path / "d") == intact


def test_other_inputs_or_parameters_are_refused_by_name(videos, clips_of, build, tmp_path) -> None:
    build(tmp_path / "d", clips_of(videos))
    before = tree(tmp_path / "d")
    with pytest.raises(PlanMismatch, match=r"published with another plan \(quality: 95 -> 80\)"):
        build(tmp_path / "d", clips_of(videos, quality=80))
    (videos / "a0.mp4").write_bytes(b"new")
    with pytest.raises(PlanMismatch, match=r"number of inputs: 3 -> 4; input 2 was 0-videos/b.mp4, now is .*a0.mp4"):
        build(tmp_path / "d", clips_of(videos))
    assert tree(tmp_path / "d") == before


def test_when_every_input_fails_nothing_is_left_and_better_inputs_succeed(
    clips_of, build, add_bad_videos, videos, tmp_path
) -> None:
    bad = tmp_path / "bad"
    bad.mkdir()
    (bad / "a.mp4").write_text("no video at all")
    with pytest.raises(DataError, match=r"none of 1 inputs.*1 quarantined.*a\.mp4.*nothing was published"):
        build(tmp_path / "d", clips_of(bad))
    assert not list((tmp_path / "d").rglob("*.json"))
    manifest, _ = build(tmp_path / "d", clips_of(videos))
    assert manifest.totals.ok == 3


def test_shards_without_samples_keep_their_number_but_are_not_listed(videos, clips_of, build, tmp_path) -> None:
    (videos / "a.mp4").write_bytes(b"")
    manifest, _ = build(tmp_path / "d", clips_of(videos, inputs_per_shard=1))
    assert [s.name for s in manifest.shards] == ["clip-000001", "clip-000002"]
    assert read_sidecar(str(tmp_path / "d"), "clip-000000").samples == ()
    assert len(samples_of(tmp_path / "d")) == manifest.totals.samples
    assert audit_dataset(str(tmp_path / "d")).ok


def test_a_repeated_corpus_has_its_samples_again_under_other_keys(videos, build, tmp_path) -> None:
    corpus = CorpusConfig(reader="videos", path=str(videos), repeat=2)
    manifest, _ = build(tmp_path / "d", DatasetConfig(kind="clip", corpora=(corpus,), clip_stride=1))
    samples = samples_of(tmp_path / "d")
    assert manifest.totals.inputs == 6 and len({s["__key__"] for s in samples}) == len(samples) == 48


def test_a_full_disk_stops_with_one_clear_error(videos, clips_of, tmp_path) -> None:
    config = clips_of(videos)
    store = open_store(str(tmp_path / "d"))
    census = Census()
    plan = begin_plan(store, config, list_inputs(config, census), census=census)
    (store.scratch() / f"clip-000000.{os.getpid()}.partial").symlink_to("/dev/full")
    maker = ShardMaker(ShardWork(str(tmp_path / "d"), config, plan.plan_digest))
    with pytest.raises(DataError, match="no space left"):
        maker.make(next(split_into_shards(list_inputs(config), config)))
    maker.close()
    assert not list(store.list("shards/"))


def begun(root: Path, config: DatasetConfig) -> tuple[ShardMaker, list[ShardPlan]]:
    """A maker of a planned dataset, and its shards."""
    store, census = open_store(str(root)), Census()
    plan = begin_plan(store, config, list_inputs(config, census), census=census)
    return ShardMaker(ShardWork(str(root), config, plan.plan_digest)), list(
        split_into_shards(list_inputs(config), config)
    )


def test_an_input_that_changed_since_it_was_listed_is_quarantined(videos, clips_of, tmp_path) -> None:
    maker, shards = begun(tmp_path / "d", clips_of(videos, inputs_per_shard=3))
    size = (videos / "a.mp4").stat().st_size
    now = (videos / "a.mp4").write_bytes((videos / "b.mp4").read_bytes())
    maker.make(shards[0])
    maker.close()
    outcomes = [(r["outcome"], r["reason"]) for r in read_sidecar(str(tmp_path / "d"), shards[0].name).inputs]
    reason = f"changed since it was listed: {size} bytes then, {now} now"
    assert outcomes == [("quarantined", reason), ("ok", ""), ("ok", "")]


def test_a_corpus_that_is_away_ends_the_job_which_can_be_run_again(videos, clips_of, tmp_path) -> None:
    maker, shards = begun(tmp_path / "d", clips_of(videos))
    videos.rename(tmp_path / "elsewhere")
    for _ in range(2):  # absent, then the empty folder that an unmount leaves
        with pytest.raises(DataError, match=r"absent or empty now; expected the corpus that was planned"):
            maker.make(shards[0])
        videos.mkdir(exist_ok=True)
    assert not list((tmp_path / "d/shards").glob("*"))
    videos.rmdir()
    (tmp_path / "elsewhere").rename(videos)
    (videos / "a.mp4").unlink()  # an input that is away alone fails alone
    assert [maker.make(shard).samples for shard in shards] == [8, 11]
    maker.close()


def test_what_is_not_the_files_fault_is_no_fault_of_the_input(tmp_path) -> None:
    with pytest.raises(DecodeFailure, match="No such file"):
        content_digest((str(tmp_path / "absent"),))
    with pytest.raises(DataError, match="its disk or file server"):
        content_digest(("/proc/self/mem",))  # page 0 cannot be read: EIO
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    (tmp_path / "file").write_bytes(b"content")
    next_free = os.dup(0)
    os.close(next_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (next_free, hard))
    try:
        with pytest.raises(DataError, match="ulimit -n"):
            content_digest((str(tmp_path / "file"),))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_dataset_in_s3_is_the_same_as_in_a_folder(videos, clips_of, build, s3: str, tmp_path) -> None:
    local, _ = build(tmp_path / "d", clips_of(videos))
    remote, _ = build(s3, clips_of(videos))
    assert remote == local == read_manifest(s3)
    assert audit_dataset(s3).ok
    names = set(open_store(s3).list(""))
    assert names == set(tree(tmp_path / "d"))


def test_an_intact_dataset_passes_its_audit(published) -> None:
    manifest = read_manifest(str(published))
    report = audit_dataset(str(published))
    assert report.ok and report.dataset_id == manifest.dataset_id
    assert (report.shards, report.samples, report.bytes) == (2, 24, manifest.totals.bytes)


def flip_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def flip_header(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[3] ^= 1
    path.write_bytes(bytes(data))


def cut_end(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-2048])


def cut_tail(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


@pytest.mark.parametrize(
    ("name", "damage", "problem"),
    [
        ("shards/clip-000000.tar", flip_byte, "has digest"),
        ("shards/clip-000000.tar", flip_header, "the header at byte 0 is not that of"),
        ("shards/clip-000000.tar", cut_end, "bytes, the manifest says"),
        ("shards/clip-000001.tar", Path.unlink, r"has no shards/clip-000001\.tar"),
        ("shards/clip-000001.json", Path.unlink, r"has no shards/clip-000001\.json"),
        ("inputs.jsonl.gz", cut_tail, "is damaged"),
        ("inputs.jsonl.gz", Path.unlink, "has no inputs"),
    ],
)
def test_the_audit_names_what_is_damaged(
    published, tmp_path, name: str, damage: Callable[[Path], None], problem: str
) -> None:
    shutil.copytree(published, tmp_path / "d")
    damage(tmp_path / "d" / name)
    report = audit_dataset(str(tmp_path / "d"))
    assert not report.ok
    assert any(re.search(problem, found) for found in report.problems), report.problems


def test_the_audit_proves_conservation(published, tmp_path) -> None:
    shutil.copytree(published, tmp_path / "d")
    path = tmp_path / "d" / "manifest.json"
    content = json.loads(path.read_text())
    content["totals"]["quarantined"] += 1
    path.write_text(json.dumps(content))
    assert any("outcomes" in p for p in audit_dataset(str(tmp_path / "d")).problems)


def test_an_unpublished_dataset_cannot_be_audited(tmp_path) -> None:
    with pytest.raises(DataError, match="mcjepa prep run"):
        audit_dataset(str(tmp_path))


def test_settings_of_the_decoder_do_not_change_the_plan(videos, clips_of, build, tmp_path) -> None:
    config = clips_of(videos)
    build(tmp_path / "d", config)
    _, results = build(tmp_path / "d", replace(config, timeout_s=5.0))
    assert all(r.reused for r in results)


def test_an_unknown_reader_is_refused_with_the_nearest_name(tmp_path) -> None:
    config = DatasetConfig(kind="clip", corpora=(CorpusConfig(reader="vidoes", path="x"),))
    with pytest.raises(DataError, match="did you mean 'videos'"):
        list(list_inputs(config))
