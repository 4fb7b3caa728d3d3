"""A frame that is decoded already, for the augmentations; tests and benchmarks need no more."""

from __future__ import annotations

import numpy as np


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
