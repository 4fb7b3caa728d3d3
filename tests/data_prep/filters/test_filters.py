"""What the filters measure: on frames made here with known cuts, motion, bars and darkness, and on real ones."""

from __future__ import annotations

import re
from pathlib import Path

import cv2
import numpy as np
import pytest

from mcjepa.data_prep.corpora.image_files import decode_rgb, read_rgb
from mcjepa.data_prep.decode.encoders import encode, shrink
from mcjepa.data_prep.filters import judge as judge_module
from mcjepa.data_prep.filters.cuts import content_score
from mcjepa.data_prep.filters.judge import SampleJudge, Verdict
from mcjepa.data_prep.filters.leakage import LeakageIndex
from mcjepa.data_prep.filters.measures import border_fraction, flow_length_px
from mcjepa.data_prep.filters.phash import frame_hash, hash_to_hex
from mcjepa.data_prep.settings import (
    BorderFilter,
    CorpusConfig,
    CutFilter,
    DarkFilter,
    DuplicateFilter,
    FilterMode,
    FiltersConfig,
    LeakageFilter,
    MotionFilter,
)


def textured(seed: int, height: int = 120, width: int = 200) -> np.ndarray:
    noise = np.random.default_rng(seed).integers(20, 236, (height // 8 + 2, width // 8 + 2, 3), np.uint8)
    return cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)


def moving(seed: int, frames: int, px: float) -> list[np.ndarray]:
    wide = textured(seed, width=600)
    return [np.ascontiguousarray(wide[:, round(k * px) :][:, :200]) for k in range(frames)]


def all_filters(mode: FilterMode) -> FiltersConfig:
    return FiltersConfig(
        cut=CutFilter(mode=mode),
        motion=MotionFilter(mode=mode),
        border=BorderFilter(mode=mode),
        dark=DarkFilter(mode=mode),
        duplicates=DuplicateFilter(mode=mode),
        leakage=LeakageFilter(mode=mode, sets=(CorpusConfig(reader="images", path="unused"),)),
    )


def judged(frames: list[np.ndarray], mode: FilterMode = "drop", guarded: list[np.ndarray] | None = None) -> Verdict:
    hashes = [(f"guarded#{n}", frame_hash(f)) for n, f in enumerate(guarded or [])]
    index = LeakageIndex.build((name, value) for name, value in hashes if value is not None)
    return SampleJudge(all_filters(mode), index).judge(range(len(frames)), frames)


def test_a_clip_without_faults_is_kept_with_all_its_scores() -> None:
    verdict = judged(moving(0, 3, px=2))
    assert verdict.filter == verdict.reason == ""
    assert sorted(verdict.scores) == ["border", "cut", "luma", "motion_px", "phash"]
    assert verdict.scores["motion_px"] == pytest.approx(2, abs=0.2)
    assert verdict.scores["phash"] == hash_to_hex(frame_hash(moving(0, 1, px=2)[0]))


@pytest.mark.parametrize(
    ("name", "frames", "reason"),
    [
        ("cut", [textured(0), textured(1)], r"cut: content score \d+(\.\d+)? above 27"),
        ("static", [textured(0)] * 2, r"static: mean flow 0 px below 0\.05"),
        ("dark", [textured(0) // 40] * 2, r"dark: mean luma \d\.\d+ below 12"),
    ],
)
def test_a_fault_is_named_with_its_score_and_its_limit(name: str, frames: list[np.ndarray], reason: str) -> None:
    verdict = judged(frames)
    assert verdict.filter == name
    assert re.fullmatch(reason, verdict.reason)


def test_a_clip_of_great_motion_is_too_fast() -> None:
    config = FiltersConfig(motion=MotionFilter(mode="drop", max_px=8))
    verdict = SampleJudge(config).judge([0, 1], moving(0, 2, px=12))
    assert verdict.filter == "fast"
    assert verdict.scores["motion_px"] == pytest.approx(12, abs=1)


def test_a_letterboxed_clip_is_dropped_and_a_dark_edge_of_one_frame_is_not() -> None:
    frames = moving(0, 2, px=2)
    boxed = [f.copy() for f in frames]
    for frame in boxed:
        frame[:12] = frame[-12:] = 3
    assert judged(boxed).reason == "border: bars cover 0.2 of the frame, above 0.05"
    assert judged([boxed[0], frames[1]]).scores["border"] == 0


def test_a_frame_of_an_evaluation_set_is_dropped_and_named() -> None:
    guarded = [textured(7), textured(8)]
    stored = decode_rgb(encode(shrink(textured(8), 64), "jpeg", 95), "stored")
    verdict = judged([stored], guarded=guarded)
    assert (verdict.filter, verdict.scores["leakage"]) == ("leakage", "guarded#1")
    assert verdict.reason == "leakage: frame 0 looks like guarded#1"


def test_score_mode_measures_the_same_and_drops_nothing() -> None:
    frames = [textured(0), textured(0) // 40, textured(1)]
    dropped, scored = judged(frames, guarded=frames), judged(frames, "score", guarded=frames)
    assert dropped.filter == "leakage"
    assert scored == Verdict(dropped.scores)


def test_filters_that_are_off_measure_nothing() -> None:
    assert SampleJudge(FiltersConfig()).judge([0], [textured(0)]) == Verdict({})


def test_single_images_have_neither_cuts_nor_motion() -> None:
    assert sorted(judged([textured(0)]).scores) == ["border", "luma", "phash"]


def test_a_flat_frame_has_an_empty_hash_and_matches_nothing() -> None:
    flat = np.full((120, 200, 3), 128, np.uint8)
    verdict = judged([flat, flat], "score", guarded=[flat])
    assert verdict.scores["phash"] == ""
    assert "leakage" not in verdict.scores


def test_frames_too_small_for_flow_have_no_motion_score() -> None:
    assert "motion_px" not in judged([textured(0)[:8], textured(1)[:8]], "score").scores


def test_a_frame_of_overlapping_clips_is_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[int] = []

    def count(rgb: np.ndarray) -> float:
        measured.append(int(rgb[0, 0, 0]))
        return 100.0

    monkeypatch.setattr(judge_module, "_mean_luma", count)
    judge = SampleJudge(FiltersConfig(dark=DarkFilter(mode="score")))
    frames = [np.full((32, 32, 3), n, np.uint8) for n in range(6)]
    for start in range(4):
        judge.judge(range(start, start + 3), frames[start : start + 3])
    assert measured == [0, 1, 2, 3, 4, 5]
    assert len(judge._known) == 3


def test_scores_do_not_depend_on_what_was_judged_before() -> None:
    frames = [textured(0), textured(0), *moving(3, 4, px=3)]
    index = LeakageIndex.build([("a", frame_hash(frames[4]) or 0)])
    judge = SampleJudge(all_filters("drop"), index)
    for start in range(5):
        clip = range(start, start + 2), frames[start : start + 2]
        assert judge.judge(*clip) == SampleJudge(all_filters("drop"), index).judge(*clip)


def test_leakage_without_an_index_is_refused() -> None:
    with pytest.raises(ValueError, match="without an index"):
        SampleJudge(all_filters("score"))


def test_flow_does_not_depend_on_the_number_of_threads() -> None:
    grey = [cv2.cvtColor(f, cv2.COLOR_RGB2GRAY) for f in moving(0, 2, px=5)]
    before = cv2.getNumThreads()
    try:
        lengths = []
        for threads in (1, 4):
            cv2.setNumThreads(threads)
            lengths.append(flow_length_px(*grey))
            assert cv2.getNumThreads() == threads
    finally:
        cv2.setNumThreads(before)
    assert lengths[0] == lengths[1]


def test_the_content_score_is_the_mean_change_of_hue_saturation_and_value() -> None:
    grey = np.full((40, 60, 3), 100, np.uint8)
    assert content_score(grey, grey + np.uint8(30)) == pytest.approx(30 / 3)


def test_bars_are_counted_on_all_four_sides_and_a_black_frame_is_all_bar() -> None:
    frame = np.full((100, 200), 90, np.uint8)
    frame[:10] = frame[:, :20] = frame[:, 190:] = 10
    assert border_fraction(frame) == pytest.approx(1 - 90 * 170 / 20000)
    assert border_fraction(np.zeros((100, 200), np.uint8)) == 1
    assert border_fraction(np.full((100, 200), 90, np.uint8)) == 0


@pytest.mark.parametrize("angle", [0, 90, 45])
def test_gradients_count_as_flat(angle: int) -> None:
    y, x = np.mgrid[:120, :160] / 120
    ramp = 250 * (x * np.cos(np.radians(angle)) + y * np.sin(np.radians(angle))) / 2
    noisy = ramp[..., None] + np.random.default_rng(0).normal(0, 3, (120, 160, 3))
    assert frame_hash(noisy.clip(0, 255).astype(np.uint8)) is None


def test_real_bars_are_found_and_real_scenes_have_none(sample_data: Path) -> None:
    boxed = sample_data / "imagenet/train/n02977058/n02977058_cash_machine.JPEG"
    camel = sample_data / "davis/DAVIS/JPEGImages/480p/camel/00000.jpg"
    found = [border_fraction(cv2.cvtColor(shrink(read_rgb(p), 256), cv2.COLOR_RGB2GRAY)) for p in (boxed, camel)]
    assert found[0] == pytest.approx(0.36, abs=0.01)
    assert found[1] == 0


def test_neighbours_of_real_sequences_are_no_cuts_and_others_are(sample_data: Path) -> None:
    folder = sample_data / "davis/DAVIS/JPEGImages/480p"
    starts = []
    judge = SampleJudge(FiltersConfig(cut=CutFilter(mode="drop"), motion=MotionFilter(mode="drop")))
    for sequence in sorted(folder.iterdir())[:6]:
        first = [shrink(read_rgb(p), 128) for p in sorted(sequence.iterdir())[:2]]
        assert judge.judge([0, 1], first).filter == ""
        judge = SampleJudge(FiltersConfig(cut=CutFilter(mode="drop")))
        starts.append(first[0])
    verdicts = [
        SampleJudge(FiltersConfig(cut=CutFilter(mode="drop"))).judge([0, 1], starts[k : k + 2]) for k in range(5)
    ]
    assert [v.filter for v in verdicts] == ["cut"] * 5
