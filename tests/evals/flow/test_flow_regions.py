"""Regions of a frame: who is matched, distances to occlusions, moving objects, and what must not be guessed."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import distance_transform_edt

from mcjepa.data_prep.corpora import FLOW_SETS
from mcjepa.evals.flow.metrics import BOUNDARY_BINS_PX, leaves_frame, measure_regions, split_regions, summarise


def test_matched_pixels_are_neither_covered_nor_outside_of_the_second_frame() -> None:
    truth = np.zeros((1, 4, 2))
    truth[0, 3, 0] = 1.0  # leads out on the right
    truth[0, 0, 1] = -0.5  # onto the frame's upper edge: still inside
    occluded = np.array([[False, True, False, False]])
    regions = split_regions(truth, np.ones((1, 4), bool), occluded)
    assert regions["matched"].tolist() == [True, False, True, False]
    assert (regions["matched"] ^ regions["unmatched"]).all()
    assert regions["matched_by_map"].tolist() == [True, False, True, True]  # what leaves the frame is not marked here
    assert regions["unmatched_by_map"].tolist() == [False, True, False, False]


def test_kittis_own_map_decides_alone_who_is_matched() -> None:
    truth = np.full((1, 2, 2), 50.0)
    regions = split_regions(truth, np.ones((1, 2), bool), np.array([[False, True]]), sparse=True)
    assert regions["matched"].tolist() == [True, False]
    assert not {*BOUNDARY_BINS_PX, "matched_by_map"} & set(regions)


def test_distance_bins_hold_matched_pixels_by_euclidean_distance_to_the_occluded_ones() -> None:
    truth, occluded = np.zeros((3, 200, 2)), np.zeros((3, 200), bool)
    occluded[1, 0] = True
    truth[0, 5] = (0.0, -9.0)  # leaves the frame: not matched, in no bin
    regions = split_regions(truth, np.ones((3, 200), bool), occluded)
    bins = {name: regions[name].reshape(3, 200) for name in BOUNDARY_BINS_PX}
    row = np.arange(200)
    assert bins["d0_10"][1].tolist() == ((row > 0) & (row < 10)).tolist()
    assert bins["d10_60"][1].tolist() == ((row >= 10) & (row < 60)).tolist()
    assert bins["d60_140"][1].tolist() == ((row >= 60) & (row < 140)).tolist()
    distance = np.hypot(row, 1)
    assert bins["d10_60"][2].tolist() == ((distance >= 10) & (distance < 60)).tolist()
    assert not any(found[0, 5] for found in bins.values())
    assert not (bins["d0_10"] & occluded).any()


def test_bins_of_a_real_occlusion_map_are_those_of_another_librarys_distances(sample_data: Path) -> None:
    for pair in FLOW_SETS["sintel-final"](sample_data / "flow/MPI-Sintel-complete"):
        truth = pair.read_truth()
        assert truth.occluded is not None
        regions = split_regions(truth.flow_px, truth.valid, truth.occluded)
        distance = distance_transform_edt(~truth.occluded)[truth.valid]
        for name, (low, high) in BOUNDARY_BINS_PX.items():
            # OpenCV's distances are single precision.
            near_an_end = np.isclose(distance, low, atol=1e-4) | np.isclose(distance, high, atol=1e-4)
            expected = regions["matched"] & (distance >= low) & (distance < high)
            assert (regions[name] == expected)[~near_an_end].all() and regions[name].sum() > 1000
        leaving = leaves_frame(truth.flow_px)[truth.valid]
        marked = leaving & truth.occluded[truth.valid]
        assert 0 < marked.sum() < leaving.sum()  # Sintel's maps have a part of them
        assert (regions["unmatched_by_map"] == truth.occluded[truth.valid]).all()
        assert regions["matched_by_map"].sum() - regions["matched"].sum() == leaving.sum() - marked.sum()
        assert not (regions["matched"] & leaving).any()


def test_without_an_occluded_pixel_there_is_no_boundary_to_be_near_to() -> None:
    regions = split_regions(np.zeros((2, 2, 2)), np.ones((2, 2), bool), np.zeros((2, 2), bool))
    assert not set(BOUNDARY_BINS_PX) & set(regions) and regions["matched"].all()
    assert set(split_regions(np.zeros((2, 2, 2)), np.ones((2, 2), bool))) == {"all", "s0_10", "s10_40", "s40_plus"}


def test_background_and_moving_objects_have_their_own_errors_and_outliers() -> None:
    truth, valid = np.full((1, 4, 2), 20.0), np.array([[True, True, True, False]])
    estimate = truth + np.array([[[0.0, 0.0], [3.0, 4.0], [30.0, 40.0], [1e3, 0.0]]])
    objects = np.array([[0, 0, 7, 7]], np.uint8)
    scores = summarise(measure_regions(estimate, truth, valid, split_regions(truth, valid, None, objects)))
    assert (scores["epe_bg"], scores["epe_fg"], scores["epe"]) == (2.5, 50.0, pytest.approx(55 / 3))
    assert (scores["fl_bg"], scores["fl_fg"]) == (50.0, 100.0)


def test_an_object_map_without_objects_gives_no_foreground_score() -> None:
    truth, valid = np.zeros((2, 2, 2)), np.ones((2, 2), bool)
    regions = split_regions(truth, valid, None, np.zeros((2, 2), np.uint8))
    scores = summarise(measure_regions(truth + 1, truth, valid, regions))
    assert "epe_fg" not in scores and "fl_fg" not in scores
    assert scores["epe_bg"] == scores["epe"] == pytest.approx(math.sqrt(2))


def test_no_valid_pixel_gives_no_region_scores() -> None:
    truth, valid = np.full((2, 2, 2), np.nan), np.zeros((2, 2), bool)
    regions = split_regions(truth, valid, np.ones((2, 2), bool), np.ones((2, 2), np.uint8))
    scores = summarise(measure_regions(np.zeros((2, 2, 2)), truth, valid, regions))
    assert set(scores) == {"epe", "over_3px", "fl_all"} and all(math.isnan(value) for value in scores.values())


def test_unknown_flow_does_not_count_as_leaving_the_frame() -> None:
    truth = np.array([[[1.67e9, 1.67e9], [np.nan, 0.0], [0.0, 0.0]]])
    valid = np.array([[False, False, True]])
    regions = split_regions(truth, valid, np.zeros((1, 3), bool))
    assert regions["matched"].tolist() == [True] and regions["s0_10"].tolist() == [True]
    assert leaves_frame(truth).tolist() == [[True, False, False]]


def test_a_map_of_another_size_is_refused_by_its_name() -> None:
    truth, valid = np.zeros((2, 3, 2)), np.ones((2, 3), bool)
    with pytest.raises(ValueError, match=r"object map of \(3, 2\), validity of \(2, 3\)"):
        split_regions(truth, valid, None, np.zeros((3, 2)))
    with pytest.raises(ValueError, match=r"occlusion map of \(1, 1\)"):
        split_regions(truth, valid, np.zeros((1, 1), bool))
