"""Pictures of scores: error maps, label overlays, sparse truth.

Flow colours, feature PCA and panels are those of `pipeline.pictures`, which training draws with too.

Pictures are (H, W, 3) uint8 RGB; flow is (H, W, 2) px, (right, down).
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from mcjepa.pipeline.pictures import (
    GAP_PX,
    PANEL_PX,
    Image,
    colour_wheel,
    flow_picture,
    flow_scale,
    pca_pictures,
    png_bytes,
    side_by_side,
    stacked,
    write_png,
)

__all__ = [
    "Image",
    "class_colours",
    "class_legend",
    "colour_wheel",
    "error_picture",
    "flow_picture",
    "flow_scale",
    "overlay_labels",
    "pca_pictures",
    "png_bytes",
    "shrink_known",
    "side_by_side",
    "split_panels",
    "stacked",
    "webp_bytes",
    "wheel_picture",
    "write_png",
]

VOID = 255
HUE_START = 0.36
HUE_STEP = 0.618034
QUALITY, LOSSLESS = 90, 101
"""Of WebP."""


def wheel_picture(side: int = 96) -> Image:
    """The key to flow colours: the flow that points from the centre outwards, one radius = full
    saturation."""
    axis = (np.arange(side) + 0.5) / side * 2.0 - 1.0
    flow = np.stack(np.meshgrid(axis, axis), axis=-1)
    return flow_picture(flow, 1.0)


def error_picture(error_HW: NDArray, valid_HW: NDArray[np.bool_], full_px: float = 5.0) -> Image:
    """End-point errors as heat, dark = 0 px, bright = `full_px` and above; grey where the truth is
    unknown."""
    error = np.nan_to_num(np.asarray(error_HW, np.float64), nan=full_px, posinf=full_px)
    level = np.clip(error / full_px * 255.0, 0, 255).astype(np.uint8)
    heat = cv2.cvtColor(cv2.applyColorMap(level, cv2.COLORMAP_INFERNO), cv2.COLOR_BGR2RGB)
    return np.where(np.asarray(valid_HW, bool)[..., None], heat, np.uint8(128))


def shrink_known(
    values_HWK: NDArray, known_HW: NDArray[np.bool_], widest_px: int = PANEL_PX
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Sparse values for a picture at most `widest_px` wide: each cell has the mean of its known pixels.

    A picture of sparse truth that is drawn first and shrunk afterwards would fade into its black gaps.

    Returns:
        Values (h, w, K) float32 and where at least one pixel was known (h, w); unchanged if narrow enough.
    """
    height, width = known_HW.shape
    values = np.where(known_HW[..., None], values_HWK, 0.0).astype(np.float32)
    if width <= widest_px:
        return values, known_HW
    size = (widest_px, max(1, round(height * widest_px / width)))
    part = cv2.resize(known_HW.astype(np.float32), size, interpolation=cv2.INTER_AREA)
    sums = cv2.resize(values, size, interpolation=cv2.INTER_AREA).reshape(size[1], size[0], -1)
    means = sums / np.maximum(part, 1e-6)[..., None]
    return np.asarray(means, np.float32), np.asarray(part > 0)


def class_colours(count: int) -> Image:
    """Bright, distinct colours: hues a golden section of the circle apart, (count, 3) uint8 RGB."""
    hue = (HUE_START + HUE_STEP * np.arange(count)) % 1.0 * 6.0
    strength = np.where(np.arange(count) // 8 % 2 == 0, 1.0, 0.65)[:, None]
    ramps = [np.abs(hue - 3.0) - 1.0, 2.0 - np.abs(hue - 2.0), 2.0 - np.abs(hue - 4.0)]
    pure = np.clip(np.stack(ramps, axis=-1), 0.0, 1.0)
    return np.rint(255.0 * strength * (0.2 + 0.8 * pure)).astype(np.uint8)


def class_legend(classes: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """(class, colour as #rrggbb) of `class_colours`."""
    colours = class_colours(len(classes)).tolist()
    return tuple((name, "#{:02x}{:02x}{:02x}".format(*colour)) for name, colour in zip(classes, colours, strict=True))


def overlay_labels(image_HW3: Image, labels_HW: NDArray, opacity: float = 0.6, clear: int | None = None) -> Image:
    """The image tinted by its labels; void (255) and the label `clear` show the bare image."""
    labels = np.asarray(labels_HW)
    tint = class_colours(256)[labels.astype(np.uint8)]
    bare = labels == VOID
    if clear is not None:
        bare = bare | (labels == clear)
    mixed = (1.0 - opacity) * image_HW3 + opacity * tint
    return np.where(bare[..., None], image_HW3, np.rint(mixed)).astype(np.uint8)


def split_panels(png: bytes, count: int) -> list[bytes]:
    """The panels of a `side_by_side` picture, each a PNG file; the whole picture where it is not of `count` panels."""
    picture = _decode(png)
    width, rest = divmod(picture.shape[1] + GAP_PX, max(count, 1))
    starts = range(0, picture.shape[1], width)
    gaps = [picture[:, start - GAP_PX : start] for start in starts[1:]]
    if rest or count < 2 or picture.ndim < 3 or picture.shape[2] != 4 or any(gap[..., 3].any() for gap in gaps):
        return [png]
    return [bytes(cv2.imencode(".png", picture[:, start : start + width - GAP_PX])[1].tobytes()) for start in starts]


def webp_bytes(png: bytes, lossless: bool = False) -> tuple[bytes, int, int]:
    """The picture of a PNG file as WebP with transparency, a fifth of the size for photos; its width and height.

    Raises:
        ValueError: the bytes are no picture.
    """
    picture = _decode(png)
    quality = LOSSLESS if lossless else QUALITY
    encoded = cv2.imencode(".webp", picture, [cv2.IMWRITE_WEBP_QUALITY, quality])[1]
    return encoded.tobytes(), picture.shape[1], picture.shape[0]


def _decode(png: bytes) -> NDArray[np.uint8]:
    picture = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_UNCHANGED)
    if picture is None:
        raise ValueError("a picture of the report is no PNG file; expected one; run the evaluation again")
    return np.asarray(picture, np.uint8)
