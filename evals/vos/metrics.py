"""DAVIS' region similarity J and boundary accuracy F, by the official definition, with mean, recall and
decay.

J is the intersection over union of two masks. F is the harmonic mean of the precision and the recall of the
boundary pixels, matched within 0.8 % of the image diagonal (rounded up) by dilation with a disk. Source:
Perazzi et al., "A Benchmark Dataset and Evaluation Methodology for Video Object Segmentation" (CVPR 2016),
and the official davis-2017 evaluation's f_measure, db_eval_iou and db_statistics. Legend: T frames, H W
image.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

BOUNDARY_TOLERANCE = 0.008
RECALL_THRESHOLD = 0.5
DECAY_BINS = 4


@dataclass(frozen=True)
class SequenceStatistics:
    """Summary of a measure over the frames of one object."""

    mean: float
    """Mean over the frames."""

    recall: float
    """Part of the frames above 0.5."""

    decay: float
    """Mean of the first quarter of the frames minus that of the last."""


def region_similarity(truth_HW: NDArray, prediction_HW: NDArray) -> float:
    """J of one frame, in [0, 1]: intersection over union; 1 if both masks are empty.

    Raises:
        ValueError: the two masks differ in size.
    """
    truth, prediction = _as_masks(truth_HW, prediction_HW)
    union = np.count_nonzero(truth | prediction)
    return np.count_nonzero(truth & prediction) / union if union else 1.0


def boundary_accuracy(truth_HW: NDArray, prediction_HW: NDArray) -> float:
    """F of one frame, in [0, 1].

    A mask without boundary pixels has precision (or recall) 1 if the other one has some, and F is then 0;
    with none in either, F is 1.

    Raises:
        ValueError: the two masks differ in size.
    """
    truth, prediction = _as_masks(truth_HW, prediction_HW)
    truth_edge, edge = mask_boundary(truth), mask_boundary(prediction)
    count, truth_count = int(edge.sum()), int(truth_edge.sum())
    if count == 0 or truth_count == 0:
        return float(count == truth_count)
    disk = _disk(int(np.ceil(BOUNDARY_TOLERANCE * np.hypot(*truth.shape))))
    near_truth = cv2.dilate(truth_edge.astype(np.uint8), disk) > 0
    near = cv2.dilate(edge.astype(np.uint8), disk) > 0
    precision = np.count_nonzero(edge & near_truth) / count
    recall = np.count_nonzero(truth_edge & near) / truth_count
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def mask_boundary(mask_HW: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Pixels whose right, lower or lower right neighbour has the other value (DAVIS' `seg2bmap` at full
    size).

    The last row and column compare along the image's border only; the last pixel is never a boundary.
    """
    mask = np.asarray(mask_HW, bool)
    right, below, corner = mask.copy(), mask.copy(), mask.copy()
    right[:, :-1] = mask[:, 1:]
    below[:-1] = mask[1:]
    corner[:-1, :-1] = mask[1:, 1:]
    edge = (mask ^ right) | (mask ^ below) | (mask ^ corner)
    edge[-1] = mask[-1] ^ right[-1]
    edge[:, -1] = mask[:, -1] ^ below[:, -1]
    edge[-1, -1] = False
    return edge


def _disk(radius_px: int) -> NDArray[np.uint8]:
    """The same disk as scikit-image's: pixels at most `radius_px` away from the centre."""
    axis = np.arange(-radius_px, radius_px + 1)
    return (axis[:, None] ** 2 + axis[None, :] ** 2 <= radius_px**2).astype(np.uint8)


def _as_masks(truth: NDArray, prediction: NDArray) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    if truth.shape != prediction.shape:
        raise ValueError(
            f"predicted mask has shape {prediction.shape}, ground truth {truth.shape}; expected the same; "
            "resize the prediction with nearest neighbours before scoring"
        )
    return np.asarray(truth, bool), np.asarray(prediction, bool)


def summarise_sequence(values: NDArray[np.float64]) -> SequenceStatistics:
    """Mean, recall and decay over one object's frames, in order (first and last frame already left out).

    Raises:
        ValueError: there is no frame.
    """
    values = np.asarray(values, np.float64)
    if not values.size:
        raise ValueError("no frame between the first and the last; expected a sequence of 3 or more frames")
    # The official bins: 1-based, rounded half up, and each bin shares its last frame with the next one.
    cuts = np.round(np.linspace(1, len(values), DECAY_BINS + 1) + 1e-10).astype(int) - 1
    first, last = values[cuts[0] : cuts[1] + 1], values[cuts[-2] : cuts[-1] + 1]
    return SequenceStatistics(
        mean=float(values.mean()),
        recall=float((values > RECALL_THRESHOLD).mean()),
        decay=float(first.mean() - last.mean()),
    )


def score_object(
    truth_THW: NDArray, prediction_THW: NDArray, object_id: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """J and F of one object in every frame but the first, whose mask is given, and the last (the official
    rule).

    Args:
        truth_THW: object ids, integer, 0 = background.
        prediction_THW: object ids, the same shape.
        object_id: which object.

    Returns:
        Two arrays (T - 2,), in [0, 1].
    """
    pairs = [
        (truth == object_id, prediction == object_id)
        for truth, prediction in zip(truth_THW[1:-1], prediction_THW[1:-1], strict=True)
    ]
    region = np.array([region_similarity(truth, prediction) for truth, prediction in pairs])
    boundary = np.array([boundary_accuracy(truth, prediction) for truth, prediction in pairs])
    return region, boundary
