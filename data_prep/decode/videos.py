"""Frames of a video file in presentation order, decoded from its beginning, by decord or PyAV.

Always sequential: random access gives wrong frames on open-GOP HEVC, and a seek costs a whole GOP. The
number of a frame is its place in presentation order, its time the presentation time that the file gives.
One thread, one reader; memory holds a few frames.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

import numpy as np
import numpy.typing as npt

from data_prep.config import DecoderName
from data_prep.decode.failures import DecodeFailure

ByteArray = npt.NDArray[np.uint8]
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Frame:
    """One decoded frame."""

    number: int
    pts_s: float | None
    """Presentation time, seconds; None where the material has no clock."""
    rgb: ByteArray
    """(H, W, 3)."""


def decoder_version(decoder: DecoderName) -> str:
    """Name and version of a decoder's package, without importing it."""
    for package in {"decord": ("decord2", "decord"), "pyav": ("av",)}[decoder]:
        try:
            return f"{package} {version(package)}"
        except PackageNotFoundError:
            continue
    return f"{decoder} (not installed)"


class DecordVideo:
    """A video opened by decord."""

    def __init__(self, path: str) -> None:
        """Open the file.

        Raises:
            Exception: whatever decord raises on a file it cannot read.
        """
        import decord

        self._reader = decord.VideoReader(path, ctx=decord.cpu(0), num_threads=1)
        self.frame_count = len(self._reader)
        self.fps_hz = float(self._reader.get_avg_fps())

    def read(self, numbers: IntArray) -> Iterator[Frame]:
        """The frames `numbers` (increasing)."""
        times = self._reader.get_frame_timestamp(np.arange(self.frame_count))[:, 0]
        at = 0
        for number in numbers.tolist():
            if number > at:
                self._reader.skip_frames(number - at)
            try:
                frame = self._reader.next().asnumpy()
            except StopIteration:
                raise DecodeFailure(f"ended before frame {number} of {self.frame_count}") from None
            at = number + 1
            yield Frame(number, float(times[number]), frame)


class PyavVideo:
    """A video opened by PyAV."""

    def __init__(self, path: str) -> None:
        """Open the file and count the frames of its best video stream.

        Raises:
            Exception: whatever PyAV raises on a file it cannot read.
        """
        import av

        self._path = path
        with av.open(path) as container:
            stream = container.streams.best("video")
            if stream is None:
                raise DecodeFailure("no video stream")
            self._video_index = [s.index for s in container.streams.video].index(stream.index)
            self.frame_count = sum(p.size > 0 and not p.is_discard for p in container.demux(stream))
            self.fps_hz = float(getattr(stream, "average_rate", None) or 0)

    def read(self, numbers: IntArray) -> Iterator[Frame]:
        """The frames `numbers` (increasing)."""
        import av

        with av.open(self._path) as container:
            stream = container.streams.video[self._video_index]
            stream.codec_context.thread_type = "NONE"
            wanted = iter(numbers.tolist())
            number = next(wanted, None)
            for at, frame in enumerate(container.decode(stream)):
                if number is None:
                    return
                if at == number:
                    pts_s = None if frame.time is None else float(frame.time)
                    rgb = np.asarray(frame.to_ndarray(format="rgb24"), np.uint8)
                    yield Frame(number, pts_s, rgb)
                    number = next(wanted, None)
            if number is not None:
                raise DecodeFailure(f"ended before frame {number} of {self.frame_count}")


def open_video(path: str, decoder: DecoderName) -> DecordVideo | PyavVideo:
    """Open a video file with the named decoder."""
    return DecordVideo(path) if decoder == "decord" else PyavVideo(path)
