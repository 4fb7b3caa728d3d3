"""J and F: hand-made masks, the official statistics, and OSVOS' published masks on DAVIS."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from mcjepa.data_prep.errors import DataError
from mcjepa.evals.vos.metrics import boundary_accuracy, mask_boundary, outline, region_similarity, summarise_sequence
from mcjepa.evals.vos.sequence import SequenceScorer


def _read_masks(folder: Path) -> np.ndarray:
    return np.stack([np.array(Image.open(file)) > 0 for file in sorted(folder.glob("*.png"))]).astype(np.uint8)


def _rows(truth_THW: np.ndarray, prediction_THW: np.ndarray) -> list[dict]:
    """A whole sequence through the scorer, first and last frame left out."""
    scorer = SequenceScorer("s", truth_THW[0])
    for index in range(1, len(truth_THW) - 1):
        scorer.add(truth_THW[index], prediction_THW[index], f"s/{index:05d}")
    return scorer.rows()


@pytest.mark.parametrize(
    ("sequence", "osvos", "copied"),
    [("car-shadow", (0.928, 0.917), (0.408, 0.252)), ("drift-chicane", (0.774, 0.829), (0.018, 0.027))],
)
def test_osvos_and_copied_first_mask_have_the_known_scores(
    sample_data: Path, sequence: str, osvos: tuple[float, float], copied: tuple[float, float]
) -> None:
    truth = _read_masks(sample_data / "davis/DAVIS/Annotations/480p" / sequence)
    estimate = _read_masks(sample_data / "davis/results/semi-supervised/osvos" / sequence)
    (row,) = _rows(truth, estimate)
    assert row["frames"] == len(truth) - 2
    assert [row["j_mean"], row["f_mean"]] == pytest.approx(osvos, abs=0.001)
    assert [row["j_mean_copy_first"], row["f_mean_copy_first"]] == pytest.approx(copied, abs=0.001)


def test_region_similarity_of_hand_made_masks() -> None:
    truth, prediction = np.zeros((4, 4), bool), np.zeros((4, 4), bool)
    assert region_similarity(outline(truth), outline(prediction)) == 1.0
    truth[:2, :2] = True
    assert region_similarity(outline(truth), outline(prediction)) == 0.0
    prediction[:2, :3] = True
    assert region_similarity(outline(truth), outline(prediction)) == pytest.approx(4 / 6)


def test_boundary_lies_on_the_upper_left_side_of_the_change() -> None:
    mask = np.zeros((5, 5), bool)
    mask[2:4, 2:4] = True
    expected = np.array([[0, 0, 0, 0, 0], [0, 1, 1, 1, 0], [0, 1, 0, 1, 0], [0, 1, 1, 1, 0], [0, 0, 0, 0, 0]], bool)
    assert np.array_equal(mask_boundary(mask), expected)
    assert not mask_boundary(np.ones((5, 5), bool)).any()


def test_boundary_accuracy_of_degenerate_masks_follows_the_official_rule() -> None:
    empty, disc = np.zeros((60, 80), bool), np.zeros((60, 80), bool)
    disc[20:40, 20:50] = True
    assert boundary_accuracy(outline(empty), outline(empty)) == 1.0
    assert boundary_accuracy(outline(disc), outline(empty)) == 0.0
    assert boundary_accuracy(outline(empty), outline(disc)) == 0.0
    assert boundary_accuracy(outline(disc), outline(disc)) == 1.0


def test_boundary_tolerance_is_the_rounded_up_part_of_the_diagonal() -> None:
    truth = np.zeros((300, 400), bool)
    truth[100:200, 100:300] = True
    # 0.8 % of a 500 px diagonal is exactly 4 px.
    assert boundary_accuracy(outline(truth), outline(np.roll(truth, 4, axis=1))) == 1.0
    assert boundary_accuracy(outline(truth), outline(np.roll(truth, 5, axis=1))) < 1.0


def test_boundary_accuracy_equals_the_official_code_with_scikit_images_disk() -> None:
    morphology = pytest.importorskip("skimage.morphology")
    random = np.random.default_rng(3)
    for _ in range(5):
        noise = cv2.GaussianBlur(random.random((2, 90, 120)).transpose(1, 2, 0), (0, 0), 7)
        truth, prediction = (noise[..., index] > np.median(noise[..., index]) for index in (0, 1))
        disk = morphology.disk(int(np.ceil(0.008 * np.linalg.norm(truth.shape))))
        edges = [mask_boundary(mask) for mask in (truth, prediction)]
        near = [morphology.dilation(edge, disk) for edge in edges]
        precision, recall = (
            (edges[1] & near[0]).sum() / edges[1].sum(),
            (edges[0] & near[1]).sum() / edges[0].sum(),
        )
        assert boundary_accuracy(outline(truth), outline(prediction)) == pytest.approx(
            2 * precision * recall / (precision + recall)
        )


def test_decay_compares_the_first_and_last_of_four_bins_that_share_their_ends() -> None:
    values = np.array([1.0, 1.0, 0.8, 0.8, 0.6, 0.6, 0.4, 0.4])
    statistics = summarise_sequence(values)
    # Official cuts of 8 frames, from 1: 1, 3, 5, 6, 8 -> bins 1..3 and 6..8.
    assert statistics.decay == pytest.approx((1 + 1 + 0.8) / 3 - (0.6 + 0.4 + 0.4) / 3)
    assert statistics.mean == pytest.approx(0.7)
    assert statistics.recall == pytest.approx(6 / 8)


def test_recall_counts_values_above_a_half_only() -> None:
    assert summarise_sequence(np.array([0.5, 0.51])).recall == 0.5


def test_sequence_without_scored_frame_is_refused() -> None:
    with pytest.raises(ValueError, match="3 or more frames"):
        summarise_sequence(np.array([]))
    with pytest.raises(DataError, match=r"s has no frame.*3 or more"):
        _rows(np.ones((2, 4, 4), np.uint8), np.ones((2, 4, 4), np.uint8))


def test_masks_of_other_size_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(2, 3\).*\(2, 2\)"):
        region_similarity(outline(np.zeros((2, 2))), outline(np.zeros((2, 3))))


def test_object_absent_in_a_frame_counts_as_found_only_if_nothing_is_predicted() -> None:
    truth = np.zeros((4, 8, 8), np.uint8)
    truth[0, 2:4, 2:4] = 2
    prediction = np.zeros_like(truth)
    prediction[2, 0, 0] = 2
    prediction[0] = 2
    (row,) = _rows(truth, prediction)
    assert (row["object"], row["absent_frames"], row["frames"]) == (2, 2, 2)
    assert row["j_mean"] == row["f_mean"] == 0.5
    assert row["j_mean_copy_first"] == 0.0


def test_an_object_that_appears_later_is_named_and_not_scored() -> None:
    truth = np.zeros((4, 8, 8), np.uint8)
    truth[:, 2:4, 2:4] = 1
    truth[2:, 5:7, 5:7] = 3
    scorer = SequenceScorer("s", truth[0])
    for index in (1, 2):
        scorer.add(truth[index], truth[0], f"s/{index:05d}")
    assert [row["object"] for row in scorer.rows()] == [1] and scorer.later == {3}
    assert scorer.rows()[0]["j_mean"] == 1.0


def test_bad_predictions_are_named() -> None:
    truth = np.zeros((8, 8), np.uint8)
    truth[2:4, 2:4] = 1
    scorer = SequenceScorer("s", truth)
    with pytest.raises(DataError, match=r"s/00001 has the object id 7; the first frame shows 1"):
        scorer.add(truth, truth * 7, "s/00001")
    with pytest.raises(DataError, match=r"predicted mask of s/00002 is 9x8 px.*8x8 px"):
        scorer.add(truth, np.zeros((8, 9), np.uint8), "s/00002")
    with pytest.raises(DataError, match=r"^the mask of s/00003 is 8x9 px"):
        scorer.add(np.zeros((9, 8), np.uint8), truth, "s/00003")
    with pytest.raises(DataError, match="first mask of s is empty"):
        SequenceScorer("s", np.zeros((8, 8), np.uint8))


def test_each_object_is_compared_with_its_own_id() -> None:
    truth = np.zeros((3, 8, 8), np.uint8)
    truth[:, :4], truth[:, 4:] = 1, 2
    swapped = np.where(truth == 1, np.uint8(2), np.uint8(1))
    assert [row["j_mean"] for row in _rows(truth, swapped)] == [0.0, 0.0]
    assert [row["j_mean"] for row in _rows(truth, truth)] == [1.0, 1.0]
