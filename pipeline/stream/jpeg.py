"""JPEG bytes to pixels: libjpeg-turbo through simplejpeg, OpenCV where simplejpeg is not installed.

A JPEG can be decoded at 1/2, 1/4 or 1/8 of its size: the inverse transform of fewer coefficients, which is a low-pass
filter and costs a fraction of the time. The sides of the result are rounded up.
"""

from __future__ import annotations

import cv2
import numpy as np

try:
    import simplejpeg
except ImportError:
    simplejpeg = None

REDUCTIONS = (8, 4, 2)
"""Divisors that have fast transforms, the largest first."""

_START, _END_OF_IMAGE = b"\xff\xd8", b"\xff\xd9"
_OPENCV_MODES = {
    1: cv2.IMREAD_COLOR,
    2: cv2.IMREAD_REDUCED_COLOR_2,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    8: cv2.IMREAD_REDUCED_COLOR_8,
}


def is_jpeg(data: bytes) -> bool:
    """Whether the bytes begin as a JPEG file does."""
    return data[:2] == _START


def jpeg_size(data: bytes) -> tuple[int, int]:
    """Height and width of a JPEG file, px, out of its header.

    Raises:
        ValueError: the bytes are no JPEG or end within the header.
    """
    if simplejpeg is None:
        height, width = _decode_by_opencv(data, 1).shape[:2]
        return height, width
    height, width, *_ = simplejpeg.decode_jpeg_header(data)
    return height, width


def decode_jpeg(data: bytes, reduction: int = 1) -> np.ndarray:
    """Decode one JPEG file.

    Args:
        data: the file's bytes; grey images become three equal channels.
        reduction: 1, or one of `REDUCTIONS`: divisor of both sides.

    Returns:
        H x W x 3 uint8 RGB; with a reduction r, ceil(H / r) x ceil(W / r) x 3.

    Raises:
        ValueError: the bytes are no JPEG, damaged or cut short.
    """
    if simplejpeg is None:
        return _decode_by_opencv(data, reduction)
    if reduction == 1:
        image: np.ndarray = simplejpeg.decode_jpeg(data, colorspace="RGB")
        return image
    height, width = (-(-side // reduction) for side in jpeg_size(data))
    # The smallest of libjpeg-turbo's scales that leaves both sides: one of its scales has exactly these.
    image = simplejpeg.decode_jpeg(data, colorspace="RGB", min_height=height, min_width=width)
    return image


def _decode_by_opencv(data: bytes, reduction: int) -> np.ndarray:
    """As `decode_jpeg`; OpenCV fills the rest of a cut file with grey, so the end marker is checked first."""
    if not data.rstrip(b"\x00").endswith(_END_OF_IMAGE):
        raise ValueError("the JPEG is cut short: no end-of-image marker")
    image = cv2.imdecode(np.frombuffer(data, np.uint8), _OPENCV_MODES[reduction])
    if image is None:
        raise ValueError("the bytes are no JPEG that OpenCV can decode")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
