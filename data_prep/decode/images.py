"""Reading foreign pictures as RGB: by their header first, so that a decompression bomb is refused, not expanded.

Rules: 16 bits become 8 by their high byte; grey, palette and 1-bit pictures become three channels; an alpha channel
is left out; colours with a profile become sRGB; CMYK without one is turned into RGB as Pillow does; a picture that its
EXIF orientation turns comes upright. A picture that is cut off or damaged is refused as far as its decoder notices,
never filled up, and so is one with several frames or pages. One rule for tails: a JPEG of one scan may lack its end
mark when all its data are there.

A JPEG that is to be shrunk is decoded at a half, a quarter or an eighth of its size, in its DCT, while twice the wanted
size remains; all of its data are read all the same.
"""

from __future__ import annotations

import functools
import io
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import Image, UnidentifiedImageError

from mcjepa.data_prep.corpora.image_files import open_picture
from mcjepa.data_prep.decode.colour import changes_pixels, coded_colours, to_srgb
from mcjepa.data_prep.decode.encoders import coarse_fraction
from mcjepa.data_prep.decode.kinds import (
    HEAD_BYTES,
    describe_content,
    explain_unreadable,
    plain_jpeg_size,
    tells_of_damage,
    with_end_of_jpeg,
)
from mcjepa.data_prep.decode.messages import DecodeFailure, Unwanted, require_megapixels
from mcjepa.data_prep.decode.orientation import EXIF, UPRIGHT, Orientation

ByteArray = npt.NDArray[np.uint8]

# None of these starts another program, as PostScript would.
FORMATS = ("JPEG", "PNG", "WEBP", "PPM", "BMP", "TIFF", "GIF", "AVIF", "JPEG2000")
ORIENTATION_TAG = 0x0112
PLAIN_BYTES = 1 << 14
"""Where a plain JPEG's picture has begun."""
COLR_BYTES = 1 << 16
"""Where the parts of an AVIF, HEIF or PNG file end that say what its colours are."""
DAMAGE = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error)


@dataclass(frozen=True)
class Picture:
    """A picture, upright, as far as it had to be decoded."""

    rgb: ByteArray
    """(H, W, 3)."""
    size: tuple[int, int]
    """Width and height of the whole picture, px."""


def read_image(path: Path, max_megapixels: float) -> ByteArray:
    """Read a picture as RGB (H, W, 3) uint8, upright; raises what `read_picture` does."""
    return read_picture(path, max_megapixels).rgb


def read_picture(path: Path, max_megapixels: float, short_side_px: int = 0) -> Picture:
    """Read a picture that will be shrunk.

    Args:
        path: The file.
        max_megapixels: Most pixels, 10^6.
        short_side_px: What its short side will become: at least twice of it is decoded, or all; 0: all.

    Raises:
        DecodeFailure: no readable picture, not a single one, or larger than allowed.
        Unwanted: an HDR picture.
    """
    with _open(path) as file:
        if size := plain_jpeg_size(file.read(PLAIN_BYTES)):
            require_megapixels(*size, max_megapixels)
            try:
                return Picture(_decode_jpeg(file, "RGB", size, None, short_side_px), size)
            except DAMAGE as error:
                raise DecodeFailure(f"cut off or damaged: {error}") from error
        file.seek(0)
        return _read_judged(file, max_megapixels, short_side_px)


def _read_judged(file: BinaryIO, max_megapixels: float, short_side_px: int) -> Picture:
    """What Pillow has to look at first."""
    with _open_header(file) as image:
        require_megapixels(*image.size, max_megapixels)
        try:
            _require_one_frame(image)
            profile = image.info.get("icc_profile")
            if image.format in ("JPEG", "MPO"):
                mode = "L with a profile" if image.mode == "L" and profile else image.mode
                pixels = _decode_jpeg(file, mode, image.size, profile, short_side_px)
            else:
                image.load()
                pixels = _to_rgb(image, profile)
            turn = _orientation(image)
            return Picture(turn.apply(pixels), image.size[::-1] if turn.transposed else image.size)
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
    formats = (*FORMATS, _heif_format()) if kind == "a HEIF image" else FORMATS
    if kind in ("a HEIF image", "an AVIF image", "a PNG image") and (
        colours := coded_colours(head + file.read(COLR_BYTES))
    ):
        raise Unwanted(f"{colours}: stored as they are its colours would be wrong")
    try:
        return open_picture(file, formats)
    except Image.DecompressionBombError as error:
        raise DecodeFailure(f"too large to be opened: {error}") from error
    except UnidentifiedImageError:
        file.seek(0)
        known = kind.endswith("image")
        found = f"{kind}, {explain_unreadable(file.read(), kind)}" if known else f"{kind}, not an image"
        raise DecodeFailure(f"holds {found}") from None
    except DAMAGE as error:
        raise DecodeFailure(f"cut off or damaged: {error}") from error


@functools.cache
def _heif_format() -> str:
    """Name of the format that the extra `heif` adds to Pillow.

    Raises:
        DecodeFailure: it is not installed.
    """
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        raise DecodeFailure("holds a HEIF image; it is read with the extra mcjepa[heif] only") from None
    register_heif_opener()
    return "HEIF"


def _require_one_frame(image: Image.Image) -> None:
    """Refuse animations and documents; the second picture of an MPO is another view or a preview."""
    frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
    if frames > 1:
        what = f"{frames} pages" if image.format == "TIFF" else f"an animated image of {frames} frames"
        raise DecodeFailure(f"holds {what}, not a still image")


def _decode_jpeg(
    file: BinaryIO, mode: str, size: tuple[int, int], profile: bytes | None, short_side_px: int
) -> ByteArray:
    """By simplejpeg, twice as fast as Pillow; what it warns of is judged by Pillow, which knows harmless cases."""
    file.seek(0)
    data = with_end_of_jpeg(file.read())
    if mode not in ("RGB", "L"):
        _require_undamaged(data)
        return _by_pillow(data, profile)
    fraction = coarse_fraction(min(size), short_side_px)
    width, height = (-(-side // fraction) for side in size)
    try:
        found = simplejpeg.decode_jpeg(data, "RGB", False, False, height, width, fraction)
        pixels = np.asarray(found, np.uint8)
    except ValueError as error:
        if tells_of_damage(str(error), data):  # Pillow hears no warning, and leaves grey where data are missing
            raise
        return _by_pillow(data, profile)
    if not changes_pixels(profile, mode):
        return pixels
    return np.asarray(to_srgb(Image.fromarray(pixels), profile), np.uint8)


def _require_undamaged(data: bytes) -> None:
    """Decode a JPEG of four channels for what libjpeg warns of.

    Raises:
        ValueError: its data are damaged.
    """
    try:
        simplejpeg.decode_jpeg(data, "CMYK")
    except ValueError as error:
        if tells_of_damage(str(error), data):
            raise


def _by_pillow(data: bytes, profile: bytes | None) -> ByteArray:
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        image.load()
        return _to_rgb(image, profile)


def _to_rgb(image: Image.Image, profile: bytes | None) -> ByteArray:
    if image.mode.startswith("I;16") or image.mode == "I":
        grey = np.asarray(image)
        if grey.min() < 0 or grey.max() > 0xFFFF:
            raise DecodeFailure("has 32-bit pixels; 8 and 16 bit are known")
        image = Image.fromarray((grey >> 8).astype(np.uint8))
    if image.mode == "F":
        raise DecodeFailure("has floating point pixels; 8 and 16 bit are known")
    return np.asarray(to_srgb(image, profile), np.uint8)


def _orientation(image: Image.Image) -> Orientation:
    """By its EXIF tag; an unknown one turns nothing."""
    tag = image.getexif().get(ORIENTATION_TAG, 1) if "exif" in image.info else 1
    return EXIF.get(tag, UPRIGHT)
