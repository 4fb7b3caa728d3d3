"""Resizing and JPEG encoding of stored frames: simplejpeg, or OpenCV where it is not installed."""

from __future__ import annotations

from importlib.metadata import version

import cv2
import numpy as np
import numpy.typing as npt

try:
    import simplejpeg
except ImportError:  # no wheel for this machine
    simplejpeg = None

ByteArray = npt.NDArray[np.uint8]


def encoder_version() -> str:
    """Name and version of what resizes and encodes: stored in the manifest, part of the plan."""
    codec = f"simplejpeg {version('simplejpeg')}" if simplejpeg else "opencv"
    return f"{codec}; area resize by opencv {cv2.__version__}"


def encode_jpeg(rgb: ByteArray, quality: int) -> bytes:
    """Encode RGB (H, W, 3) as JPEG with 4:2:0 chroma."""
    if simplejpeg:
        pixels = np.ascontiguousarray(rgb)
        return bytes(simplejpeg.encode_jpeg(pixels, quality, "RGB", "420", fastdct=False))
    return cv2.imencode(".jpg", np.ascontiguousarray(rgb[:, :, ::-1]), [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()


def shrink(rgb: ByteArray, short_side_px: int) -> ByteArray:
    """Scale (H, W, 3) down so that its short side is `short_side_px`; a smaller image stays as it is."""
    height, width = rgb.shape[:2]
    scale = short_side_px / min(height, width)
    if scale >= 1:
        return rgb
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(cv2.resize(rgb, size, interpolation=cv2.INTER_AREA), np.uint8)
