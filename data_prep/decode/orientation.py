"""The eight ways in which a picture may lie, and how it comes upright."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mcjepa.data_prep.decode.messages import DecodeFailure

ByteArray = npt.NDArray[np.uint8]

SKEW = 0.02
"""Greatest part of a matrix that may lie off its axes: one degree."""


@dataclass(frozen=True)
class Orientation:
    """What brings a stored picture upright: three steps, in this order."""

    transposed: bool = False
    """Rows become columns."""
    mirrored: bool = False
    """Left and right are exchanged."""
    flipped: bool = False
    """Top and bottom are exchanged."""

    def apply(self, pixels: ByteArray) -> ByteArray:
        """The picture (H, W, 3), or its plane (H, W), upright: (W, H, 3) where it is transposed.

        >>> Orientation(transposed=True, mirrored=True).apply(np.uint8([[[1], [2]]])).tolist()
        [[[1]], [[2]]]
        """
        if self == UPRIGHT:
            return pixels
        if self.transposed:
            pixels = pixels.swapaxes(0, 1)
        if self.mirrored:
            pixels = pixels[:, ::-1]
        return np.ascontiguousarray(pixels[::-1] if self.flipped else pixels)


UPRIGHT = Orientation()

EXIF = {
    1: UPRIGHT,
    2: Orientation(mirrored=True),
    3: Orientation(mirrored=True, flipped=True),
    4: Orientation(flipped=True),
    5: Orientation(transposed=True),
    6: Orientation(transposed=True, mirrored=True),
    7: Orientation(transposed=True, mirrored=True, flipped=True),
    8: Orientation(transposed=True, flipped=True),
}
"""EXIF's orientation tag (CIPA DC-008)."""


def from_display_matrix(data: bytes) -> Orientation:
    """The orientation of a display matrix (ISO 14496-12, 8.2.2.3): nine int32, as FFmpeg hands them out.

    Stored point (p, q) is shown at (a p + c q + x, b p + d q + y). A matrix of zeros turns nothing.

    Raises:
        DecodeFailure: it turns by another angle than quarter turns.
    """
    a, b, _, c, d, _, *_ = struct.unpack("=9i", data[:36])
    straight, crossed = max(abs(a), abs(d)), max(abs(b), abs(c))
    if straight == crossed == 0:
        return UPRIGHT
    if crossed <= SKEW * straight:
        return Orientation(mirrored=a < 0, flipped=d < 0)
    if straight <= SKEW * crossed:
        return Orientation(transposed=True, mirrored=c < 0, flipped=b < 0)
    angle = math.degrees(math.atan2(b, a))
    raise DecodeFailure(
        f"its display matrix turns it by {angle:.0f} degrees; quarter turns and mirror images are known"
    )
