"""Mean intersection over union from one confusion matrix over all pixels of the set.

IoU_k = true positives / (true positives + false positives + false negatives) of class k. The mean is over the
classes that occur in the truth or in the prediction (mmsegmentation's and scikit-learn's macro average over
those labels); void pixels (255) count nowhere.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

VOID = 255


def confusion_matrix(truth: NDArray, prediction: NDArray, classes: int) -> NDArray[np.int64]:
    """Pixel counts by (true class, predicted class); add those of several images.

    Args:
        truth: labels 0..classes-1 or 255 = void, any shape, integer.
        prediction: labels 0..classes-1, the same shape, integer.
        classes: number of classes K.

    Returns:
        (K, K) int64, rows = truth, columns = prediction.

    Raises:
        ValueError: shapes differ, or a label is no class and not void.
    """
    truth, prediction = np.asarray(truth), np.asarray(prediction)
    if truth.shape != prediction.shape:
        raise ValueError(
            f"prediction has shape {prediction.shape}, labels {truth.shape}; expected the same; resize the "
            "prediction to the labels before scoring"
        )
    counted = truth != VOID
    truth, prediction = truth[counted].astype(np.int64), prediction[counted].astype(np.int64)
    for name, labels in (("label", truth), ("prediction", prediction)):
        wrong = labels[(labels < 0) | (labels >= classes)]
        if wrong.size:
            found = sorted(set(wrong.tolist()))[:5]
            raise ValueError(f"{name} has classes {found}; expected 0..{classes - 1} or 255 for void labels")
    return np.bincount(truth * classes + prediction, minlength=classes**2).reshape(classes, classes)


def iou_per_class(confusion: NDArray[np.int64]) -> NDArray[np.float64]:
    """IoU of every class, (K,) in [0, 1]; NaN where a class is neither in the truth nor predicted."""
    hit = np.diag(confusion).astype(np.float64)
    union = confusion.sum(0) + confusion.sum(1) - hit
    return np.divide(hit, union, out=np.full(len(hit), np.nan), where=union > 0)


def mean_iou(confusion: NDArray[np.int64]) -> float:
    """Mean IoU over the classes that occur, in [0, 1]; NaN if no pixel was counted.

    >>> mean_iou(np.array([[3, 1], [0, 4]]))
    0.775
    """
    iou = iou_per_class(confusion)
    return float(np.nanmean(iou)) if np.isfinite(iou).any() else float("nan")


def accuracy_per_class(confusion: NDArray[np.int64]) -> NDArray[np.float64]:
    """Part of each class's pixels that are found, (K,) in [0, 1]; NaN where a class is not in the truth."""
    hit, truth = np.diag(confusion).astype(np.float64), confusion.sum(1)
    return np.divide(hit, truth, out=np.full(len(hit), np.nan), where=truth > 0)


def mean_accuracy(confusion: NDArray[np.int64]) -> float:
    """Mean of the classes' accuracies over those in the truth, in [0, 1]; NaN if no pixel was counted.

    >>> mean_accuracy(np.array([[3, 1], [0, 4]]))
    0.875
    """
    accuracy = accuracy_per_class(confusion)
    return float(np.nanmean(accuracy)) if np.isfinite(accuracy).any() else float("nan")


def pixel_accuracy(confusion: NDArray[np.int64]) -> float:
    """Part of the counted pixels with the right class, in [0, 1]; NaN if there are none."""
    total = int(confusion.sum())
    return float(np.trace(confusion)) / total if total else float("nan")
