"""mmsegmentation's training augmentation: random resize, window, mirror, colours, padding; and the test's resize.

Pure functions of an image, its labels and a generator. Images are RGB (H, W, 3) uint8, labels (H, W) uint8, void 255.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from evals.segmentation.finetune_config import FinetuneConfig
from evals.segmentation.metrics import VOID

Image = NDArray[np.uint8]
Labels = NDArray[np.uint8]

WINDOW_TRIES = 10
BRIGHTNESS = 32.0
CONTRAST = SATURATION = (0.5, 1.5)
HUE_STEPS = 18
"""Of OpenCV's 180 steps round the circle."""
PADDING_COLOUR = (124, 116, 104)
"""ImageNet's mean: what zero is after normalisation."""


@dataclass(frozen=True)
class Window:
    """Place of a window in an image, px."""

    top: int
    left: int
    height: int
    width: int

    def cut(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The window of (H, W, ...)."""
        return pixels[self.top : self.top + self.height, self.left : self.left + self.width]


def fitted_size(height: int, width: int, long_side: float, short_side: float) -> tuple[int, int]:
    """Height and width that keep the aspect ratio and fit into long side x short side.

    >>> fitted_size(360, 480, 2048, 512)
    (512, 683)
    """
    factor = min(long_side / max(height, width), short_side / min(height, width))
    return max(1, int(height * factor + 0.5)), max(1, int(width * factor + 0.5))


def resize_pair(image: Image, labels: Labels, size: tuple[int, int]) -> tuple[Image, Labels]:
    """Bilinear for the image, nearest for the labels, to (height, width)."""
    shape = size[::-1]
    resized = cv2.resize(image, shape, interpolation=cv2.INTER_LINEAR)
    return np.asarray(resized, np.uint8), np.asarray(
        cv2.resize(labels, shape, interpolation=cv2.INTER_NEAREST), np.uint8
    )


def augment(image: Image, labels: Labels, config: FinetuneConfig, rng: np.random.Generator) -> tuple[Image, Labels]:
    """One training window of exactly `crop_px`, padded with the mean colour and void where the image ends.

    The same generator state gives the same window.
    """
    long, short = config.image_scale
    factor = float(rng.uniform(*config.resize_range))
    size = fitted_size(labels.shape[0], labels.shape[1], long * factor, short * factor)
    image, labels = resize_pair(image, labels, size)
    window = choose_window(labels, config.crop_px, config.max_class_share, rng)
    image, labels = window.cut(image), window.cut(labels)
    if rng.random() < 0.5:
        image, labels = image[:, ::-1], labels[:, ::-1]
    if config.photometric:
        image = distort_colours(np.ascontiguousarray(image), rng)
    return pad_pair(image, labels, config.crop_px)


def choose_window(labels: Labels, size: tuple[int, int], max_share: float, rng: np.random.Generator) -> Window:
    """A random window, drawn again up to ten times while one class fills more than `max_share` of what is not void."""
    window = _random_window(labels, size, rng)
    for _ in range(WINDOW_TRIES if max_share < 1 else 0):
        counts = np.bincount(window.cut(labels).ravel(), minlength=VOID + 1)[:VOID]
        if np.count_nonzero(counts) > 1 and counts.max() < max_share * counts.sum():
            break
        window = _random_window(labels, size, rng)
    return window


def _random_window(labels: Labels, size: tuple[int, int], rng: np.random.Generator) -> Window:
    height, width = (min(side, wanted) for side, wanted in zip(labels.shape, size, strict=True))
    top = int(rng.integers(labels.shape[0] - height + 1))
    left = int(rng.integers(labels.shape[1] - width + 1))
    return Window(top, left, height, width)


def distort_colours(image: Image, rng: np.random.Generator) -> Image:
    """Brightness, contrast, saturation and hue, each in half of the cases; contrast first or last at even odds."""
    if rng.random() < 0.5:
        image = _scaled(image, 1.0, float(rng.uniform(-BRIGHTNESS, BRIGHTNESS)))
    contrast_first = rng.random() < 0.5
    if contrast_first and rng.random() < 0.5:
        image = _scaled(image, float(rng.uniform(*CONTRAST)), 0.0)
    saturate, turn = rng.random() < 0.5, rng.random() < 0.5
    if saturate or turn:
        hsv = np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2HSV), np.uint8)
        if saturate:
            hsv[..., 1] = _scaled(hsv[..., 1], float(rng.uniform(*SATURATION)), 0.0)
        if turn:
            hsv[..., 0] = (hsv[..., 0].astype(np.int16) + int(rng.integers(-HUE_STEPS, HUE_STEPS))) % 180
        image = np.asarray(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB), np.uint8)
    if not contrast_first and rng.random() < 0.5:
        image = _scaled(image, float(rng.uniform(*CONTRAST)), 0.0)
    return image


def _scaled(pixels: Image, factor: float, offset: float) -> Image:
    return np.clip(pixels.astype(np.float32) * factor + offset, 0, 255).astype(np.uint8)


def pad_pair(image: Image, labels: Labels, size: tuple[int, int]) -> tuple[Image, Labels]:
    """Grows both to `size` at the bottom and at the right: mean colour, void."""
    if labels.shape == tuple(size):
        return np.ascontiguousarray(image), np.ascontiguousarray(labels)
    height, width = labels.shape
    full = np.empty((*size, 3), np.uint8)
    full[:] = PADDING_COLOUR
    full[:height, :width] = image
    void = np.full(size, VOID, np.uint8)
    void[:height, :width] = labels
    return full, void
