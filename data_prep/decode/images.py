"""Reading foreign pictures as RGB: by their header first, so that a decompression bomb is refused, not expanded.

Rules: 16 bits become 8 by their high byte; grey, palette and 1-bit pictures become three channels; an alpha channel
is left out; CMYK is turned into RGB as Pillow does; a picture that its EXIF orientation turns comes upright. A
picture that is cut off or damaged is refused, never filled up, and so is one with several frames or pages.
"""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import Image, UnidentifiedImageError

from mcjepa.data_prep.decode.failures import DecodeFailure, require_megapixels
from mcjepa.data_prep.decode.kinds import HEAD_BYTES, describe_content
from mcjepa.data_prep.decode.orientation import EXIF, UPRIGHT

ByteArray = npt.NDArray[np.uint8]

# None of these starts another program, as PostScript would.
FORMATS = ("JPEG", "PNG", "WEBP", "PPM", "BMP", "TIFF", "GIF", "AVIF", "JPEG2000")
ORIENTATION_TAG = 0x0112
DAMAGE = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error)


def read_image(path: Path, max_megapixels: float) -> ByteArray:
    """Read a picture as RGB (H, W, 3) uint8, upright.

    Raises:
        DecodeFailure: no readable picture, not a single one, or larger than allowed.
    """
    with _open(path) as file, _open_header(file) as image:
        require_megapixels(*image.size, max_megapixels)
        try:
            _require_one_frame(image)
            if image.format in ("JPEG", "MPO") and image.mode in ("RGB", "L"):
                pixels = _decode_jpeg(file, image)
            else:
                image.load()
                pixels = _to_rgb(image)
            return _upright(pixels, image)
        except DAMAGE as error:
            raise DecodeFailure(f"cut off or damaged: {error}") from error


def require_image_size(path: Path, max_megapixels: float) -> None:
    """Refuse a picture by its header alone.

    Raises:
        DecodeFailure: no picture, or larger than allowed.
    """
    with _open(path) as file, _open_header(file) as image:
        require_megapixels(*image.size, max_megapixels)


def _open(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise DecodeFailure(f"cannot be read ({error.strerror})") from error


def _open_header(file: BinaryIO) -> Image.Image:
    """The picture, of which only the header has been read."""
    head = file.read(HEAD_BYTES)
    if not head:
        raise DecodeFailure("the file is empty")
    kind = describe_content(head)
    try:
        return Image.open(file, formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise DecodeFailure(f"too large to be opened: {error}") from error
    except UnidentifiedImageError:
        found = f"{kind}, but it is damaged" if kind.endswith("image") else f"{kind}, not an image"
        raise DecodeFailure(f"holds {found}") from None
    except DAMAGE as error:
        raise DecodeFailure(f"cut off or damaged: {error}") from error


def _require_one_frame(image: Image.Image) -> None:
    """Refuse animations and documents; the second picture of an MPO is another view or a preview."""
    frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
    if frames > 1:
        what = f"{frames} pages" if image.format == "TIFF" else f"an animated image of {frames} frames"
        raise DecodeFailure(f"holds {what}, not a still image")


def _decode_jpeg(file: BinaryIO, image: Image.Image) -> ByteArray:
    """By simplejpeg, twice as fast as Pillow; what it warns of is judged by Pillow, which knows harmless cases."""
    file.seek(0)
    try:
        pixels = simplejpeg.decode_jpeg(file.read(), "RGB", fastdct=False, fastupsample=False)
    except ValueError as error:
        if "premature end" in str(error).lower():  # Pillow leaves grey where data is missing in the middle
            raise
        file.seek(0)
        image.load()
        return _to_rgb(image)
    return np.asarray(pixels, np.uint8)


def _to_rgb(image: Image.Image) -> ByteArray:
    if image.mode.startswith("I;16") or image.mode == "I":
        grey = np.asarray(image)
        if grey.min() < 0 or grey.max() > 0xFFFF:
            raise DecodeFailure("has 32-bit pixels; 8 and 16 bit are known")
        return np.repeat((grey >> 8).astype(np.uint8)[..., None], 3, axis=2)
    if image.mode == "F":
        raise DecodeFailure("has floating point pixels; 8 and 16 bit are known")
    return np.asarray(image.convert("RGB"), np.uint8)


def _upright(pixels: ByteArray, image: Image.Image) -> ByteArray:
    """Turn a picture by its EXIF orientation; an unknown one turns nothing."""
    tag = image.getexif().get(ORIENTATION_TAG, 1) if "exif" in image.info else 1
    return EXIF.get(tag, UPRIGHT).apply(pixels)
