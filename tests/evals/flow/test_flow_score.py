"""Scoring flow sets: the known table of classical baselines, broken items, pictures, a constant flow."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest

from mcjepa.data_prep.corpora import FLOW_SETS
from mcjepa.data_prep.corpora.flow.scans import FlowScan
from mcjepa.data_prep.corpora.items import FlowPair
from mcjepa.data_prep.errors import DataError
from mcjepa.evals.cards import Score
from mcjepa.evals.flow.methods import Method, flow_baseline
from mcjepa.evals.flow.score import FlowSet, score_flow
from mcjepa.evals.flow.settings import BASELINES, FlowEvalConfig
from mcjepa.evals.models import EvalModel
from mcjepa.evals.progress import EvalEvent, OnEvent, silent

KNOWN = {
    # pair: zero, DIS medium, fast, ultrafast, Farneback as (EPE, outliers %), data/README.md of the samples
    ("chairs", "00002"): ((4.51, 68.5), (1.59, 11.0), (1.95, 13.9), (2.27, 17.8), (2.76, 24.9)),
    ("sintel-clean", "alley_1/frame_0002"): (
        (2.98, 29.7),
        (0.34, 2.2),
        (0.54, 3.1),
        (0.66, 4.2),
        (1.08, 14.0),
    ),
    ("sintel-final", "alley_1/frame_0002"): (
        (2.98, 29.7),
        (0.32, 2.2),
        (0.51, 3.0),
        (0.62, 4.2),
        (1.27, 14.8),
    ),
    ("sintel-final", "bandage_1/frame_0035"): (
        (1.62, 20.2),
        (0.40, 2.7),
        (0.60, 3.9),
        (0.74, 5.5),
        (0.66, 6.4),
    ),
    ("kitti2012", "000027"): ((31.46, 100.0), (5.40, 17.0), (5.10, 22.8), (5.18, 26.6), (20.44, 64.0)),
    ("kitti2012", "000074"): ((27.47, 93.4), (13.87, 50.0), (17.13, 61.6), (16.63, 60.1), (20.77, 73.2)),
    ("kitti2012", "000110"): ((25.68, 100.0), (0.95, 5.9), (1.36, 9.9), (1.72, 13.2), (14.54, 50.8)),
    ("middlebury", "RubberWhale"): ((1.26, 1.7), (0.23, 0.2), (0.44, 0.5), (0.54, 1.0), (0.43, 0.8)),
}
METHODS = ("zero", "dis-medium", "dis-fast", "dis-ultrafast", "farneback")
ROOTS = {
    "chairs": "FlyingChairs_release",
    "sintel-clean": "MPI-Sintel-complete",
    "sintel-final": "MPI-Sintel-complete",
    "kitti2012": "kitti2012/data_stereo_flow",
    "middlebury": "middlebury",
}


def score_pairs(
    model: EvalModel,
    name: str,
    root: Path,
    pairs: Sequence[FlowPair],
    config: FlowEvalConfig,
    out: Path,
    on_event: OnEvent = silent,
) -> Score:
    """A model and the baselines on pairs of which none is missing."""
    flow_set = FlowSet(name=name, root=root, scan=FlowScan(pairs=list(pairs)))
    return score_flow(Method(name="m", model=model), flow_set, config, out, on_event)


def _score(model: EvalModel, name: str, root: Path, out: Path, **settings: object) -> Score:
    config = FlowEvalConfig(**{"baselines": ("zero",), "pictures": 0, **settings})  # type: ignore[arg-type]
    return score_pairs(model, name, root, FLOW_SETS[name](root), config, out)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(ROOTS))
def test_classical_baselines_reproduce_the_known_table(
    sample_data: Path, tmp_path: Path, foreign_model: Callable[..., EvalModel], name: str
) -> None:
    root = sample_data / "flow" / ROOTS[name]
    pairs = [pair for pair in FLOW_SETS[name](root) if (name, pair.name) in KNOWN]
    config = FlowEvalConfig(baselines=BASELINES, pictures=0)
    for pair in pairs:
        score = score_pairs(foreign_model(), name, root, [pair], config, tmp_path)
        part = ("epe_matched", "fl_matched") if name == "kitti2012" else ("epe", "fl_all")
        for method, (epe, outliers) in zip(METHODS, KNOWN[name, pair.name], strict=True):
            suffix = method.replace("-", "_")
            # The table prints two digits and one: half a unit of the last one is its own precision.
            assert score.metrics[f"{part[0]}_{suffix}"] == pytest.approx(epe, rel=0.01, abs=0.0051)
            assert score.metrics[f"{part[1]}_{suffix}"] == pytest.approx(outliers, rel=0.01, abs=0.051)


def test_constant_flow_is_scored_by_hand(
    moving_photos: Path, tmp_path: Path, foreign_model: Callable[..., EvalModel]
) -> None:
    score = _score(foreign_model((3.0, -1.0)), "moving-photos", moving_photos, tmp_path)
    errors = []
    for pair in FLOW_SETS["moving-photos"](moving_photos):
        errors.append(np.linalg.norm(pair.read_truth().flow_px - np.float32([3.0, -1.0]), axis=-1))
    assert score.metrics["epe"] == pytest.approx(float(np.mean(errors)), rel=1e-5)
    assert len(score.table) == score.card.frames == len(errors) == 6 * 4
    assert score.metrics["epe_mean_of_pairs"] == pytest.approx(score.metrics["epe"], rel=1e-5)
    assert score.rivals == ("zero",)


def test_cap_takes_evenly_spaced_pairs_and_progress_is_told(
    moving_photos: Path, tmp_path: Path, foreign_model: Callable[..., EvalModel]
) -> None:
    events: list[EvalEvent] = []
    config = FlowEvalConfig(baselines=(), pictures=0, max_pairs=6)
    pairs = FLOW_SETS["moving-photos"](moving_photos)
    score = score_pairs(foreign_model(), "moving-photos", moving_photos, pairs, config, tmp_path, events.append)
    assert [row["pair"] for row in score.table] == [pairs[index].name for index in range(0, 24, 4)]
    assert [(event.done, event.total) for event in events] == [(done, 6) for done in range(1, 7)]


def test_unreadable_and_mismatched_pairs_are_named_and_the_score_is_incomplete(
    moving_photos: Path, tmp_path: Path, foreign_model: Callable[..., EvalModel]
) -> None:
    pairs = FLOW_SETS["moving-photos"](moving_photos)[:3]
    broken, small = tmp_path / "broken.png", tmp_path / "small.png"
    broken.write_bytes(pairs[0].frame1.read_bytes()[:200])
    cv2.imwrite(str(small), np.zeros((10, 10, 3), np.uint8))
    bad = [
        dataclasses.replace(pairs[0], name="broken", frame1=broken),
        dataclasses.replace(pairs[1], name="sizes", frame0=small, frame1=small),
    ]
    config = FlowEvalConfig(baselines=(), pictures=0)
    score = score_pairs(foreign_model(), "moving-photos", moving_photos, [*bad, pairs[2]], config, tmp_path)
    assert [failure.split(":")[0] for failure in score.card.failed] == ["broken", "sizes"]
    assert score.card.frames == 1 and not score.card.complete
    with pytest.raises(DataError, match="broken"):
        score_pairs(foreign_model(), "moving-photos", moving_photos, bad, config, tmp_path)


def test_pairs_without_truth_are_counted_on_the_card(
    moving_photos: Path, tmp_path: Path, foreign_model: Callable[..., EvalModel]
) -> None:
    one, two = FLOW_SETS["moving-photos"](moving_photos)[:2]
    config = FlowEvalConfig(baselines=(), pictures=0)
    pairs = [one, dataclasses.replace(two, flow=None)]
    score = score_pairs(foreign_model(), "moving-photos", moving_photos, pairs, config, tmp_path)
    assert score.card.frames == 1
    assert "1 pairs without ground truth" in score.card.split


def test_pictures_show_even_and_worst_pairs_side_by_side(
    moving_photos: Path, tmp_path: Path, foreign_model: Callable[..., EvalModel]
) -> None:
    score = _score(
        foreign_model(), "moving-photos", moving_photos, tmp_path, pictures=2, baselines=("zero", "dis-fast")
    )
    assert len(score.pictures) == 4
    assert [picture.caption.startswith("worst") for picture in score.pictures] == [False, False, True, True]
    worst = max(score.table[index]["epe"] for index in range(24) if index not in (0, 12))
    assert f"EPE {worst:.2f} px" in score.pictures[2].caption
    assert score.pictures[0].columns == (
        "frame",
        "ground truth",
        "model",
        "dis-fast",
        "model's error (0 to 5 px)",
    )
    assert cv2.imread(str(score.pictures[0].path)).shape[:2] == (96, 5 * 96 + 4 * 6)


def test_repeated_baseline_call_does_not_depend_on_the_one_before(moving_photos: Path) -> None:
    first, second = (pair.read_frames() for pair in FLOW_SETS["moving-photos"](moving_photos)[:2])
    method = flow_baseline("dis-medium")
    alone = method(*second)
    method(*first)
    assert np.array_equal(method(*second), alone)


def test_unknown_baseline_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="farneback"):
        flow_baseline("raft")
    with pytest.raises(ValueError, match="raft"):
        FlowEvalConfig(baselines=("raft",))
