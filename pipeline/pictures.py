"""Drawings that training and evaluation share: flow colours, feature PCA, and panels side by side.

Flow colours follow Baker et al., "A Database and Evaluation Methodology for Optical Flow" (the Middlebury
colour wheel): hue is the direction, saturation the length; zero flow is white, unknown flow black. Pictures
are (H, W, 3) uint8 RGB; flow is (H, W, 2) px, (right, down).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from mcjepa.data_prep.storage import atomic_write

Image = NDArray[np.uint8]

PANEL_PX = 320
"""Widest panel of a strip; wider ones are shrunk."""

GAP_PX = 6
_WHEEL_STEPS = (15, 6, 4, 11, 13, 6)


def colour_wheel() -> NDArray[np.float64]:
    """The 55 hues of the Middlebury wheel, red first: (55, 3) RGB in [0, 255]."""
    ramps = []
    # Each arc goes from one pure colour to the next: one channel stays full, another rises or falls.
    arcs = ((0, 1, True), (1, 0, False), (1, 2, True), (2, 1, False), (2, 0, True), (0, 2, False))
    for steps, (full, moving, rises) in zip(_WHEEL_STEPS, arcs, strict=True):
        ramp = np.floor(255.0 * np.arange(steps) / steps)
        arc = np.zeros((steps, 3))
        arc[:, full] = 255.0
        arc[:, moving] = ramp if rises else 255.0 - ramp
        ramps.append(arc)
    return np.concatenate(ramps)


def flow_scale(flow_HW2: NDArray, known_HW: NDArray[np.bool_] | None = None) -> float:
    """Length in px that gets full saturation: the 99th percentile of the known lengths, at least 1 px."""
    length = np.linalg.norm(flow_HW2, axis=-1)
    length = length[np.isfinite(length) if known_HW is None else np.isfinite(length) & known_HW]
    return max(1.0, float(np.percentile(length, 99))) if length.size else 1.0


def flow_picture(flow_HW2: NDArray, scale_px: float, known_HW: NDArray[np.bool_] | None = None) -> Image:
    """Flow as Middlebury colours; lengths above `scale_px` are darkened, unknown pixels are black."""
    flow = np.asarray(flow_HW2, np.float64)
    known = np.isfinite(flow[..., 0]) & np.isfinite(flow[..., 1])
    if known_HW is not None:
        known = known & np.asarray(known_HW, bool)
    u, v = (np.where(known, flow[..., axis], 0.0) / scale_px for axis in (0, 1))
    radius = np.hypot(u, v)
    wheel = colour_wheel() / 255.0
    position = (np.arctan2(-v, -u) / np.pi + 1.0) / 2.0 * (len(wheel) - 1)
    lower = np.floor(position).astype(int)
    part = (position - lower)[..., None]
    hue = (1.0 - part) * wheel[lower] + part * wheel[(lower + 1) % len(wheel)]
    inside = (radius <= 1.0)[..., None]
    colour = np.where(inside, 1.0 - radius[..., None] * (1.0 - hue), hue * 0.75)
    return np.floor(255.0 * colour * known[..., None]).astype(np.uint8)


def pca_pictures(features_TChw: NDArray) -> list[Image]:
    """The three main directions of all frames' features as red, green and blue: one colour, one meaning.

    Args:
        features_TChw: features of T frames of one video, or of T images of one set, (T, C, h, w).

    Returns:
        T pictures (h, w, 3). Signs are fixed by each direction's largest coefficient, so that runs agree.
    """
    frames, channels, height, width = features_TChw.shape
    cells = np.asarray(features_TChw, np.float64).transpose(0, 2, 3, 1).reshape(-1, channels)
    cells = cells - cells.mean(0)
    _, vectors = np.linalg.eigh(cells.T @ cells)
    main = vectors[:, ::-1][:, :3]
    main = main * np.sign(main[np.abs(main).argmax(0), np.arange(main.shape[1])])
    scores = np.pad(cells @ main, ((0, 0), (0, 3 - main.shape[1])))
    low, high = np.percentile(scores, (1, 99), axis=0)
    scaled = np.clip((scores - low) / np.maximum(high - low, 1e-12), 0.0, 1.0)
    return list((scaled * 255).astype(np.uint8).reshape(frames, height, width, 3))


def side_by_side(panels: Sequence[Image], panel_px: int = PANEL_PX, enlarge: bool = False) -> NDArray[np.uint8]:
    """Panels of one row, brought to the first one's size, with a transparent gap: (H, W, 4) uint8 RGBA."""
    height, width = panels[0].shape[:2]
    factor = panel_px / width if enlarge else min(1.0, panel_px / width)
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    parts: list[NDArray[np.uint8]] = []
    for panel in panels:
        if parts:
            parts.append(np.zeros((size[1], GAP_PX, 4), np.uint8))
        way = cv2.INTER_AREA if panel.shape[1] > size[0] else cv2.INTER_NEAREST
        resized = cv2.resize(np.ascontiguousarray(panel), size, interpolation=way)
        parts.append(np.dstack([resized, np.full(size[::-1], 255, np.uint8)]))
    return np.concatenate(parts, axis=1)


def stacked(rows: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Rows of `side_by_side` of equal width below one another, with the same transparent gap."""
    parts: list[NDArray[np.uint8]] = []
    for row in rows:
        if parts:
            parts.append(np.zeros((GAP_PX, row.shape[1], 4), np.uint8))
        parts.append(row)
    return np.concatenate(parts)


def png_bytes(picture: NDArray[np.uint8]) -> bytes:
    """An RGB, RGBA or grey picture as a PNG file's bytes."""
    order = {3: cv2.COLOR_RGB2BGR, 4: cv2.COLOR_RGBA2BGRA}
    channels = picture.shape[2] if picture.ndim == 3 else 1
    data = cv2.cvtColor(picture, order[channels]) if channels in order else picture
    done, encoded = cv2.imencode(".png", data)
    if not done:
        raise ValueError(f"picture of shape {picture.shape} and type {picture.dtype} cannot be written as PNG")
    return bytes(encoded.tobytes())


def write_png(path: Path, picture: NDArray[np.uint8]) -> Path:
    """Writes an RGB, RGBA or grey picture and returns its path; the folder is made if need be."""
    atomic_write(path, png_bytes(picture))
    return path
