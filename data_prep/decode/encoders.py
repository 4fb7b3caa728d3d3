"""Resizing and encoding of stored frames: JPEG by simplejpeg, of planes too; WebP and PNG by OpenCV.

The same pixels and settings give the same bytes with the same versions: they are in the manifest.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import simplejpeg

from mcjepa.data_prep.decode.video.planes import Planes, even_sided
from mcjepa.data_prep.settings import DecoderName, EncodingName

ByteArray = npt.NDArray[np.uint8]

SUFFIXES: dict[EncodingName, str] = {"jpeg": "jpg", "webp": "webp", "png": "png"}
"""Encoding to the suffix of its files in a shard."""
PNG_END = b"IEND\xaeB`\x82"
PNG_LEVEL = 3  # a tenth larger than level 9, ten times as fast


def encoder_version(encoding: EncodingName, decoder: DecoderName = "decord") -> str:
    """Name, version and fixed parameters of what resizes and encodes: stored in the manifest, part of the plan.

    Args:
        encoding: Format of the files.
        decoder: Of videos: one that keeps planes resizes them too.
    """
    codec = f"opencv {cv2.__version__}"
    if encoding == "jpeg":
        codec = f"simplejpeg {version('simplejpeg')} 4:2:0"
    elif encoding == "png":
        codec = f"{codec} level {PNG_LEVEL}"
    resize = f"area resize by opencv {cv2.__version__}, of what is large from 1/2, 1/4 or 1/8"
    if decoder == "pyav-planes" and encoding == "jpeg":
        resize = f"{resize}; planes of videos by swscale, to BT.601 in full range"
    return f"{encoding} by {codec}; {resize}"


def encode(picture: ByteArray | Planes, encoding: EncodingName, quality: int) -> bytes:
    """Encode a picture.

    Args:
        picture: RGB (H, W, 3), or planes, which only JPEG takes.
        encoding: Format of the file.
        quality: Of JPEG (4:2:0 chroma) and WebP, 1 to 100; PNG is lossless.

    Raises:
        MemoryError: the encoder gave up.
    """
    if isinstance(picture, Planes):
        assert encoding == "jpeg"  # settings allow no other
        # libjpeg takes luma to the end of each block of chroma: what lies behind an odd width or height must be known.
        y = even_sided(picture.y)[: picture.y.shape[0], : picture.y.shape[1]]
        return _jpeg(lambda: simplejpeg.encode_jpeg_yuv_planes(y, picture.cb, picture.cr, quality, fastdct=False))
    if encoding == "jpeg":
        rgb = np.ascontiguousarray(picture)
        return _jpeg(lambda: simplejpeg.encode_jpeg(rgb, quality, "RGB", "420", fastdct=False))
    bgr = np.ascontiguousarray(picture[:, :, ::-1])
    if encoding == "png":
        return encode_png(bgr)
    return _by_opencv(".webp", bgr, cv2.IMWRITE_WEBP_QUALITY, quality)


def _jpeg(encoded: Callable[[], Any]) -> bytes:
    try:
        return bytes(encoded())
    except ValueError as error:
        if "memory" in str(error):
            raise MemoryError(str(error)) from error
        raise


def encode_png(pixels: ByteArray) -> bytes:
    """Encode grey (H, W) or BGR (H, W, 3), lossless.

    Raises:
        MemoryError: the encoder gave up.
    """
    data = _by_opencv(".png", pixels, cv2.IMWRITE_PNG_COMPRESSION, PNG_LEVEL)
    if not data.endswith(PNG_END):
        raise MemoryError("OpenCV's PNG ends too early")
    return data


def _by_opencv(suffix: str, pixels: ByteArray, flag: int, value: int) -> bytes:
    """OpenCV says of an encoder without memory that nothing was encoded, raises an error of its own, or says nothing.

    Raises:
        MemoryError: for each of them: pixels and settings are always good ones here.
    """
    try:
        encoded, data = cv2.imencode(suffix, pixels, [flag, value])
    except cv2.error as error:
        raise MemoryError(f"OpenCV cannot encode {suffix}: {error}") from error
    if not encoded:
        raise MemoryError(f"OpenCV encoded no {suffix}")
    return data.tobytes()


def coarse_fraction(short_side: int, wanted: int) -> int:
    """Greatest of 8, 4 and 2 by which a picture may be divided first so that twice the wanted short side remains, or 1.

    >>> coarse_fraction(3000, 256), coarse_fraction(1024, 256), coarse_fraction(1023, 256), coarse_fraction(9999, 0)
    (4, 2, 1, 1)
    """
    return next((n for n in (8, 4, 2) if wanted and short_side >= 2 * n * wanted), 1)


def stored_size(width: int, height: int, short_side_px: int) -> tuple[int, int]:
    """Width and height of a picture of this size as it is stored: never enlarged, px.

    >>> stored_size(1280, 720, 256), stored_size(176, 144, 256)
    ((455, 256), (176, 144))
    """
    scale = short_side_px / min(height, width)
    return (width, height) if scale >= 1 else (max(1, round(width * scale)), max(1, round(height * scale)))


def shrink(rgb: ByteArray, short_side_px: int, size: tuple[int, int] | None = None) -> ByteArray:
    """Scale (H, W, 3) down so that its short side is `short_side_px`; a smaller image stays as it is.

    Means of whole blocks come first where they divide the picture and twice the wanted size remains: twice as fast.

    Args:
        rgb: The picture.
        short_side_px: Of the result, px.
        size: Width and height of the whole picture where `rgb` was decoded at a fraction of them.
    """
    size = size or (rgb.shape[1], rgb.shape[0])
    if min(size) <= short_side_px:
        return rgb
    stored = stored_size(*size, short_side_px)
    across, down = rgb.shape[1], rgb.shape[0]
    block = coarse_fraction(min(across, down), short_side_px)
    if block > 1 and across % block == down % block == 0:
        rgb = np.asarray(cv2.resize(rgb, (across // block, down // block), interpolation=cv2.INTER_AREA), np.uint8)
    return np.asarray(cv2.resize(rgb, stored, interpolation=cv2.INTER_AREA), np.uint8)
