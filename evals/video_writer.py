"""Writing an mp4 (h264) frame by frame: complete under its name, or not there at all.

The file is one that players and browsers take: its index stands at the head (it starts while it loads), sides are even,
colours are 4:2:0, and size and rate stay within level 5.1, which decoders in hardware have: at most 3840 x 2160 px and
983,040 blocks of 16 x 16 px a second (ITU-T H.264, table A-1). Larger frames are made smaller.
"""

from __future__ import annotations

import math
import os
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mcjepa.data_prep.storage import explained_disk_errors

CRF = 20
MAX_FPS_HZ = 240.0
DEFAULT_FPS_HZ = 24.0
MOST_WIDTH_PX, MOST_HEIGHT_PX = 3840, 2160
BLOCK_PX, MOST_BLOCKS_HZ = 16, 983_040


class VideoWriter:
    """A context manager that takes RGB frames of one size; an error or an interrupt leaves no file.

    Args:
        path: the mp4; its folder is made if need be, an old file is replaced at the end.
        fps_hz: frame rate; 0 where it is unknown, which gives 24.
    """

    def __init__(self, path: Path, fps_hz: float = DEFAULT_FPS_HZ) -> None:
        self._path = path
        self._partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        self._rate = Fraction(min(fps_hz or DEFAULT_FPS_HZ, MAX_FPS_HZ)).limit_denominator(1001)
        self._container: Any = None
        self._stream: Any = None

    def __enter__(self) -> VideoWriter:
        return self

    def write(self, frame_HW3: NDArray[np.uint8]) -> None:
        """Appends a frame, (H, W, 3) uint8 RGB; one that is too large is made smaller, and odd sides are made even by
        repeating the last row or column.

        Raises:
            DataError: the disk is full or the folder cannot be written.
        """
        import av

        frame_HW3 = _of_size(frame_HW3, playable_size(frame_HW3.shape[:2], float(self._rate)))
        height, width = frame_HW3.shape[:2]
        even = np.pad(frame_HW3, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        with explained_disk_errors(str(self._path)):
            if self._container is None:
                self._open(*even.shape[:2])
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(even), format="rgb24")
            self._container.mux(self._stream.encode(frame))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._container is None:
            return
        try:
            with explained_disk_errors(str(self._path)):
                if kind is None:
                    self._container.mux(self._stream.encode(None))
                self._container.close()
                if kind is None:
                    os.replace(self._partial, self._path)
        finally:
            self._partial.unlink(missing_ok=True)

    def _open(self, height: int, width: int) -> None:
        import av

        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._container = av.open(str(self._partial), "w", format="mp4", options={"movflags": "+faststart"})
        self._stream = self._container.add_stream("libx264", rate=self._rate)
        self._stream.width, self._stream.height, self._stream.pix_fmt = width, height, "yuv420p"
        self._stream.options = {"crf": str(CRF), "preset": "veryfast", "threads": "2"}


def playable_size(size: tuple[int, ...], fps_hz: float) -> tuple[int, int]:
    """Height and width, px, that frames are made smaller to so that decoders take them; their own where they fit.

    >>> playable_size((1080, 3840), 30.0), playable_size((2160, 7680), 30.0), playable_size((2160, 3840), 120.0)
    ((1080, 3840), (1080, 3840), (1072, 1920))
    """
    height, width = size
    blocks_hz = -(-height // BLOCK_PX) * -(-width // BLOCK_PX) * fps_hz
    by_size = min(MOST_WIDTH_PX / width, MOST_HEIGHT_PX / height)
    by_rate = math.sqrt(MOST_BLOCKS_HZ / (height * width / BLOCK_PX**2 * fps_hz))
    if by_size >= 1 and blocks_hz <= MOST_BLOCKS_HZ:
        return height, width
    unit = 2 if by_size <= by_rate else BLOCK_PX  # whole blocks, where the number of blocks is the limit
    factor = min(by_size, by_rate, 1.0)
    smaller_height, smaller_width = (max(unit, int(side * factor + 1e-6) // unit * unit) for side in size)
    return smaller_height, smaller_width


def _of_size(frame_HW3: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    if frame_HW3.shape[:2] == size:
        return frame_HW3
    import cv2

    return np.asarray(cv2.resize(frame_HW3, (size[1], size[0]), interpolation=cv2.INTER_AREA), np.uint8)
