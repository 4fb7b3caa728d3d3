"""What the augmentations need of a frame: its size before it is decoded, its pixels at the scale they can do with."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import numpy as np

from mcjepa.pipeline.stream.augment.geometry import CropBox
from mcjepa.pipeline.stream.jpeg import REDUCTIONS


class Frame(Protocol):
    """A picture that may not be decoded yet."""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width at full scale, px; ValueError where it is damaged."""

    @property
    def reducible(self) -> bool:
        """Whether `decode` takes a reduction other than 1."""

    def decode(self, reduction: int = 1) -> np.ndarray:
        """ceil(H / reduction) x ceil(W / reduction) x 3 uint8 RGB, perhaps read-only; ValueError where damaged."""


class DecodedFrame:
    """A picture in memory."""

    reducible = False

    def __init__(self, image: np.ndarray) -> None:
        """Hold HxWx3 uint8 RGB."""
        self._image = image

    @property
    def size(self) -> tuple[int, int]:
        """Height and width, px."""
        return self._image.shape[0], self._image.shape[1]

    def decode(self, reduction: int = 1) -> np.ndarray:
        """The picture."""
        return self._image


def choose_reduction(frame: Frame, boxes: Iterable[CropBox], target: tuple[int, int]) -> int:
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
