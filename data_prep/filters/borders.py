"""Letterboxes and pillarboxes: dark, uniform rows and columns at the edges of a frame."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

ByteArray = npt.NDArray[np.uint8]
BoolArray = npt.NDArray[np.bool_]

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
    dark: BoolArray = (mean <= MOST_MEAN_GREY) & (most <= MOST_GREY)
    if dark.all():
        return len(dark), 0
    return int(np.argmin(dark)), int(np.argmin(dark[::-1]))
