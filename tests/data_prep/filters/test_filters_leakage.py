"""Evaluation frames are recognised after they were shrunk and encoded again; other pictures are not taken for them."""

from __future__ import annotations

import gzip
import time
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from mcjepa.data_prep.corpora.image_files import decode_rgb, read_rgb, write_png
from mcjepa.data_prep.corpora.items import Input
from mcjepa.data_prep.corpora.moving_photos.generate import write_mp4
from mcjepa.data_prep.decode.cutter import DroppedSample, cut_input
from mcjepa.data_prep.decode.encoders import encode, shrink
from mcjepa.data_prep.errors import DataError
from mcjepa.data_prep.filters.judge import SampleJudge
from mcjepa.data_prep.filters.leakage import LeakageIndex
from mcjepa.data_prep.filters.phash import bit_distances, frame_hash
from mcjepa.data_prep.settings import CorpusConfig, DatasetConfig, FiltersConfig, LeakageFilter
from mcjepa.data_prep.workers.leakage_index import fingerprint_input

MAX_BITS = LeakageFilter().max_bits
CONFIG = DatasetConfig(kind="clip", corpora=(CorpusConfig(reader="videos", path="unused"),))


def textured(seed: int, height: int = 64, width: int = 96) -> np.ndarray:
    noise = np.random.default_rng(seed).integers(0, 256, (8, 12, 3), np.uint8)
    return cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)


def frames_input(folder: Path) -> Input:
    return Input(folder.name, str(folder), "frames", tuple(sorted(p.name for p in folder.iterdir())))


def evaluation_inputs(sample_data: Path) -> list[Input]:
    """Some Sintel, DAVIS and CamVid frames, as their archives have them."""
    sintel = sample_data / "flow/MPI-Sintel-complete/training"
    davis = sample_data / "davis/DAVIS/JPEGImages/480p"
    camvid = sample_data / "camvid/CamVid/train"
    scenes = [frames_input(f) for part in ("clean", "final") for f in sorted((sintel / part).iterdir())]
    videos = [frames_input(f) for f in sorted(davis.iterdir())]
    thinned = [Input(v.name, v.uri, "frames", v.members[::10]) for v in videos]
    images = [Input(p.name, str(p), "image") for p in sorted(camvid.iterdir())[::3]]
    return scenes + thinned + images


def test_every_evaluation_frame_matches_itself_as_a_training_set_stores_it(sample_data: Path) -> None:
    inputs = evaluation_inputs(sample_data)
    frames = [entry for item in inputs for entry in fingerprint_input(item, CONFIG)]
    paths = [path for item in inputs for path in item.files]
    assert len(frames) == len(paths) > 60  # none is flat
    index = LeakageIndex.build(frames)
    originals = dict(index.lines())
    for (_, value), path in zip(frames, paths, strict=True):
        stored = decode_rgb(encode(shrink(read_rgb(Path(path)), 256), "jpeg", 95), path)
        again = frame_hash(stored)
        assert again is not None
        assert bit_distances(np.array([value], np.uint64), again)[0] <= 2
        match = index.match(again, MAX_BITS)
        assert match is not None
        assert bit_distances(np.array([originals[match]], np.uint64), value)[0] <= 2 * MAX_BITS


def test_photos_of_other_sets_match_no_evaluation_frame(sample_data: Path) -> None:
    index = LeakageIndex.build(f for item in evaluation_inputs(sample_data) for f in fingerprint_input(item, CONFIG))
    photos = sorted((sample_data / "imagenet/train").glob("*/*.JPEG"))[::5]
    assert len(photos) >= 50
    hashes = [frame_hash(shrink(read_rgb(p), 256)) for p in photos]
    guarded = np.array([value for _, value in index.lines()], np.uint64)
    assert min(int(bit_distances(guarded, h).min()) for h in hashes if h is not None) >= 3 * MAX_BITS


def test_the_nearest_frame_is_named_and_the_first_of_equals() -> None:
    index = LeakageIndex.build([("far", 0b111100), ("near", 0b000001), ("as near", 0b000010), ("same", 0b000001)])
    assert index.match(0b000000, 4) == "near"
    assert index.match(0b000010, 4) == "as near"
    assert index.match(0xFFFF0000, 4) is None
    assert len(index) == 3
    assert LeakageIndex.build([]).match(0, 15) is None


def test_a_saved_index_is_the_same_again_and_always_has_the_same_bytes(tmp_path: Path) -> None:
    index = LeakageIndex.build([("b/ü#1", 2**64 - 1), ("a", 0), ("odd \udcff name", 5)])
    index.save(tmp_path / "one")
    index.save(tmp_path / "two")
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    assert LeakageIndex.load(tmp_path / "one").lines() == index.lines()


@pytest.mark.parametrize(
    "lines", ['{"name":"a"}', '["a",1]', '{"name":"a","hash":"x"}', '{"name":"a","hash":"1%s"}' % ("0" * 16)]
)
def test_a_malformed_index_is_refused(tmp_path: Path, lines: str) -> None:
    (tmp_path / "index").write_bytes(gzip.compress(lines.encode()))
    with pytest.raises(DataError, match="malformed"):
        LeakageIndex.load(tmp_path / "index")


def test_a_damaged_index_is_refused(tmp_path: Path) -> None:
    (tmp_path / "index").write_bytes(b"\x1f\x8b not gzip")
    with pytest.raises(DataError, match="damaged"):
        LeakageIndex.load(tmp_path / "index")


def test_a_frame_is_looked_up_among_200_000_in_two_milliseconds() -> None:
    hashes = np.random.default_rng(0).integers(0, 2**64, 200_000, dtype=np.uint64)
    index = LeakageIndex([str(n) for n in range(len(hashes))], hashes)
    took = []
    for number in range(30):
        started = time.perf_counter()
        assert index.match(int(hashes[number]) ^ 0b101, MAX_BITS) == str(number)
        took.append(time.perf_counter() - started)
    assert min(took) < 0.002


def test_every_kind_of_input_is_fingerprinted_by_frame(tmp_path: Path) -> None:
    write_png(tmp_path / "a.png", textured(0))
    write_png(tmp_path / "b.png", textured(1))
    (tmp_path / "flow.flo").write_bytes(b"never read")
    write_mp4(tmp_path / "v.mp4", np.stack([textured(2), textured(3)]), 10, 20)
    image = Input("x/a.png", str(tmp_path / "a.png"), "image")
    frames = Input("x", str(tmp_path), "frames", ("a.png", "b.png"))
    pair = Input("p", str(tmp_path), "pair", ("a.png", "b.png", "flow.flo"), ("frame0", "frame1", "flow"))
    video = Input("v.mp4", str(tmp_path / "v.mp4"), "video")
    names = [[name for name, _ in fingerprint_input(item, CONFIG)] for item in (image, frames, pair, video)]
    assert names == [["x/a.png"], ["x#a.png", "x#b.png"], ["p#frame0", "p#frame1"], ["v.mp4#0", "v.mp4#1"]]


def test_a_video_that_stays_planes_is_known_by_the_frames_of_its_rgb(tmp_path: Path) -> None:
    write_mp4(tmp_path / "v.mp4", np.stack([textured(2, 288, 384), textured(3, 288, 384)]), 10, 20)
    video = Input("v.mp4", str(tmp_path / "v.mp4"), "video")
    planes = replace(CONFIG, decoder="pyav-planes")
    guarded = LeakageIndex.build(fingerprint_input(video, CONFIG))
    assert [guarded.match(value, 2) for _, value in fingerprint_input(video, planes)] == ["v.mp4#0", "v.mp4#1"]
    leakage = FiltersConfig(leakage=LeakageFilter(mode="drop", sets=CONFIG.corpora))
    (dropped,) = cut_input(video, replace(planes, filters=leakage), SampleJudge(leakage, guarded))
    assert isinstance(dropped, DroppedSample) and dropped.filter == "leakage"


def test_flat_frames_are_left_out(tmp_path: Path) -> None:
    write_png(tmp_path / "flat.png", np.full((64, 96, 3), 77, np.uint8))
    assert list(fingerprint_input(Input("flat", str(tmp_path / "flat.png"), "image"), CONFIG)) == []
