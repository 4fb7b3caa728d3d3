"""Optical flow errors by region, summed so that a set's score is the mean over all of its pixels.

For a pixel with true flow g and estimate f (both (u, v) in px, u to the right, v downwards):

    EPE = |f - g|        over 3 px: EPE > 3        outlier (KITTI's Fl): EPE > 3 and EPE > 0.05 |g|

Regions, the parts of a frame that the benchmarks define:

* all: every pixel whose true flow is known and valid.
* s0_10, s10_40, s40_plus (Sintel): by the length of the true flow, px.
* matched, unmatched (Sintel): visible in the second frame, or not: marked by the occlusion map, or outside of the
  frame by its true flow. KITTI's noc is "matched".
* matched_by_map, unmatched_by_map: by the occlusion map alone. Sintel's maps mark some of the pixels that leave the
  frame and not the others, frame by frame another part (92 %, 88 %, 35 %, 2 % and 1 % of them on five frames looked
  at), so that the two ways differ.
* d0_10, d10_60, d60_140 (Sintel): matched pixels by the distance to the nearest occlusion boundary. The benchmark's
  program is not public; taken is the Euclidean distance, px, to the nearest pixel that the occlusion map marks, so a
  pixel right beside it has distance 1.
* bg, fg (KITTI 2015): outside and inside of independently moving objects.

Source: the KITTI devkit's evaluate_flow.cpp and the Sintel benchmark's definitions. Legend: H W image, N valid pixels,
2 = (u, v).
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

OUTLIER_PX = 3.0
OUTLIER_RELATIVE = 0.05
FL_REGIONS = ("matched", "bg", "fg", "matched_bg", "matched_fg")
"""Regions that KITTI gives the share of outliers for, beside all pixels."""


@dataclass(frozen=True)
class RegionSums:
    """Sums over the pixels of one region; adding two of them merges their pixels."""

    pixels: int = 0
    """Pixels that were measured."""

    epe_px: float = 0.0
    """Sum of the end-point errors, px."""

    over_3px: int = 0
    """Pixels with an error above 3 px."""

    outliers: int = 0
    """Pixels with an error above 3 px and above 5 % of the true length (KITTI's Fl)."""

    def __add__(self, other: RegionSums) -> RegionSums:
        return RegionSums(
            self.pixels + other.pixels,
            self.epe_px + other.epe_px,
            self.over_3px + other.over_3px,
            self.outliers + other.outliers,
        )


FlowSums = dict[str, RegionSums]
"""Region name to its sums; "all" is always there."""


def endpoint_error(estimate_HW2: NDArray, truth_HW2: NDArray) -> NDArray[np.float64]:
    """Distance between estimate and truth at every pixel.

    >>> float(endpoint_error(np.array([[[3.0, 4.0]]]), np.zeros((1, 1, 2)))[0, 0])
    5.0

    Returns:
        (H, W) float64, px.

    Raises:
        ValueError: the two differ in shape.
    """
    if estimate_HW2.shape != truth_HW2.shape or truth_HW2.shape[-1] != 2:
        raise ValueError(
            f"estimated flow has shape {estimate_HW2.shape}, ground truth {truth_HW2.shape}; expected the "
            "same (H, W, 2); resize the estimate to the ground truth's size and scale its "
            "values before scoring"
        )
    return np.linalg.norm(np.asarray(estimate_HW2, np.float64) - np.asarray(truth_HW2, np.float64), axis=-1)


def measure_regions(
    estimate_HW2: NDArray, truth_HW2: NDArray, valid_HW: NDArray[np.bool_], regions: Regions
) -> FlowSums:
    """Errors of one pair, by region.

    Args:
        estimate_HW2: estimated flow, px; a value that is not finite at a valid pixel makes its regions' EPE
            non-finite and counts as an outlier: it is never left out.
        truth_HW2: true flow, px; values at invalid pixels are ignored.
        valid_HW: True where the truth is known, N pixels.
        regions: region name to which of these N pixels it has.

    Raises:
        ValueError: estimate and truth differ in shape.
    """
    valid = np.asarray(valid_HW, bool)
    error = endpoint_error(estimate_HW2, truth_HW2)[valid]
    length = np.linalg.norm(np.asarray(truth_HW2, np.float64)[valid], axis=-1)
    return {name: _sum_region(error[inside], length[inside]) for name, inside in regions.items()}


def _sum_region(error: NDArray[np.float64], length: NDArray[np.float64]) -> RegionSums:
    over = ~(error <= OUTLIER_PX)
    outlier = over & ~(error <= OUTLIER_RELATIVE * length)
    return RegionSums(int(error.size), float(error.sum()), int(over.sum()), int(outlier.sum()))


def add_sums(first: FlowSums, second: FlowSums) -> FlowSums:
    """Merges the regions of two results; a region that only one of them has is kept."""
    names = [*first, *(name for name in second if name not in first)]
    return {name: first.get(name, RegionSums()) + second.get(name, RegionSums()) for name in names}


def summarise(sums: FlowSums) -> dict[str, float]:
    """Means over pixels: `epe` (px), `over_3px`, `fl_all` (%), and `epe_REGION` for every region with pixels.

    `over_3px_matched` (KITTI 2012's Out-Noc) and `fl_REGION` for the regions of FL_REGIONS are given too where there
    are such pixels. With no valid pixel at all the three main numbers are NaN, never 0.
    """
    total = sums.get("all", RegionSums())
    scores = {
        "epe": _ratio(total.epe_px, total.pixels),
        "over_3px": 100.0 * _ratio(total.over_3px, total.pixels),
        "fl_all": 100.0 * _ratio(total.outliers, total.pixels),
    }
    known = {name: region for name, region in sums.items() if name != "all" and region.pixels}
    scores |= {f"epe_{name}": _ratio(region.epe_px, region.pixels) for name, region in known.items()}
    if "matched" in known:
        scores["over_3px_matched"] = 100.0 * _ratio(known["matched"].over_3px, known["matched"].pixels)
    for name in FL_REGIONS:
        if name in known:
            scores[f"fl_{name}"] = 100.0 * _ratio(known[name].outliers, known[name].pixels)
    return scores


def _ratio(numerator: float, denominator: int) -> float:
    return numerator / denominator if denominator else float("nan")


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
        if not sparse:
            regions |= {"matched_by_map": ~occluded[valid], "unmatched_by_map": occluded[valid]}
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
