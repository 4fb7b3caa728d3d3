"""Reading and writing pictures and label maps as plain files."""

from __future__ import annotations

import io
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from mcjepa.data_prep.corpora.places import Location, read_bytes
from mcjepa.data_prep.errors import DataError

ByteArray = npt.NDArray[np.uint8]
BoolArray = npt.NDArray[np.bool_]

PNG_FAST = [cv2.IMWRITE_PNG_COMPRESSION, 1]


def decode_rgb(data: bytes, name: str) -> ByteArray:
    """Decode an image file's bytes to RGB (H, W, 3) uint8; grey becomes three equal channels.

    Raises:
        DataError: the bytes are no image that OpenCV can read.
    """
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) if data else None
    if image is None:
        raise DataError(
            f"{name} ({len(data)} bytes) is not a readable image; expected JPEG, PNG or the like; remove it"
        )
    return np.ascontiguousarray(image[:, :, ::-1], np.uint8)


def read_rgb(path: Location) -> ByteArray:
    """Read an image file as RGB (H, W, 3) uint8.

    Raises:
        DataError: the file is absent or no readable image.
    """
    return decode_rgb(read_bytes(path), str(path))


def read_ids(path: Location) -> ByteArray:
    """Read a label map (H, W) uint8: the palette index or the grey value of every pixel.

    Raises:
        DataError: absent, unreadable, or neither palette nor grey 8 bit.
    """
    try:
        with Image.open(io.BytesIO(read_bytes(path))) as image:
            if image.mode not in ("P", "L", "1"):
                raise DataError(f"{path} has pixels of mode {image.mode}; expected palette or 8-bit grey")
            return np.array(image.convert("L") if image.mode == "1" else image, np.uint8)
    except (OSError, SyntaxError) as error:
        raise DataError(f"{path} is no readable label map ({error}); expected a PNG; replace it") from error


def read_mask(path: Location) -> BoolArray:
    """Read a mask (H, W) bool: where any channel is above zero.

    Raises:
        DataError: the file is absent or no readable image.
    """
    data = read_bytes(path)
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED) if data else None
    if image is None:
        raise DataError(f"{path} is no readable mask; expected a PNG; replace it")
    return np.asarray(image > 0 if image.ndim == 2 else (image[:, :, :3] > 0).any(axis=2), np.bool_)


def write_png(path: Path, image: ByteArray) -> None:
    """Write RGB (H, W, 3) or grey (H, W) as PNG."""
    pixels = image[:, :, ::-1] if image.ndim == 3 else image
    path.write_bytes(cv2.imencode(".png", np.ascontiguousarray(pixels), PNG_FAST)[1].tobytes())


def write_id_png(path: Path, ids: ByteArray) -> None:
    """Write a label map (H, W) as palette PNG with the colours of Pascal VOC and DAVIS."""
    image = Image.fromarray(ids)
    image.putpalette(voc_palette().tobytes())
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    path.write_bytes(buffer.getvalue())


def voc_palette() -> ByteArray:
    """The (256, 3) colours of Pascal VOC: bits 0, 3, 6 of the id spread over the high bits of red, and so on.

    >>> voc_palette()[:3].tolist()
    [[0, 0, 0], [128, 0, 0], [0, 128, 0]]
    """
    ids = np.arange(256)
    colours = np.zeros((256, 3), np.uint8)
    for bit in range(8):
        for channel in range(3):
            colours[:, channel] |= (((ids >> (3 * bit + channel)) & 1) << (7 - bit)).astype(np.uint8)
    return colours
