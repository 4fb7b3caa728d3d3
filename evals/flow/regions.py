"""Parts of a frame that flow errors are measured over, as the benchmarks define them.

* all: every pixel whose true flow is known and valid.
* s0_10, s10_40, s40_plus (Sintel): by the length of the true flow, px.
* matched, unmatched (Sintel): visible in the second frame, or not: covered there (the occlusion map), or outside of it
  by its true flow. Sintel's maps do not mark pixels that leave the frame.
* d0_10, d10_60, d60_140 (Sintel): matched pixels by the distance to the nearest occlusion boundary. The benchmark's
  program is not public; taken is the Euclidean distance, px, to the nearest pixel that the occlusion map marks, so a
  pixel right beside it has distance 1.
* bg, fg (KITTI 2015): outside and inside of independently moving objects.

Legend: H W image, N valid pixels, 2 = (u, v).
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

BoolArray = NDArray[np.bool_]

Regions = dict[str, BoolArray]
"""Region name to which of the valid pixels (N,) it has, in row order; "all" is always there."""

SPEED_BINS_PX = {"s0_10": (0.0, 10.0), "s10_40": (10.0, 40.0), "s40_plus": (40.0, float("inf"))}
BOUNDARY_BINS_PX = {"d0_10": (0.0, 10.0), "d10_60": (10.0, 60.0), "d60_140": (60.0, 140.0)}


def split_regions(
    truth_HW2: NDArray,
    valid_HW: BoolArray,
    occluded_HW: BoolArray | None = None,
    objects_HW: NDArray | None = None,
    *,
    sparse: bool = False,
) -> Regions:
    """The regions of one pair.

    Args:
        truth_HW2: true flow, px; values at invalid pixels are ignored.
        valid_HW: True where it is known.
        occluded_HW: True where the point cannot be seen in the second frame; None = unknown, no such regions.
        objects_HW: ids of moving objects, 0 = background; None = unknown, no such regions.
        sparse: occlusion is known at valid pixels only and is taken as it is (KITTI): no distances to boundaries.

    Raises:
        ValueError: a map has another size than the flow.
    """
    valid = np.asarray(valid_HW, bool)
    for name, other in (("true flow", truth_HW2[..., 0]), ("occlusion", occluded_HW), ("object", objects_HW)):
        if other is not None and other.shape != valid.shape:
            raise ValueError(f"{name} map of {other.shape}, validity of {valid.shape}; expected one size; replace one")
    length = np.linalg.norm(np.asarray(truth_HW2, np.float64)[valid], axis=-1)
    regions = {"all": np.ones(length.shape, bool)}
    if occluded_HW is not None:
        occluded = np.asarray(occluded_HW, bool)
        unmatched = occluded if sparse else occluded | leaves_frame(truth_HW2)
        regions |= {"matched": ~unmatched[valid], "unmatched": unmatched[valid]}
        if not sparse and occluded.any():
            regions |= _bins(_distance_px(occluded)[valid], BOUNDARY_BINS_PX, ~unmatched[valid])
    regions |= _bins(length, SPEED_BINS_PX, regions["all"])
    if objects_HW is not None:
        inside = np.asarray(objects_HW)[valid] > 0
        regions |= {"bg": ~inside, "fg": inside}
    return regions


def leaves_frame(flow_HW2: NDArray) -> BoolArray:
    """Where the flow leads out of the frame, which reaches half a pixel beyond the outer pixels' centres.

    >>> leaves_frame(np.array([[[0.5, 0.0], [0.4, 0.0]], [[0.0, 0.6], [0.6, -9.0]]])).tolist()
    [[False, False], [True, True]]
    """
    height, width = flow_HW2.shape[:2]
    x = np.arange(width) + flow_HW2[..., 0]
    y = np.arange(height)[:, None] + flow_HW2[..., 1]
    return np.asarray((x < -0.5) | (x > width - 0.5) | (y < -0.5) | (y > height - 0.5))


def _distance_px(occluded_HW: BoolArray) -> NDArray[np.float32]:
    free = (~occluded_HW).astype(np.uint8)
    return np.asarray(cv2.distanceTransform(free, cv2.DIST_L2, cv2.DIST_MASK_PRECISE), np.float32)


def _bins(values: NDArray, bins: dict[str, tuple[float, float]], among: BoolArray) -> Regions:
    return {name: among & (values >= low) & (values < high) for name, (low, high) in bins.items()}
