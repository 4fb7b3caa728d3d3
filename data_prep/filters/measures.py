"""What is measured on grey frames: the bars at their edges, and how far a pair of them moves."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import cv2
import numpy as np
import numpy.typing as npt

ByteArray = npt.NDArray[np.uint8]

MOST_MEAN_GREY = 16
"""Of a row of a bar; video black is 0 once decoded, coding and grain add a little."""
MOST_GREY = 32
"""Of any pixel of a bar: a dark scene has brighter spots."""


def border_fraction(grey: ByteArray) -> float:
    """Part of a frame's area that bars cover, 0 to 1: rows above and below first, then columns between them.

    Args:
        grey: (H, W).

    >>> frame = np.full((100, 200), 90, np.uint8)
    >>> frame[:10], frame[90:] = 0, 0
    >>> border_fraction(frame)
    0.2
    """
    height, width = grey.shape
    top, bottom = _bars(grey, axis=1)
    rows = height - top - bottom
    if not rows:
        return 1.0
    left, right = _bars(grey[top : height - bottom], axis=0)
    return round(1 - rows * (width - left - right) / (height * width), 9)


def _bars(grey: ByteArray, axis: int) -> tuple[int, int]:
    """Number of dark lines at the start and at the end; all and none when every line is dark."""
    mean = cv2.reduce(grey, axis, cv2.REDUCE_AVG, dtype=cv2.CV_32F).ravel()
    most = grey.max(axis=axis)
    dark: npt.NDArray[np.bool_] = (mean <= MOST_MEAN_GREY) & (most <= MOST_GREY)
    if dark.all():
        return len(dark), 0
    return int(np.argmin(dark)), int(np.argmin(dark[::-1]))


LEAST_SIDE_PX = 16
"""DIS refuses pictures of fewer than 12 px, or gives lengths that are no numbers."""


def flow_length_px(grey0: ByteArray, grey1: ByteArray) -> float | None:
    """Mean length of DIS's flow from one picture to the other, px of these pictures; None when they are too small.

    DIS (Kroeger et al. 2016, preset ULTRAFAST) follows motion up to about a fifth of the frame's width. What is
    faster, or another scene, gets a length that is too short; such a pair has a high cut score instead.

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
