"""How far a pair of frames moves: the mean length of the flow that OpenCV's DIS finds between them.

DIS (Kroeger et al. 2016, preset ULTRAFAST) follows motion up to about a fifth of the frame's width. What is faster, or
another scene, gets a length that is too short; such a pair has a high cut score instead.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import cv2
import numpy as np
import numpy.typing as npt

ByteArray = npt.NDArray[np.uint8]

LEAST_SIDE_PX = 16
"""DIS refuses pictures of fewer than 12 px, or gives lengths that are no numbers."""


def flow_length_px(grey0: ByteArray, grey1: ByteArray) -> float | None:
    """Mean length of the flow from one picture to the other, px of these pictures; None when they are too small.

    Args:
        grey0: Earlier picture (H, W).
        grey1: Later picture, of the same size.
    """
    if min(grey0.shape) < LEAST_SIDE_PX:
        return None
    with _one_thread():
        flow_HW2 = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST).calc(grey0, grey1, None)  # type: ignore[call-overload]
    return float(np.hypot(flow_HW2[..., 0], flow_HW2[..., 1]).mean(dtype=np.float64))


@contextmanager
def _one_thread() -> Iterator[None]:
    """DIS cuts the picture into one stripe a thread, which its result may depend on."""
    threads = cv2.getNumThreads()
    if threads != 1:
        cv2.setNumThreads(1)
    try:
        yield
    finally:
        if threads != 1:
            cv2.setNumThreads(threads)
