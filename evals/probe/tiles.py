"""Where things lie in an image: the size it is resized to, and the overlapping windows of the test.

Both rules are mmsegmentation's (`Resize` with `keep_ratio`, `slide_inference`). Sizes are (height, width) in px.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

Size = tuple[int, int]
Box = tuple[int, int, int, int]
"""Top, left, height, width, px."""


def fitted_size(size: Size, limits: Size, factor: float = 1.0) -> Size:
    """The size at which an image fits into limits, its shape kept; unchanged without limits.

    Args:
        size: of the image.
        limits: longest and shortest side, px, or (0, 0).
        factor: of both limits.

    >>> fitted_size((375, 500), (2048, 512)), fitted_size((375, 500), (0, 0)), fitted_size((100, 1000), (2048, 512))
    ((512, 683), (375, 500), (205, 2048))
    """
    if limits == (0, 0):
        scale = factor
    else:
        longest, shortest = (int(limit * factor + 0.5) for limit in limits)
        scale = min(longest / max(size), shortest / min(size))
    height, width = (max(1, int(side * scale + 0.5)) for side in size)
    return height, width


def resize_image(image_HW3: NDArray[np.uint8], size: Size) -> NDArray[np.uint8]:
    """An image brought to a size, bilinear; the image itself if it has that size."""
    if image_HW3.shape[:2] == size:
        return image_HW3
    return np.asarray(cv2.resize(image_HW3, size[::-1], interpolation=cv2.INTER_LINEAR), np.uint8)


def resize_labels(labels_HW: NDArray[np.uint8], size: Size) -> NDArray[np.uint8]:
    """A label map brought to a size, nearest pixel."""
    if labels_HW.shape == size:
        return labels_HW
    return np.asarray(cv2.resize(labels_HW, size[::-1], interpolation=cv2.INTER_NEAREST), np.uint8)


def window_boxes(size: Size, window: Size, stride: Size) -> list[Box]:
    """Windows that cover an image, row by row; those at the far edges are moved back inside.

    Args:
        size: of the image.
        window: of each window; (0, 0) = the whole image; what is larger than the image is cut to it.
        stride: from one to the next; (0, 0) = the window.

    >>> window_boxes((512, 683), (512, 512), (341, 341))
    [(0, 0, 512, 512), (0, 171, 512, 512)]
    >>> window_boxes((300, 400), (0, 0), (0, 0))
    [(0, 0, 300, 400)]
    """
    if window == (0, 0):
        return [(0, 0, *size)]
    starts = []
    for side, reach, step in zip(size, window, stride if stride != (0, 0) else window, strict=True):
        count = max(side - reach + step - 1, 0) // step + 1
        starts.append([max(min(n * step + reach, side) - reach, 0) for n in range(count)])
    height, width = min(window[0], size[0]), min(window[1], size[1])
    return [(top, left, height, width) for top in starts[0] for left in starts[1]]
