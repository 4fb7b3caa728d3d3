"""Pictures of layers that move by affine maps, with the exact flow, occlusion and object masks they imply.

Like FlyingChairs (Dosovitskiy et al. 2015): a background photo and some cut-out objects, each moving by its
own similarity map. A layer's point u (px, origin at the layer's centre) lies in frame t at

    x_t(u) = p + t' v + exp(t' z) R(t' w) u,        t' = t - (T - 1) / 2,

so a pixel x of frame t whose top layer has the map M_t moves by M_{t+1} M_t^{-1} x - x: the flow is exact.
Pixel centres have integer coordinates; u right, v down. Frames are drawn at twice their size and averaged
down, which gives antialiased edges and keeps moving textures alike from frame to frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from mcjepa.data_prep.settings import MovingPhotosConfig

ByteArray = npt.NDArray[np.uint8]
FloatArray = npt.NDArray[np.float32]
DoubleArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

SUPERSAMPLING = 2
TEXTURED_STD = 6.0
VOID = 255
PURE = 0.75  # a pixel with less of its top layer is an edge: void in the class map


@dataclass(frozen=True)
class LayerMotion:
    """Steady motion of one layer: place at mid-sequence and change a frame."""

    centre_px: tuple[float, float]
    velocity_px: tuple[float, float] = (0.0, 0.0)
    turn_rad: float = 0.0
    log_zoom: float = 0.0

    def matrix(self, time: float) -> DoubleArray:
        """The 3x3 map from layer to frame coordinates at `time` frames from mid-sequence."""
        scale, angle = np.exp(time * self.log_zoom), time * self.turn_rad
        c, s = scale * np.cos(angle), scale * np.sin(angle)
        x = self.centre_px[0] + time * self.velocity_px[0]
        y = self.centre_px[1] + time * self.velocity_px[1]
        return np.array([[c, -s, x], [s, c, y], [0.0, 0.0, 1.0]])


@dataclass(frozen=True)
class Layer:
    """A textured layer: RGBA (S, S, 4) uint8 at twice frame resolution, premultiplied by alpha."""

    canvas_rgba: ByteArray
    motion: LayerMotion
    photo: int
    endless: bool = False
    """The background: continued by reflection beyond its canvas."""


@dataclass(frozen=True)
class RenderedSequence:
    """T square frames of side H and the truth about them."""

    frames: ByteArray
    """(T, H, H, 3) RGB."""
    flow: FloatArray
    """(T-1, H, H, 2) px, frame t to t+1."""
    occluded: BoolArray
    """(T-1, H, H): the point of frame t is covered in t+1 or has left the frame."""
    objects: ByteArray
    """(T, H, H): 0 background, 1.. the objects from back to front."""
    classes: ByteArray
    """(T, H, H): index of the photo that the pixel was cut from; 255 at mixed edges."""


def render_sequence(photos: Sequence[ByteArray], config: MovingPhotosConfig, seed: int) -> RenderedSequence:
    """Draw one sequence from random photos with random motions.

    Args:
        photos: At least two RGB images (H, W, 3) uint8, short side of some hundred px.
        config: Sizes, counts and ranges of the motions.
        seed: The same seed gives the same bytes.
    """
    rng = np.random.default_rng(seed)
    return render_layers(draw_layers(rng, photos, config), config.frames, config.size)


def draw_layers(rng: np.random.Generator, photos: Sequence[ByteArray], config: MovingPhotosConfig) -> list[Layer]:
    """Choose photos, shapes and motions: the background first, then objects from back to front."""
    count = int(rng.integers(config.min_objects, config.max_objects + 1))
    background = int(rng.integers(len(photos)))
    others = [i for i in range(len(photos)) if i != background] or [background]
    chosen = rng.choice(others, size=count, replace=count > len(others))
    side = 3 * config.size // 2
    middle = ((config.size - 1) / 2, (config.size - 1) / 2)
    canvas = np.dstack(
        [cut_square(rng, photos[background], side * SUPERSAMPLING, config.texture_candidates), _opaque(side)]
    )
    motion = _draw_motion(rng, config, middle, config.background_shift_px)
    layers = [Layer(canvas, motion, background, endless=True)]
    for photo in chosen:
        radius = float(rng.uniform(config.min_object_px, config.max_object_px))
        low, high = 0.15 * config.size, 0.85 * config.size
        centre = (float(rng.uniform(low, high)), float(rng.uniform(low, high)))
        motion = _draw_motion(rng, config, centre, config.max_shift_px)
        layers.append(
            Layer(_cut_object(rng, photos[int(photo)], radius, config.texture_candidates), motion, int(photo))
        )
    return layers


def render_layers(layers: Sequence[Layer], frames: int, size: int) -> RenderedSequence:
    """Draw `frames` frames of side `size` px of layers given from back to front, and their truth."""
    times = np.arange(frames) - (frames - 1) / 2
    maps = np.array([[layer.motion.matrix(t) for layer in layers] for t in times])
    drawn = [_draw_frame(layers, maps[t], size) for t in range(frames)]
    # visible[t, k]: share of pixel (y, x) of frame t that shows layer k
    visible = np.stack([shares for _, shares in drawn])
    top = visible.argmax(1).astype(np.uint8)
    flow = np.stack([_flow(maps[t], maps[t + 1], top[t]) for t in range(frames - 1)])
    occluded = np.stack([_occluded(flow[t], top[t], visible[t + 1]) for t in range(frames - 1)])
    photo_ids = np.array([layer.photo for layer in layers], np.uint8)
    classes = np.where(visible.max(1) >= PURE, photo_ids[top], VOID).astype(np.uint8)
    return RenderedSequence(np.stack([f for f, _ in drawn]), flow, occluded, top, classes)


def _draw_frame(layers: Sequence[Layer], maps: DoubleArray, size: int) -> tuple[ByteArray, FloatArray]:
    """One frame (H, W, 3) uint8 and the visible share of every layer (K, H, W) float32."""
    image = np.zeros((size, size, 3), np.float32)
    shares: list[FloatArray] = []
    for layer, layer_map in zip(layers, maps, strict=True):
        rgba = _warp_canvas(layer, layer_map, size)
        alpha = rgba[:, :, 3:] * np.float32(1 / 255)
        image = image * (1 - alpha) + rgba[:, :, :3]
        shares = [share * (1 - alpha[:, :, 0]) for share in shares] + [alpha[:, :, 0]]
    return np.rint(image).clip(0, 255).astype(np.uint8), np.stack(shares)


def _warp_canvas(layer: Layer, layer_map: DoubleArray, size: int) -> FloatArray:
    """The layer as seen in a frame: (size, size, 4) float32 RGBA, 0..255, premultiplied."""
    k, middle = SUPERSAMPLING, (layer.canvas_rgba.shape[0] - 1) / 2
    offset = (k - 1) / 2
    fine_to_frame = np.array([[1 / k, 0, -offset / k], [0, 1 / k, -offset / k], [0, 0, 1.0]])
    layer_to_canvas = np.array([[k, 0, middle], [0, k, middle], [0, 0, 1.0]])
    fine_to_canvas = layer_to_canvas @ np.linalg.inv(layer_map) @ fine_to_frame
    fine = cv2.warpAffine(
        layer.canvas_rgba,
        fine_to_canvas[:2],
        (size * k, size * k),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REFLECT_101 if layer.endless else cv2.BORDER_CONSTANT,
    )
    return cv2.resize(fine, (size, size), interpolation=cv2.INTER_AREA).astype(np.float32)


def _flow(maps: DoubleArray, next_maps: DoubleArray, top: ByteArray) -> FloatArray:
    """Flow (H, W, 2) px of every pixel by the map of its top layer."""
    size = top.shape[0]
    y, x = np.mgrid[:size, :size].astype(np.float64)
    step = next_maps @ np.linalg.inv(maps) - np.eye(3)
    m = step[top]
    u = m[..., 0, 0] * x + m[..., 0, 1] * y + m[..., 0, 2]
    v = m[..., 1, 0] * x + m[..., 1, 1] * y + m[..., 1, 2]
    return np.stack([u, v], -1).astype(np.float32)


def _occluded(flow: FloatArray, top: ByteArray, next_visible: FloatArray) -> BoolArray:
    """Where a pixel's point is outside the next frame, or its layer is mostly hidden there (H, W)."""
    size = top.shape[0]
    y, x = np.mgrid[:size, :size].astype(np.float32)
    to_x, to_y = x + flow[..., 0], y + flow[..., 1]
    outside = (to_x < 0) | (to_y < 0) | (to_x > size - 1) | (to_y > size - 1)
    seen = np.zeros((size, size), np.float32)
    for k in range(next_visible.shape[0]):
        moved = cv2.remap(next_visible[k], to_x, to_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        seen = np.where(top == k, moved, seen)
    return outside | (seen < 0.5)


def _draw_motion(
    rng: np.random.Generator, config: MovingPhotosConfig, centre_px: tuple[float, float], shift_px: float
) -> LayerMotion:
    """A random steady motion of at most `shift_px` a frame, in any direction."""
    speed = shift_px * float(rng.uniform(0.4, 1.0))
    heading = float(rng.uniform(0, 2 * np.pi))
    turn = np.deg2rad(config.max_turn_deg) * float(rng.uniform(-1, 1))
    zoom = np.log1p(config.max_zoom) * float(rng.uniform(-1, 1))
    return LayerMotion(centre_px, (speed * np.cos(heading), speed * np.sin(heading)), turn, zoom)


def cut_square(rng: np.random.Generator, photo: ByteArray, side: int, candidates: int = 1) -> ByteArray:
    """The most textured of some random squares of the photo, at most mirrored, resized to (side, side, 3)."""
    height, width = photo.shape[:2]
    squares = []
    for _ in range(candidates):
        cut = max(8, int(min(height, width) * float(rng.uniform(0.5, 1.0))))
        y, x = int(rng.integers(height - cut + 1)), int(rng.integers(width - cut + 1))
        squares.append(photo[y : y + cut, x : x + cut])
    square = max(squares, key=_texture) if candidates > 1 else squares[0]
    cut = square.shape[0]
    if rng.random() < 0.5:
        square = square[:, ::-1]
    how = cv2.INTER_AREA if side < cut else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(np.ascontiguousarray(square), (side, side), interpolation=how), np.uint8)


def _texture(square: ByteArray) -> float:
    """Share of 8x8 cells of the square, seen at 64x64 px, in which something can be seen to move."""
    grey = cv2.resize(square, (64, 64), interpolation=cv2.INTER_AREA).mean(2)
    cells = grey.reshape(8, 8, 8, 8).std((1, 3))
    return float((cells > TEXTURED_STD).mean())


def _cut_object(rng: np.random.Generator, photo: ByteArray, radius_px: float, candidates: int) -> ByteArray:
    """A photo cut to a smooth blob or a polygon of mean radius `radius_px`: RGBA, premultiplied."""
    smooth = rng.random() < 0.7
    corners = 96 if smooth else int(rng.integers(4, 8))
    angle = np.linspace(0, 2 * np.pi, corners, endpoint=False)
    if smooth:
        waves = np.arange(2, 6)
        depth = rng.uniform(0.0, 0.35, 4) / np.sqrt(waves)
        phase = rng.uniform(0, 2 * np.pi, 4)
        radius = 1 + (depth * np.cos(np.outer(angle, waves) + phase)).sum(1)
    else:
        radius = rng.uniform(0.7, 1.3, corners)
    radius = radius_px * SUPERSAMPLING * np.clip(radius, 0.3, 1.6)
    side = 2 * int(np.ceil(radius.max()) + 2) + 1
    points = side // 2 + radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1)
    alpha = np.zeros((side, side), np.uint8)
    cv2.fillPoly(alpha, [np.rint(points * 16).astype(np.int32)], 255, cv2.LINE_AA, shift=4)
    colour = cut_square(rng, photo, side, candidates).astype(np.uint16)
    premultiplied = ((colour * alpha[:, :, None].astype(np.uint16) + 127) // 255).astype(np.uint8)
    return np.dstack([premultiplied, alpha])


def _opaque(side: int) -> ByteArray:
    return np.full((side * SUPERSAMPLING, side * SUPERSAMPLING), 255, np.uint8)
