"""Colour and blur of uint8 RGB images as torchvision's transforms do them on PIL images, by OpenCV.

Each is a filter: with `out`, the result is written there. Of a row of filters the last writes where the image is
wanted: into its place of a batch, without a copy. Brightness, contrast and saturation blend the image with a
degenerate one, d + f (v - d), clipped to [0, 255]: d is black, the mean grey, or the grey image. Grey is ITU-R 601
luma. Hue turns the 8-bit H of HSV. Source: torchvision.transforms (ColorJitter, RandomGrayscale, RandomSolarize) and
PIL.ImageEnhance.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import partial

import cv2
import numpy as np

from mcjepa.pipeline.settings.stream import ColourJitterConfig
from mcjepa.pipeline.stream.augment.geometry import draw_below, draw_between

JitterSteps = tuple[tuple[str, float], ...]
"""Names of adjustments with their factors, in the order in which they are applied."""

_LEVELS = np.arange(256, dtype=np.float32)
_SOLARIZED = np.where(_LEVELS < 128, _LEVELS, 255 - _LEVELS).astype(np.uint8)


def draw_jitter(config: ColourJitterConfig, rng: random.Random) -> JitterSteps:
    """What a jitter does to one sample: nothing with probability 1 - p, else all steps in random order."""
    if rng.random() >= config.probability:
        return ()
    steps = [("hue", draw_between(rng, -config.hue, config.hue))] if config.hue else []
    for name in ("brightness", "contrast", "saturation"):
        strength: float = getattr(config, name)
        if strength:
            steps.append((name, draw_between(rng, max(0.0, 1 - strength), 1 + strength)))
    for last in range(len(steps) - 1, 0, -1):  # Fisher-Yates
        other = draw_below(rng, last + 1)
        steps[last], steps[other] = steps[other], steps[last]
    return tuple(steps)


def jitter_filters(steps: JitterSteps) -> list[Filter]:
    """The drawn adjustments as filters."""
    return [partial(_ADJUSTMENTS[name], factor=factor) for name, factor in steps]


def adjust_brightness(image: np.ndarray, factor: float, out: np.ndarray | None = None) -> np.ndarray:
    """Blend with black: v -> f v."""
    return cv2.LUT(image, _clip_levels(factor * _LEVELS), out)


def adjust_contrast(image: np.ndarray, factor: float, out: np.ndarray | None = None) -> np.ndarray:
    """Blend with the image's mean grey, rounded: v -> m + f (v - m)."""
    mean = np.float32(int(cv2.mean(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY))[0] + 0.5))
    return cv2.LUT(image, _clip_levels(mean + np.float32(factor) * (_LEVELS - mean)), out)


def adjust_saturation(image: np.ndarray, factor: float, out: np.ndarray | None = None) -> np.ndarray:
    """Blend with the grey image: v -> g + f (v - g)."""
    return cv2.addWeighted(image, factor, to_grey(image), 1 - factor, 0, out)


def adjust_hue(image: np.ndarray, factor: float, out: np.ndarray | None = None) -> np.ndarray:
    """Turn the hue by `factor` of a full circle, in [-0.5, 0.5]; grey pixels stay."""
    shift = int(factor * 255) % 256
    if shift == 0:
        return image
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL)
    hsv[..., 0] += np.uint8(shift)  # wraps around at 256, as the circle does
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL, out)


def to_grey(image: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """The luma in three equal channels, HxWx3 uint8."""
    return cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB, out)


def solarize(image: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """Invert the values from 128 on: v -> 255 - v."""
    return cv2.LUT(image, _SOLARIZED, out)


def blur(image: np.ndarray, sigma_px: float, out: np.ndarray | None = None) -> np.ndarray:
    """Gaussian blur with the border's pixels repeated, as PIL's GaussianBlur(radius=sigma)."""
    return cv2.GaussianBlur(image, (0, 0), sigma_px, out, borderType=cv2.BORDER_REPLICATE)


def _clip_levels(levels: np.ndarray) -> np.ndarray:
    """A lookup table out of 256 floats, cut (not rounded) to integers as PIL's blend does."""
    return np.clip(levels, 0, 255).astype(np.uint8)


_ADJUSTMENTS = {
    "brightness": adjust_brightness,
    "contrast": adjust_contrast,
    "saturation": adjust_saturation,
    "hue": adjust_hue,
}


Filter = Callable[..., np.ndarray]
"""`filter(image, out=None)`: HxWx3 uint8 to a new one, or to `out` where that is given and anything is done at all."""


def apply_filters(image: np.ndarray, filters: Sequence[Filter], out: np.ndarray | None) -> np.ndarray:
    """The image after all filters, in turn.

    Args:
        image: HxWx3 uint8; not changed.
        filters: what is done to it.
        out: where the result belongs, of its shape; None for an array of its own.

    Returns:
        `out`, or without one the result, which may be a view of `image`.
    """
    last = len(filters) - 1
    for number, apply in enumerate(filters):
        image = apply(image, out=out if number == last else None)
    if out is None or image is out:
        return image
    np.copyto(out, image)  # the last one had nothing to do
    return out
