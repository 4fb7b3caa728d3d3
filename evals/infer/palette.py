"""Colours that mean the same in every frame of a clip: the length of flow, and the features' main directions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from mcjepa.evals.pictures import flow_picture, flow_scale

Picture = NDArray[np.uint8]
BAND_ROWS = 256


@dataclass(frozen=True)
class FeatureBasis:
    """Three directions of feature space and the range of the clip along them."""

    mean_C: NDArray[np.float64]
    axes_C3: NDArray[np.float64]
    low_3: NDArray[np.float64]
    high_3: NDArray[np.float64]

    def picture(self, map_Chw: NDArray, size: tuple[int, int]) -> Picture:
        """The features as colours, enlarged to (H, W) with smooth transitions: (H, W, 3) uint8 RGB."""
        cells = np.moveaxis(np.asarray(map_Chw, np.float64), 0, -1) - self.mean_C
        span = np.maximum(self.high_3 - self.low_3, 1e-12)
        scaled = np.clip((cells @ self.axes_C3 - self.low_3) / span, 0.0, 1.0).astype(np.float32)
        large = cv2.resize(scaled, (size[1], size[0]), interpolation=cv2.INTER_LINEAR)
        return np.rint(np.asarray(large) * 255.0).astype(np.uint8)


def feature_basis(maps_Chw: Sequence[NDArray]) -> FeatureBasis:
    """The main directions of some frames' features, (C, h, w) each; the 1st and 99th percentile are dark and bright.

    Signs are fixed by each direction's largest coefficient, so that runs agree. Fewer than three channels leave
    colours out.
    """
    cells = np.concatenate([np.asarray(each, np.float64).reshape(len(each), -1).T for each in maps_Chw])
    mean = cells.mean(0)
    cells = cells - mean
    _, vectors = np.linalg.eigh(cells.T @ cells)
    axes = vectors[:, ::-1][:, :3]
    axes = axes * np.sign(axes[np.abs(axes).argmax(0), np.arange(axes.shape[1])])
    axes = np.pad(axes, ((0, 0), (0, 3 - axes.shape[1])))
    low, high = np.percentile(cells @ axes, (1, 99), axis=0)
    return FeatureBasis(mean, axes, low, high)


@dataclass(frozen=True)
class Palette:
    """Colours of one clip; what is not drawn is None."""

    flow_px: float
    """Length of flow with full colour, px."""

    features: FeatureBasis | None

    def flow(self, flow_HW2: NDArray) -> Picture:
        """Flow as Middlebury colours, (H, W, 3) uint8 RGB; drawn in bands, as drawing takes 100 bytes a pixel."""
        bands = [flow_HW2[top : top + BAND_ROWS] for top in range(0, len(flow_HW2), BAND_ROWS)]
        return np.concatenate([flow_picture(band, self.flow_px) for band in bands])


def longest_flow(flows_HW2: Sequence[NDArray]) -> float:
    """The 99th percentile of the lengths of the pair that has most, px, at least 1."""
    return max((flow_scale(flow) for flow in flows_HW2), default=1.0)
