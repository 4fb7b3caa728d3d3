"""Flow metrics: hand-made cases, the KITTI devkit's oracle, merging, and what must never be averaged away."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from mcjepa.data_prep.corpora.flow.files import read_kitti_png
from mcjepa.evals.flow.metrics import (
    FlowSums,
    RegionSums,
    add_sums,
    endpoint_error,
    measure_regions,
    split_regions,
    summarise,
)


def measure_pair(
    estimate: NDArray, truth: NDArray, valid: NDArray[np.bool_], occluded: NDArray[np.bool_] | None = None
) -> FlowSums:
    """Errors of one pair by all regions that its truth has."""
    return measure_regions(estimate, truth, valid, split_regions(truth, valid, occluded))


def test_kitti_devkit_pair_gives_the_devkits_numbers_to_the_printed_digit(sample_data: Path) -> None:
    truth, valid = read_kitti_png(sample_data / "flow/kitti_devkit/flow_gt.png")
    estimate, _ = read_kitti_png(sample_data / "flow/kitti_devkit/flow_est.png")
    sums = measure_pair(estimate, truth, valid)
    scores = summarise(sums)
    assert f"{scores['epe']:.4f}" == "12.2007"
    assert f"{scores['over_3px']:.3f}" == "28.605"
    assert f"{scores['fl_all']:.3f}" == "20.688"
    assert f"{100 * sums['all'].pixels / valid.size:.2f}" == "23.90"


def test_outlier_needs_both_more_than_3_px_and_more_than_5_percent() -> None:
    truth = np.zeros((1, 4, 2))
    truth[0, :, 0] = [10.0, 100.0, 100.0, 10.0]
    estimate = truth + np.array([[[4.0, 0.0], [4.0, 0.0], [0.0, 6.0], [3.0, 0.0]]])
    scores = summarise(measure_pair(estimate, truth, np.ones((1, 4), bool)))
    # 4 px of 10 px: outlier; 4 px of 100 px: only above 3 px; 6 px of 100 px: outlier; exactly 3 px: neither.
    assert scores["over_3px"] == 75.0
    assert scores["fl_all"] == 50.0
    assert scores["epe"] == pytest.approx((4 + 4 + 6 + 3) / 4)


def test_matched_and_unmatched_pixels_split_the_valid_ones() -> None:
    truth = np.zeros((2, 2, 2))
    estimate = np.zeros((2, 2, 2))
    estimate[..., 0] = [[1.0, 2.0], [3.0, 100.0]]
    valid = np.array([[True, True], [True, False]])
    occluded = np.array([[False, True], [False, True]])
    sums = measure_pair(estimate, truth, valid, occluded)
    scores = summarise(sums)
    assert (scores["epe_matched"], scores["epe_unmatched"], scores["epe"]) == (2.0, 2.0, 2.0)
    assert sums["matched"].pixels + sums["unmatched"].pixels == sums["all"].pixels == 3
    assert "epe_matched" not in summarise(measure_pair(estimate, truth, valid))


def test_speed_bins_partition_the_pixels_by_true_length() -> None:
    truth = np.zeros((1, 5, 2))
    truth[0, :, 1] = [0.0, 9.99, 10.0, 39.99, 40.0]
    sums = measure_pair(truth + 1.0, truth, np.ones((1, 5), bool))
    assert [sums[name].pixels for name in ("s0_10", "s10_40", "s40_plus")] == [2, 2, 1]
    assert summarise(sums)["epe_s40_plus"] == pytest.approx(math.sqrt(2))


def test_set_mean_weighs_pixels_and_not_pairs() -> None:
    one = measure_pair(np.full((1, 1, 2), [3.0, 4.0]), np.zeros((1, 1, 2)), np.ones((1, 1), bool))
    many = measure_pair(np.zeros((3, 3, 2)), np.zeros((3, 3, 2)), np.ones((3, 3), bool))
    assert summarise(add_sums(one, many))["epe"] == pytest.approx(0.5)
    assert add_sums({}, one) == one
    assert add_sums({"all": RegionSums(1, 2.0, 0, 0)}, {"matched": RegionSums(1, 1.0, 0, 0)})["matched"].pixels == 1


def test_unknown_middlebury_flow_does_not_count() -> None:
    truth = np.full((2, 2, 2), 1.67e9)
    truth[0, 0] = 1.0
    scores = summarise(measure_pair(np.zeros((2, 2, 2)), truth, np.abs(truth).max(-1) < 1e9))
    assert scores["epe"] == pytest.approx(math.sqrt(2))


def test_estimate_that_is_not_finite_shows_in_the_score() -> None:
    estimate = np.zeros((1, 2, 2))
    estimate[0, 0, 0] = np.nan
    scores = summarise(measure_pair(estimate, np.zeros((1, 2, 2)), np.ones((1, 2), bool)))
    assert math.isnan(scores["epe"])
    assert scores["fl_all"] == scores["over_3px"] == 50.0


def test_no_valid_pixel_is_not_a_perfect_score() -> None:
    scores = summarise(measure_pair(np.zeros((2, 2, 2)), np.zeros((2, 2, 2)), np.zeros((2, 2), bool)))
    assert all(math.isnan(scores[name]) for name in ("epe", "fl_all", "over_3px"))


def test_estimate_of_other_size_is_refused_with_both_shapes() -> None:
    with pytest.raises(ValueError, match=r"\(2, 3, 2\).*\(2, 2, 2\)"):
        endpoint_error(np.zeros((2, 3, 2)), np.zeros((2, 2, 2)))
