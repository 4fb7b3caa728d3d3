"""Frames that stay planes of Y'CbCr: shrunk by swscale, and made into a JPEG without becoming RGB on the way.

A JPEG file holds Y'CbCr by BT.601's matrix in full range, its chroma halved and sampled in the middle of four pixels
(JFIF 1.02, ITU-T T.871). A decoded frame has another range, often another matrix, and chroma that most codecs sample at
the left. So it is shrunk with chroma as large as luma, plane by plane and into full range (swscale's area filter);
BT.709 and BT.2020 are turned into BT.601; and means of 2x2 halve the chroma, as they do on the way from RGB. A frame
that keeps its size keeps its chroma samples, which become RGB unfiltered in the other decoders too.

What has no planes of these kinds (RGB, grey, alpha), another matrix or interlacing is for the way by RGB.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import cv2
import numpy as np
import numpy.typing as npt

from mcjepa.data_prep.decode.colour import LUMA
from mcjepa.data_prep.decode.orientation import UPRIGHT, Orientation

ByteArray = npt.NDArray[np.uint8]

HALVED = ("yuv420p", "yuvj420p")
"""Pixel formats of 8 bits whose chroma a JPEG can take as it is."""
FORMATS = frozenset(
    [f"yuv{chroma}p{depth}" for chroma in (420, 422, 444) for depth in ("", "10le", "12le")]
    + [f"yuvj{chroma}p" for chroma in (420, 422, 444)]
)
UNSPECIFIED = 2
"""H.273's number of a matrix that nobody names: BT.601, as swscale takes it."""
CENTRE = 128


@dataclass(frozen=True)
class Planes:
    """A picture as a JPEG holds it: Y'CbCr by BT.601 in full range."""

    y: ByteArray
    """(H, W)."""
    cb: ByteArray
    """(⌈H/2⌉, ⌈W/2⌉)."""
    cr: ByteArray
    """(⌈H/2⌉, ⌈W/2⌉)."""

    @property
    def size(self) -> tuple[int, int]:
        """Width and height, px."""
        return self.y.shape[1], self.y.shape[0]

    def rgb(self) -> ByteArray:
        """The picture as RGB (H, W, 3)."""
        cb, cr = (_enlarged(plane, self.size) for plane in (self.cb, self.cr))
        return np.asarray(cv2.cvtColor(cv2.merge([self.y, cr, cb]), cv2.COLOR_YCrCb2RGB), np.uint8)


@dataclass(frozen=True)
class PlanarFrame:
    """A decoded frame whose planes a JPEG can be made of."""

    frame: Any
    """PyAV's frame, one that `is_planar`."""
    orientation: Orientation = UPRIGHT
    """How it comes upright."""

    @property
    def size(self) -> tuple[int, int]:
        """Width and height upright, px."""
        return self._coded((self.frame.width, self.frame.height))

    def rgb(self) -> ByteArray:
        """The whole frame as RGB (H, W, 3), upright."""
        return np.ascontiguousarray(self.orientation.apply(to_rgb(self.frame)))

    def resized(self, size: tuple[int, int]) -> Planes:
        """Its planes upright at this width and height, px."""
        matrix = LUMA[_matrix(self.frame)]
        if size == self.size and self.frame.format.name in HALVED and self.orientation == UPRIGHT:
            y, cb, cr = self._planes(size, "yuv420p")
            if matrix != LUMA[6]:
                y = _luma_of_601(y, _enlarged(cb, size), _enlarged(cr, size), matrix)
        else:
            y, cb, cr = self._planes(self._coded(size), "yuv444p")
            if matrix != LUMA[6]:
                y = _luma_of_601(y, cb, cr, matrix)
            cb, cr = _halved(cb), _halved(cr)
        if matrix != LUMA[6]:
            cb, cr = _chroma_of_601(cb, cr, matrix)
        return Planes(y, cb, cr)

    def _coded(self, upright: tuple[int, int]) -> tuple[int, int]:
        """Width and height as coded of those upright, and the other way round."""
        return upright[::-1] if self.orientation.transposed else upright

    def _planes(self, coded: tuple[int, int], pixels: str) -> list[ByteArray]:
        """Y', Cb and Cr in full range by its own matrix, resized to the size `coded`, then upright."""
        found = _area_resize()(self.frame, *coded, pixels)
        planes = (np.frombuffer(plane, np.uint8).reshape(plane.height, -1)[:, : plane.width] for plane in found.planes)
        return [self.orientation.apply(plane) for plane in planes]


def is_planar(frame: Any) -> bool:
    """Whether a frame of PyAV is stored as planes that need no RGB to become a JPEG's."""
    return frame.format.name in FORMATS and _matrix(frame) in LUMA and not frame.interlaced_frame


def to_rgb(frame: Any) -> ByteArray:
    """RGB (H, W, 3) of a frame of PyAV with decord's way of turning YUV into RGB."""
    from av.video.reformatter import Interpolation

    return cast(ByteArray, frame.to_ndarray(format="rgb24", interpolation=Interpolation.BICUBIC, threads=1))


@functools.cache
def _area_resize() -> Callable[[Any, int, int, str], Any]:
    """swscale's to full range, by one context for all frames: it keeps what it has set up while nothing changes."""
    from av.video.reformatter import ColorRange, Interpolation, VideoReformatter

    area = Interpolation.AREA | Interpolation.ACCURATE_RND | Interpolation.BITEXACT  # the same on every processor
    return partial(VideoReformatter().reformat, interpolation=area, dst_color_range=ColorRange.JPEG, threads=1)


def _matrix(frame: Any) -> int:
    """H.273's number of its matrix; that of BT.601 where nobody names one."""
    number = int(frame.colorspace)
    return 6 if number == UNSPECIFIED else number


def _luma_of_601(y: ByteArray, cb: ByteArray, cr: ByteArray, matrix: tuple[float, float]) -> ByteArray:
    """Y' of BT.601 of planes of one size by another matrix: grey stays, colours are weighed anew."""
    (of_cb, of_cr), _, _ = _to_601(matrix)
    shift = cv2.addWeighted(cb, of_cb, cr, of_cr, -CENTRE * (of_cb + of_cr), dtype=cv2.CV_32F)
    return np.asarray(cv2.add(y, shift, dtype=cv2.CV_8U), np.uint8)


def _chroma_of_601(cb: ByteArray, cr: ByteArray, matrix: tuple[float, float]) -> tuple[ByteArray, ByteArray]:
    """Cb and Cr of BT.601 of those of another matrix."""
    _, to_cb, to_cr = _to_601(matrix)
    found = (cv2.addWeighted(cb, of_cb, cr, of_cr, CENTRE * (1 - of_cb - of_cr)) for of_cb, of_cr in (to_cb, to_cr))
    new_cb, new_cr = (np.asarray(plane, np.uint8) for plane in found)
    return new_cb, new_cr


@functools.cache
def _to_601(matrix: tuple[float, float]) -> tuple[tuple[float, float], ...]:
    """What Cb and Cr of a matrix add to Y', to Cb and to Cr of BT.601.

    Args:
        matrix: Weights of red and blue in Y'.

    >>> [tuple(round(weight, 4) for weight in row) for row in _to_601(LUMA[1])]
    [(0.1016, 0.1961), (0.9899, -0.1107), (-0.0724, 0.9834)]
    """
    change = _from_rgb(LUMA[6]) @ np.linalg.inv(_from_rgb(matrix))
    return tuple((float(row[1]), float(row[2])) for row in change)


def _from_rgb(matrix: tuple[float, float]) -> npt.NDArray[np.float64]:
    """(3, 3): R'G'B' to Y'CbCr, all of full range (ITU-T H.273, 8.3)."""
    red, blue = matrix
    luma = np.array([red, 1 - red - blue, blue])
    return np.stack([luma, (np.eye(3)[2] - luma) / (2 * (1 - blue)), (np.eye(3)[0] - luma) / (2 * (1 - red))])


def even_sided(plane: ByteArray) -> ByteArray:
    """A plane (H, W) whose odd last row or column comes twice."""
    height, width = plane.shape
    if not (height % 2 or width % 2):
        return plane
    return np.asarray(cv2.copyMakeBorder(plane, 0, height % 2, 0, width % 2, cv2.BORDER_REPLICATE), np.uint8)


def _halved(plane: ByteArray) -> ByteArray:
    """Means of 2x2 of a plane (H, W), (⌈H/2⌉, ⌈W/2⌉)."""
    even = even_sided(plane)
    size = even.shape[1] // 2, even.shape[0] // 2
    return np.asarray(cv2.resize(even, size, interpolation=cv2.INTER_AREA), np.uint8)


def _enlarged(plane: ByteArray, size: tuple[int, int]) -> ByteArray:
    """A halved plane at the whole's width and height, linearly."""
    doubled = cv2.resize(plane, (2 * plane.shape[1], 2 * plane.shape[0]), interpolation=cv2.INTER_LINEAR)
    return np.asarray(doubled[: size[1], : size[0]], np.uint8)
