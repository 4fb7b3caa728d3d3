"""Flow methods that need no weights, on grey images at full resolution: the bars that a model has to beat."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray

from mcjepa.evals.flow.settings import BASELINES

FlowMethod = Callable[[NDArray[np.uint8], NDArray[np.uint8]], NDArray[np.float32]]
"""Two RGB frames (H, W, 3) uint8 to the flow (H, W, 2) float32 from the first to the second, px, (right,
down)."""

_DIS_PRESETS = {
    "dis-ultrafast": cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST,
    "dis-fast": cv2.DISOPTICAL_FLOW_PRESET_FAST,
    "dis-medium": cv2.DISOPTICAL_FLOW_PRESET_MEDIUM,
}

FARNEBACK = {
    "pyr_scale": 0.5,
    "levels": 3,
    "winsize": 15,
    "iterations": 3,
    "poly_n": 7,
    "poly_sigma": 1.5,
    "flags": 0,
}
"""OpenCV's documented settings, with the 7-pixel neighbourhood and its recommended sigma of 1.5."""


def baseline_method(name: str) -> FlowMethod:
    """The method of that name; each call of the result is independent of the ones before.

    Raises:
        ValueError: there is no such baseline.
    """
    if name == "zero":
        return _zero_flow
    if name == "farneback":
        return _farneback
    if name in _DIS_PRESETS:
        preset = _DIS_PRESETS[name]
        return lambda frame0, frame1: _dis(frame0, frame1, preset)
    raise ValueError(f"no flow baseline named {name!r}; expected one of {list(BASELINES)}; change flow.baselines")


def _grey(frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.asarray(cv2.cvtColor(np.ascontiguousarray(frame), cv2.COLOR_RGB2GRAY), np.uint8)


def _zero_flow(frame0: NDArray[np.uint8], frame1: NDArray[np.uint8]) -> NDArray[np.float32]:
    return np.zeros((*frame0.shape[:2], 2), np.float32)


def _farneback(frame0: NDArray[np.uint8], frame1: NDArray[np.uint8]) -> NDArray[np.float32]:
    flow = cv2.calcOpticalFlowFarneback(_grey(frame0), _grey(frame1), None, **FARNEBACK)  # type: ignore[call-overload]
    return np.asarray(flow, np.float32)


def _dis(frame0: NDArray[np.uint8], frame1: NDArray[np.uint8], preset: int) -> NDArray[np.float32]:
    # A given flow, even of zeros, would be taken as the start; and a fresh object keeps pairs independent.
    flow = cv2.DISOpticalFlow.create(preset).calc(_grey(frame0), _grey(frame1), None)  # type: ignore[call-overload]
    return np.asarray(flow, np.float32)
