"""Crops, enlargements and mirroring: boxes are drawn first, then cut, so that two frames can share one.

Of a frame they need its size before it is decoded, and its pixels at the smallest scale that will do.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import cv2
import numpy as np

from mcjepa.pipeline.stream.frames import REDUCTIONS


@dataclass(frozen=True)
class CropBox:
    """A rectangle of pixels; row `top` and column `left` are its first."""

    top: int
    left: int
    height: int
    width: int


def draw_between(rng: random.Random, low: float, high: float) -> float:
    """A uniform number in [low, high]; built on `random()`, whose sequence Python keeps between versions."""
    return low + (high - low) * rng.random()


def draw_below(rng: random.Random, count: int) -> int:
    """A uniform integer in 0 .. count - 1."""
    return min(int(rng.random() * count), count - 1)


def draw_resized_crop(
    height: int, width: int, area: tuple[float, float], aspect: tuple[float, float], rng: random.Random
) -> CropBox:
    """The box of torchvision's RandomResizedCrop: a share of the area at a log-uniform aspect.

    After ten draws that do not fit, the largest central box within the range of aspects.

    Args:
        height, width: size of the image, px.
        area: range of the box's share of the image's area.
        aspect: range of its width over height.
        rng: the sample's generator.
    """
    log_aspect = (math.log(aspect[0]), math.log(aspect[1]))
    for _ in range(10):
        box_area = height * width * draw_between(rng, *area)
        ratio = math.exp(draw_between(rng, *log_aspect))
        box_width, box_height = round(math.sqrt(box_area * ratio)), round(math.sqrt(box_area / ratio))
        if 0 < box_width <= width and 0 < box_height <= height:
            top, left = draw_below(rng, height - box_height + 1), draw_below(rng, width - box_width + 1)
            return CropBox(top, left, box_height, box_width)
    ratio = min(max(width / height, aspect[0]), aspect[1])
    box_height = max(1, min(height, round(width / ratio)))
    box_width = max(1, min(width, round(height * ratio)))
    return CropBox((height - box_height) // 2, (width - box_width) // 2, box_height, box_width)


def draw_scaled_crop(
    height: int, width: int, crop: tuple[int, int], scale: tuple[float, float], rng: random.Random
) -> CropBox:
    """The box that fills `crop` when the image is enlarged by a factor from `scale`.

    An image that stays smaller than the crop is enlarged as much as it takes to cover it.

    Args:
        height, width: size of the image, px.
        crop: height and width that the box is resized to, px.
        scale: range of the factor.
        rng: the sample's generator.
    """
    factor = max(draw_between(rng, *scale), crop[0] / height, crop[1] / width)
    box_height = min(height, max(1, round(crop[0] / factor)))
    box_width = min(width, max(1, round(crop[1] / factor)))
    top, left = draw_below(rng, height - box_height + 1), draw_below(rng, width - box_width + 1)
    return CropBox(top, left, box_height, box_width)


def cut_and_resize(
    image: np.ndarray, box: CropBox, height: int, width: int, out: np.ndarray | None = None
) -> np.ndarray:
    """Cut a box and bring it to a size: bicubic, or by pixel area where both sides shrink (no aliasing).

    Args:
        image: HxWx3 uint8.
        box: lies within the image.
        height, width: size of the result, px.
        out: where a resized image is written.

    Returns:
        height x width x 3 uint8; a view of `image` where nothing is resized.
    """
    cut = image[box.top : box.top + box.height, box.left : box.left + box.width]
    if (box.height, box.width) == (height, width):
        return cut
    shrinks = box.height >= height and box.width >= width
    return cv2.resize(cut, (width, height), out, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)


def mirror(image: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """The image mirrored left to right, HxWx3 uint8, a copy or written to `out`."""
    return cv2.flip(image, 1, out)


class FrameSource(Protocol):
    """A picture that may not be decoded yet."""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width at full scale, px; ValueError where it is damaged."""

    @property
    def reducible(self) -> bool:
        """Whether `decode` takes a reduction other than 1."""

    def decode(self, reduction: int = 1) -> np.ndarray:
        """ceil(H / reduction) x ceil(W / reduction) x 3 uint8 RGB, perhaps read-only; ValueError where damaged."""


def choose_reduction(frame: FrameSource, boxes: Iterable[CropBox], target: tuple[int, int]) -> int:
    """The largest divisor of a frame's sides at which no crop falls below the size that it is brought to.

    Args:
        frame: what is cut from.
        boxes: the crops, drawn at full scale.
        target: height and width that the crops are resized to, px.

    Returns:
        1 where nothing can be spared, or one of `REDUCTIONS`.
    """
    if not frame.reducible:
        return 1
    boxes = tuple(boxes)
    for reduction in REDUCTIONS:
        if all(b.height >= reduction * target[0] and b.width >= reduction * target[1] for b in boxes):
            return reduction
    return 1


def reduce_box(box: CropBox, reduction: int, image: np.ndarray) -> CropBox:
    """A box of the full scale, to the nearest pixel of an image decoded at a reduction."""
    if reduction == 1:
        return box
    height, width = round(box.height / reduction), round(box.width / reduction)
    top = min(round(box.top / reduction), image.shape[0] - height)
    left = min(round(box.left / reduction), image.shape[1] - width)
    return CropBox(top, left, height, width)
