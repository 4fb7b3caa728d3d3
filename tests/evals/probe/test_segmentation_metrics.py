"""mIoU: equality with scikit-learn, void, classes that do not occur, unknown labels."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, balanced_accuracy_score, jaccard_score
from sklearn.metrics import confusion_matrix as sklearn_confusion

from mcjepa.evals.probe.metrics import (
    accuracy_per_class,
    confusion_matrix,
    iou_per_class,
    mean_accuracy,
    mean_iou,
    pixel_accuracy,
)


def test_confusion_and_mean_iou_equal_scikit_learns() -> None:
    random = np.random.default_rng(0)
    truth = random.integers(0, 7, (40, 50))
    prediction = np.where(random.random((40, 50)) < 0.6, truth, random.integers(0, 7, (40, 50)))
    truth[random.random((40, 50)) < 0.1] = 255
    counted = truth != 255
    confusion = confusion_matrix(truth, prediction, 7)
    assert np.array_equal(confusion, sklearn_confusion(truth[counted], prediction[counted], labels=range(7)))
    assert mean_iou(confusion) == pytest.approx(
        jaccard_score(truth[counted], prediction[counted], labels=range(7), average="macro")
    )
    assert mean_accuracy(confusion) == pytest.approx(balanced_accuracy_score(truth[counted], prediction[counted]))
    assert pixel_accuracy(confusion) == pytest.approx(accuracy_score(truth[counted], prediction[counted]))


def test_class_that_occurs_nowhere_is_left_out_of_the_mean() -> None:
    truth, prediction = np.array([0, 0, 1, 1]), np.array([0, 1, 1, 1])
    iou = iou_per_class(confusion_matrix(truth, prediction, 4))
    assert iou[:2].tolist() == pytest.approx([1 / 2, 2 / 3])
    assert np.isnan(iou[2:]).all()
    assert mean_iou(confusion_matrix(truth, prediction, 4)) == pytest.approx((1 / 2 + 2 / 3) / 2)


def test_class_that_is_only_predicted_counts_as_zero() -> None:
    confusion = confusion_matrix(np.array([0, 0]), np.array([0, 2]), 3)
    assert mean_iou(confusion) == pytest.approx((1 / 2 + 0) / 2)
    assert mean_accuracy(confusion) == 0.5 and np.isnan(accuracy_per_class(confusion)[1:]).all()


def test_void_pixels_count_nowhere_and_all_void_is_no_score() -> None:
    confusion = confusion_matrix(np.full((3, 3), 255), np.zeros((3, 3), int), 2)
    assert confusion.sum() == 0
    assert math.isnan(mean_iou(confusion)) and math.isnan(pixel_accuracy(confusion))


def test_unsigned_bytes_do_not_overflow() -> None:
    truth, prediction = np.full(4, 20, np.uint8), np.full(4, 21, np.uint8)
    assert confusion_matrix(truth, prediction, 150)[20, 21] == 4


@pytest.mark.parametrize(("truth", "prediction", "who"), [([11], [0], "label"), ([0], [255], "prediction")])
def test_unknown_class_is_named(truth: list[int], prediction: list[int], who: str) -> None:
    with pytest.raises(ValueError, match=f"{who} has classes"):
        confusion_matrix(np.array(truth), np.array(prediction), 11)


def test_prediction_of_other_size_is_refused() -> None:
    with pytest.raises(ValueError, match="resize"):
        confusion_matrix(np.zeros((2, 2), int), np.zeros((2, 3), int), 2)
