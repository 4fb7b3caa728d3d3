"""Reading and writing pictures and label maps as plain files."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any, BinaryIO

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from mcjepa.data_prep.corpora.places import Location, read_bytes
from mcjepa.data_prep.errors import DataError

ByteArray = npt.NDArray[np.uint8]
BoolArray = npt.NDArray[np.bool_]

PNG_FAST = [cv2.IMWRITE_PNG_COMPRESSION, 1]


PNG = b"\x89PNG\r\n\x1a\n"
DAMAGE = (
    *(OSError, SyntaxError, ValueError, TypeError, EOFError, IndexError, struct.error, zlib.error),
    Image.DecompressionBombError,
)
"""What Pillow raises of a damaged picture, and of one that is larger than it opens."""


def open_picture(file: BinaryIO, formats: tuple[str, ...] | None = None) -> Image.Image:
    """Pillow's picture of a file, its header read; of a PNG with more text than Pillow reads, without that text.

    Raises:
        DAMAGE: it is no picture, damaged, or too large.
    """
    try:
        return Image.open(file, formats=formats)
    except ValueError as error:
        if "MAX_TEXT" not in str(error):
            raise
        file.seek(0)
        return Image.open(io.BytesIO(_without_png_text(file.read())), formats=formats)


def _without_png_text(data: bytes) -> bytes:
    """A PNG without its texts, which no picture needs; another file as it is."""
    if not data.startswith(PNG):
        return data
    kept, at = [data[:8]], 8
    while at + 12 <= len(data):
        size = 12 + int.from_bytes(data[at : at + 4], "big")
        if data[at + 4 : at + 8] not in (b"zTXt", b"iTXt", b"tEXt"):
            kept.append(data[at : at + size])
        at += size
    return b"".join(kept)


def picture_size(path: Location) -> tuple[int, int]:
    """Width and height of a picture, px, by its header.

    Raises:
        DataError: the file is absent or no picture.
    """
    data = read_bytes(path)
    try:
        with open_picture(io.BytesIO(data)) as image:
            return image.size
    except DAMAGE as error:
        raise DataError(f"{path} is no readable picture ({error}); expected an image; replace it") from error


def decode_pixels(data: bytes, how: int) -> npt.NDArray[Any] | None:
    """OpenCV's picture of an image file's bytes (`how`: its IMREAD flags); None where it makes none of them."""
    try:
        return cv2.imdecode(np.frombuffer(data, np.uint8), how) if data else None
    except cv2.error:  # of a header that promises more pixels than it takes
        return None


def decode_rgb(data: bytes, name: str) -> ByteArray:
    """Decode an image file's bytes to RGB (H, W, 3) uint8; grey becomes three equal channels.

    Raises:
        DataError: the bytes are no image that OpenCV can read.
    """
    image = decode_pixels(data, cv2.IMREAD_COLOR)
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
    data, pixels = read_bytes(path), None
    try:
        with Image.open(io.BytesIO(_without_png_text(data))) as image:  # texts may also follow the pixels
            mode = image.mode
            if mode in ("P", "L", "1"):
                pixels = np.array(image.convert("L") if mode == "1" else image, np.uint8)
    except DAMAGE as error:
        raise DataError(f"{path} is no readable label map ({error}); expected a PNG; replace it") from error
    if pixels is None:
        raise DataError(f"{path} has pixels of mode {mode}; expected palette or 8-bit grey")
    return pixels


def read_mask(path: Location) -> BoolArray:
    """Read a mask (H, W) bool: where any channel is above zero.

    Raises:
        DataError: the file is absent or no readable image.
    """
    image = decode_pixels(read_bytes(path), cv2.IMREAD_UNCHANGED)
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
