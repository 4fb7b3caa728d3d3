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


@dataclass(frozen=True)
class Outline:
    """A mask, its boundary, and what lies near that: made once, compared with several others."""

    mask_HW: NDArray[np.bool_]
    """The mask itself."""

    edge_HW: NDArray[np.bool_]
    """Its boundary pixels."""

    near_HW: NDArray[np.bool_]
    """Pixels within the tolerance of the boundary."""

    edge_pixels: int
    """Number of boundary pixels."""


def outline(mask_HW: NDArray) -> Outline:
    """The mask with its boundary (see `mask_boundary`) and all pixels within 0.8 % of the diagonal of that."""
    mask = np.asarray(mask_HW, bool)
    edge = mask_boundary(mask)
    disk = _disk(int(np.ceil(BOUNDARY_TOLERANCE * np.hypot(*mask.shape))))
    near = cv2.dilate(edge.astype(np.uint8), disk) > 0
    return Outline(mask, edge, np.asarray(near, bool), int(np.count_nonzero(edge)))


def region_similarity(truth: Outline, prediction: Outline) -> float:
    """J of one frame, in [0, 1]: intersection over union; 1 if both masks are empty.

    Raises:
        ValueError: the two masks differ in size.
    """
    _require_one_size(truth.mask_HW, prediction.mask_HW)
    union = np.count_nonzero(truth.mask_HW | prediction.mask_HW)
    return np.count_nonzero(truth.mask_HW & prediction.mask_HW) / union if union else 1.0


def boundary_accuracy(truth: Outline, prediction: Outline) -> float:
    """F of one frame, in [0, 1].

    A mask without boundary pixels has precision (or recall) 1 if the other one has some, and F is then 0;
    with none in either, F is 1.

    Raises:
        ValueError: the two masks differ in size.
    """
    _require_one_size(truth.mask_HW, prediction.mask_HW)
    if prediction.edge_pixels == 0 or truth.edge_pixels == 0:
        return float(prediction.edge_pixels == truth.edge_pixels)
    precision = np.count_nonzero(prediction.edge_HW & truth.near_HW) / prediction.edge_pixels
    recall = np.count_nonzero(truth.edge_HW & prediction.near_HW) / truth.edge_pixels
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


def _require_one_size(truth: NDArray, prediction: NDArray) -> None:
    if truth.shape != prediction.shape:
        raise ValueError(
            f"predicted mask has shape {prediction.shape}, ground truth {truth.shape}; expected the same; "
            "resize the prediction with nearest neighbours before scoring"
        )


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
