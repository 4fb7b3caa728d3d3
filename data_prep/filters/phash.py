"""Perceptual hashes of frames: 64 bits that stay nearly the same when a frame is resized and encoded again.

The hash is ImageHash's pHash: the signs of the 8x8 lowest frequencies of a 32x32 grey picture, against their
median. Just half of its bits are set, so distances are even. Frames cropped, mirrored or turned have other hashes.
"""

from __future__ import annotations

import cv2
import imagehash
import numpy as np
import numpy.typing as npt
import scipy.fftpack  # noqa: F401  imagehash loads it with its first hash: too late where memory is capped
from PIL import Image

ByteArray = npt.NDArray[np.uint8]
HashArray = npt.NDArray[np.uint64]

GRID_PX = 32
"""Side of the picture that is hashed."""
FLAT_GREY_LEVELS = 4.0
"""Below this standard deviation the bits come from noise: real frames with so little contrast, stored as JPEG of
quality 75, reach 6 bits of themselves, with this much 4; frames of photos and videos have 5 and more, mostly 10."""


def frame_hash(rgb: ByteArray) -> int | None:
    """Hash of a frame; None for a flat one, whose bits would be noise.

    A frame is flat when it is little more than one profile of its rows plus one of its columns (one colour, a
    gradient, bars): what is left of the 32x32 grey picture without both varies by less than 4 levels of 255.

    Args:
        rgb: (H, W, 3).
    """
    grey = cv2.resize(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY), (GRID_PX, GRID_PX), interpolation=cv2.INTER_AREA)
    level = grey.astype(np.float64)
    rest = level - level.mean(axis=0) - level.mean(axis=1, keepdims=True) + level.mean()
    if rest.std() < FLAT_GREY_LEVELS:
        return None
    return int(str(imagehash.phash(Image.fromarray(grey))), 16)


def hash_to_hex(value: int | None) -> str:
    """A hash as it is written into JSON: 16 hex digits; empty for a flat frame.

    >>> hash_to_hex(255), hash_to_hex(None)
    ('00000000000000ff', '')
    """
    return "" if value is None else f"{value:016x}"


def bit_distances(hashes: HashArray, others: HashArray | int) -> ByteArray:
    """Number of differing bits of hashes, by NumPy's rules of broadcasting.

    >>> bit_distances(np.array([0, 7], np.uint64), 1).tolist()
    [1, 2]
    """
    return np.bitwise_count(hashes ^ np.asarray(others, np.uint64))
