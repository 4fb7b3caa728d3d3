"""Writing an mp4 (h264) frame by frame: complete under its name, or not there at all."""

from __future__ import annotations

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
        """Appends a frame, (H, W, 3) uint8 RGB; odd sides are made even by repeating the last row or column.

        Raises:
            DataError: the disk is full or the folder cannot be written.
        """
        import av

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
        self._container = av.open(str(self._partial), "w", format="mp4")
        self._stream = self._container.add_stream("libx264", rate=self._rate)
        self._stream.width, self._stream.height, self._stream.pix_fmt = width, height, "yuv420p"
        self._stream.options = {"crf": str(CRF), "preset": "veryfast", "threads": "2"}
