"""Colours that are not those of plain pictures: embedded profiles become sRGB, HDR and wide gamuts get a name.

A profile that littleCMS cannot read, or that is not of the picture's kind of pixels, is passed over, as viewers do.
"""

from __future__ import annotations

import functools
import io

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageCms

ByteArray = npt.NDArray[np.uint8]

HDR_TRANSFERS = {16: "PQ", 18: "HLG"}
WIDE_PRIMARIES = {9: "BT.2020", 11: "DCI-P3", 12: "Display P3"}
"""By their numbers in ITU-T H.273."""
MODES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}
"""Kind of a profile to the mode of pictures that it is for."""
LATTICE = (np.indices((16, 16, 16), np.uint8) * np.uint8(17)).reshape(3, 64, 64).transpose(1, 2, 0)
"""All colours of 16 levels per channel."""


def name_wide_colours(transfer: int, primaries: int) -> str:
    """What of these colours is not that of plain pictures, in words; empty where nothing is.

    >>> name_wide_colours(16, 9), name_wide_colours(1, 1)
    ('HDR (PQ), BT.2020 primaries', '')
    """
    found = [f"HDR ({HDR_TRANSFERS[transfer]})"] if transfer in HDR_TRANSFERS else []
    found += [f"{WIDE_PRIMARIES[primaries]} primaries"] if primaries in WIDE_PRIMARIES else []
    return ", ".join(found)


def coded_colours(head: bytes) -> str:
    """`name_wide_colours` of an AVIF or HEIF file by its `colr` box (ISO 23008-12); empty where it has a profile."""
    at = head.find(b"colrnclx")
    if at < 0 or b"colrprof" in head or b"colrrICC" in head:
        return ""
    return name_wide_colours(*(int.from_bytes(head[at + place : at + place + 2], "big") for place in (10, 8)))


def to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """The picture in sRGB, mode RGB; itself, converted as Pillow does, where it has no usable profile.

    By littleCMS through Pillow, perceptual intent, 8 bit.
    """
    transform = _transform(profile, image.mode) if profile else None
    if transform is None:
        return image.convert("RGB")
    found: Image.Image | None = ImageCms.applyTransform(image.convert(str(transform.input_mode)), transform)
    assert found is not None  # only in place it gives none
    return found


def changes_pixels(profile: bytes | None, mode: str) -> bool:
    """Whether a picture of this mode looks different with its profile."""
    return profile is not None and _transform(profile, mode) is not None


@functools.lru_cache(maxsize=8)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """From the profile to sRGB; None where it cannot be used, or changes nothing."""
    try:
        source = ImageCms.getOpenProfile(io.BytesIO(profile))
        kind = MODES.get(source.profile.xcolor_space.strip(), "")
        fits = mode == "CMYK" if kind == "CMYK" else mode != "CMYK"
        if not kind or not fits or (kind == "L" and mode not in ("1", "L", "LA", "I;16", "I")):
            return None
        transform = ImageCms.buildTransformFromOpenProfiles(source, ImageCms.createProfile("sRGB"), kind, "RGB")
    except (ImageCms.PyCMSError, OSError, ValueError):
        return None
    if kind == "RGB" and _greatest_change(transform) <= 1:
        return None
    return transform


def _greatest_change(transform: ImageCms.ImageCmsTransform) -> int:
    """Of any colour's channel, levels of 255."""
    changed = ImageCms.applyTransform(Image.fromarray(np.ascontiguousarray(LATTICE)), transform)
    return int(np.abs(np.asarray(changed, np.int64) - LATTICE).max())
