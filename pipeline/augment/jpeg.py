"""JPEG bytes to pixels: libjpeg-turbo through simplejpeg, OpenCV where simplejpeg is not installed."""

from __future__ import annotations

import cv2
import numpy as np

try:
    import simplejpeg
except ImportError:
    simplejpeg = None

_END_OF_IMAGE = b"\xff\xd9"


def decode_jpeg(data: bytes) -> np.ndarray:
    """Decode one JPEG file.

    Args:
        data: the file's bytes; grey images become three equal channels.

    Returns:
        HxWx3 uint8 RGB.

    Raises:
        ValueError: the bytes are no JPEG, damaged or cut short.
    """
    if simplejpeg is None:
        return _decode_by_opencv(data)
    image: np.ndarray = simplejpeg.decode_jpeg(data, colorspace="RGB")
    return image


def _decode_by_opencv(data: bytes) -> np.ndarray:
    """As `decode_jpeg`; OpenCV fills the rest of a cut file with grey, so the end marker is checked first."""
    if not data.rstrip(b"\x00").endswith(_END_OF_IMAGE):
        raise ValueError("the JPEG is cut short: no end-of-image marker")
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    if image is None:
        raise ValueError("the bytes are no JPEG that OpenCV can decode")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
