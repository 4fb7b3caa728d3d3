"""Colours that are not those of plain pictures: embedded profiles become sRGB, HDR and wide gamuts get a name.

A profile that littleCMS cannot read, or that is not of the picture's kind of pixels, is passed over, as viewers do.

What `wide_colours: convert` does with a decoded frame:

    Y'CbCr → R'G'B' → light (1 = 100 cd/m²) → BT.709's primaries → Hable's curve (HDR only) → gamma 1/2.4 → 8 bit

PQ is SMPTE ST 2084; HLG is ARIB STD-B67 shown at 1,000 cd/m² with a system gamma of 1.2, channel by channel as zimg has
it (BT.2100 takes it of the luminance). Hable's curve is laid over the greatest channel and takes 1,000 cd/m² for white,
so hues stay. The gamma is BT.1886's. The same as ffmpeg's
`zscale=t=linear:npl=100,format=gbrpf32le,zscale=p=bt709,tonemap=hable:desat=0:peak=10,zscale=t=bt709:r=full`.
"""

from __future__ import annotations

import functools
import io
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageCms

ByteArray = npt.NDArray[np.uint8]
FloatArray = npt.NDArray[np.float32]

PQ, HLG = 16, 18
BT2020, DISPLAY_P3 = 9, 12
"""Numbers of ITU-T H.273."""
HDR_TRANSFERS = {PQ: "PQ", HLG: "HLG"}
WIDE_PRIMARIES = {BT2020: "BT.2020", 11: "DCI-P3", DISPLAY_P3: "Display P3"}
WHITE_XY = (0.3127, 0.3290)
PRIMARIES_XY = {
    1: ((0.640, 0.330), (0.300, 0.600), (0.150, 0.060)),
    BT2020: ((0.708, 0.292), (0.170, 0.797), (0.131, 0.046)),
    DISPLAY_P3: ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060)),
}
"""x and y of red, green and blue; white is D65 for all."""
LUMA = {1: (0.2126, 0.0722), 5: (0.299, 0.114), 6: (0.299, 0.114), BT2020: (0.2627, 0.0593)}
"""Matrix of Y'CbCr to the weights of red and blue in Y'."""
PEAK, GAMMA = 10.0, 2.4
MOST_CODED = 1.9
"""Chroma that is enlarged across an edge gives R'G'B' above 1, beyond any light of the standard; PQ ends at 1.98."""
CHROMA_PLACE = {"chroma_sample_location": "left"}
"""Option of a decoder: what it takes where neither codec nor stream says so (VP9, AV1), as players do."""
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
    """`name_wide_colours` of a picture file's start, by its own numbers; empty where a profile goes before them.

    Of AVIF and HEIF it is the `colr` box (ISO 23008-12), of PNG the chunk cICP, which goes before any profile.
    """
    at = head.find(b"cICP", 0, head.find(b"IDAT"))
    if head.startswith(b"\x89PNG") and at >= 0:
        primaries, transfer = head[at + 4 : at + 6].ljust(2, b"\1")
        return name_wide_colours(transfer, primaries)
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


def converts(transfer: int, primaries: int) -> bool:
    """Whether frames of these colours become plain ones: DCI-P3, whose white is another one, does not."""
    return primaries in PRIMARIES_XY or (transfer in (PQ, HLG) and primaries == 2)


def to_plain(frame: Any, transfer: int, primaries: int) -> ByteArray:
    """RGB (H, W, 3) of a frame of PyAV whose colours are those of H.273's numbers.

    Args:
        frame: As decoded, by a decoder that was given CHROMA_PLACE.
        transfer: PQ, HLG, or any other for that of BT.1886.
        primaries: A key of PRIMARIES_XY; another one counts as BT.2020.
    """
    primaries = primaries if primaries in PRIMARIES_XY else BT2020
    light = to_light(_coded_rgb(frame, primaries), transfer)
    light = light @ to_bt709(primaries).T.astype(np.float32)
    if transfer in (PQ, HLG):
        light = _hable_over_greatest(light)
    return np.rint(255 * np.clip(light, 0, 1) ** np.float32(1 / GAMMA)).astype(np.uint8)


def to_light(coded: FloatArray, transfer: int) -> FloatArray:
    """Light of R'G'B' (…, 3), nominally 0 to 1, in units of 100 cd/m² (of white, where it is no HDR)."""
    if transfer == PQ:
        power = np.clip(coded, 0, MOST_CODED) ** np.float32(32 / 2523)
        ratio = np.maximum(power - np.float32(107 / 128), 0) / (np.float32(2413 / 128) - np.float32(2392 / 128) * power)
        return np.asarray(100 * ratio ** np.float32(8192 / 1305), np.float32)
    if transfer == HLG:
        above = (np.exp((np.clip(coded, 0.5, MOST_CODED) - 0.55991073) / 0.17883277) + 0.28466892) / 12
        scene = np.where(coded <= 0.5, np.clip(coded, 0, 1) ** 2 / 3, above).astype(np.float32)
        return np.asarray(PEAK * scene ** np.float32(1.2), np.float32)
    return np.asarray(np.clip(coded, 0, 1) ** np.float32(GAMMA), np.float32)


def to_bt709(primaries: int) -> npt.NDArray[np.float64]:
    """Matrix (3, 3) that turns light of these primaries into that of BT.709's.

    >>> to_bt709(9).round(4).tolist()[0]
    [1.6605, -0.5876, -0.0728]
    """
    return np.linalg.inv(_to_xyz(1)) @ _to_xyz(primaries)


def _to_xyz(primaries: int) -> npt.NDArray[np.float64]:
    colours = np.array([[x / y, 1.0, (1 - x - y) / y] for x, y in PRIMARIES_XY[primaries]]).T
    x, y = WHITE_XY
    return colours * np.linalg.solve(colours, [x / y, 1.0, (1 - x - y) / y])


def _hable_over_greatest(light: FloatArray) -> FloatArray:
    """Hable's filmic curve (GDC 2010), 1 at PEAK, over the greatest channel; the others keep their ratio to it."""

    def curve(x: Any) -> Any:
        return (x * (0.15 * x + 0.05) + 0.004) / (x * (0.15 * x + 0.5) + 0.06) - 0.02 / 0.3

    greatest = np.maximum(light.max(axis=-1, keepdims=True), 1e-6)
    return np.asarray(light * (curve(greatest) / curve(PEAK) / greatest), np.float32)


def _coded_rgb(frame: Any, primaries: int) -> FloatArray:
    """R'G'B' (H, W, 3), nominally 0 to 1, by the frame's own matrix; chroma is enlarged linearly, as zimg does it.

    swscale knows where chroma of 4:2:0 was sampled; that of 4:2:2, always at the even columns, it would put between.
    """
    from av.video.reformatter import Interpolation

    chroma = frame.format.components[min(1, len(frame.format.components) - 1)]
    halved = chroma.width < frame.width and chroma.height == frame.height
    kind = "yuv422p16le" if halved else "yuv444p16le"
    planes = frame.reformat(format=kind, interpolation=Interpolation.BILINEAR, threads=1).planes
    y, cb, cr = (
        np.frombuffer(plane, "<u2").reshape(plane.height, -1)[:, : plane.width].astype(np.float32) for plane in planes
    )
    if halved:
        cb, cr = (_between_columns(plane)[:, : frame.width] for plane in (cb, cr))
    span = (0, 65535, 65535) if int(frame.color_range) == 2 else (4096, 219 << 8, 224 << 8)
    black, white, scale = (np.float32(value) for value in span)
    y, cb, cr = (y - black) / white, (cb - np.float32(32768)) / scale, (cr - np.float32(32768)) / scale
    red, blue = LUMA.get(int(frame.colorspace), LUMA[BT2020 if primaries == BT2020 else 1])
    r, b = y + 2 * (1 - red) * cr, y + 2 * (1 - blue) * cb
    return np.stack([r, (y - red * r - blue * b) / (1 - red - blue), b], axis=-1)


def _between_columns(plane: FloatArray) -> FloatArray:
    """(H, 2W) of a plane (H, W): its columns, and after each the mean of it and the next."""
    following = np.concatenate([plane[:, 1:], plane[:, -1:]], axis=1)
    return np.stack([plane, (plane + following) / 2], axis=-1).reshape(len(plane), -1)
