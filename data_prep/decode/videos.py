"""Frames of a video file in presentation order, by decord, PyAV or torchcodec.

The container is read by PyAV (`data_prep.decode.containers`), so number, time and choice of a frame do not depend on
the decoder; the decoders give pixels. 8-bit pixels are equal in all three; of 10 bit, PyAV's differ by up to 3 of
255 in the mean. Frames come upright: decord and torchcodec turn them by the display matrix themselves, PyAV's are
turned here.

Always sequential: random access gives wrong frames on open-GOP HEVC, and a seek costs a whole GOP. Memory holds a few
frames, whatever a video's length. So PyAV reads what the others cannot:

* decord decodes ahead without limit while its user is busy (dmlc/decord issue 208: a video of 5 minutes fills 5 GB).
  It reads only videos that fit into DECORD_BYTES decoded as a whole. For larger ones PyAV takes no more CPU time.
* decord and torchcodec read MP4, QuickTime, Matroska and WebM only: of transport streams decord gives no frame, of
  AVI and MPEG program streams torchcodec loses the last ones.
"""

from __future__ import annotations

import sys
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from ctypes.util import find_library
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from mcjepa.data_prep.decode.containers import VideoTable, read_table
from mcjepa.data_prep.decode.failures import DecodeFailure
from mcjepa.data_prep.errors import DataError
from mcjepa.data_prep.settings import DecoderName

ByteArray = npt.NDArray[np.uint8]
IntArray = npt.NDArray[np.int64]

INDEXED_CONTAINERS = ("mov,", "matroska,")
TIME_SLACK_S = 1e-3
DECORD_BYTES = 128 << 20
FRAMES_AHEAD = 4


@dataclass(frozen=True)
class NumberedFrame:
    """One decoded frame."""

    number: int
    pts_s: float | None
    """Presentation time, seconds; None where the material has no clock."""
    rgb: ByteArray
    """(H, W, 3)."""


def decode_by_decord(table: VideoTable, numbers: IntArray) -> Iterator[ByteArray]:
    """Frames `numbers` (increasing) by decord.

    It always decodes up to the end: what is damaged after the last wanted frame may be met ahead of it, by chance.
    """
    import decord

    reader = decord.VideoReader(table.path, ctx=decord.cpu(0), num_threads=1)
    keys = [*reader.get_key_indices(), sys.maxsize]
    at, end = 0, len(table.times_s)
    try:
        for number in [*numbers.tolist(), end]:
            while at < number:
                # Skipping past a key frame would be a seek to it, which loses frames of open GOPs: decode over it.
                free = min(number, keys[bisect_left(keys, at)] - 1) - at
                if free > 0:
                    reader.skip_frames(free)
                else:
                    reader.next()
                at += max(1, free)
            if number < end:
                yield _without_padding(reader.next().asnumpy())
                at += 1
    except StopIteration:
        return


def _without_padding(pixels: ByteArray) -> ByteArray:
    """RGB (H, W, 3) of decord's frame.

    It takes the length of a row in memory over the width for the number of channels. Rows are padded as the
    processor likes it, by AVX-512 to 64 pixels: a frame 96 wide comes as (H, 96, 4), the padding at the rows' ends.
    """
    height, width, channels = pixels.shape
    if channels == 3:
        return pixels
    return np.ascontiguousarray(pixels.reshape(height, width * channels)[:, : 3 * width]).reshape(height, width, 3)


def decode_by_pyav(table: VideoTable, numbers: IntArray) -> Iterator[ByteArray]:
    """Frames `numbers` (increasing) by PyAV, a few of them ahead in a thread, as decord does."""
    yield from _read_ahead(_decode_by_pyav(table, numbers), FRAMES_AHEAD)


def _read_ahead(frames: Iterator[ByteArray], most: int) -> Iterator[ByteArray]:
    """The same frames; up to `most` are made in another thread while the last one is used."""
    end = object()
    with ThreadPoolExecutor(1) as thread:
        waiting = deque(thread.submit(next, frames, end) for _ in range(most))
        while (frame := waiting.popleft().result()) is not end:
            waiting.append(thread.submit(next, frames, end))
            yield cast(ByteArray, frame)


def _decode_by_pyav(table: VideoTable, numbers: IntArray) -> Iterator[ByteArray]:
    """By PyAV, with decord's way of turning YUV into RGB."""
    import av
    from av.video.reformatter import Interpolation

    wanted = iter(numbers.tolist())
    number = next(wanted, None)
    with av.open(table.path, metadata_errors="replace") as container:
        stream: Any = container.streams[table.stream]
        stream.codec_context.thread_type = "NONE"
        frame: Any
        for at, frame in enumerate(container.decode(stream)):
            if at == number:
                rgb = frame.to_ndarray(format="rgb24", interpolation=Interpolation.BICUBIC, threads=1)
                yield np.ascontiguousarray(np.rot90(rgb, _quarter_turns(frame.rotation)))
                number = next(wanted, None)
            if number is None:
                return


def _quarter_turns(rotation_deg: int) -> int:
    """Counter-clockwise quarter turns for a rotation as PyAV gives it; a broken display matrix turns nothing."""
    return round(rotation_deg / 90) if abs(rotation_deg) <= 180 else 0


def decode_by_torchcodec(table: VideoTable, numbers: IntArray) -> Iterator[ByteArray]:
    """Frames `numbers` (increasing) by torchcodec."""
    from torchcodec.decoders import VideoDecoder

    decoder = VideoDecoder(
        table.path,
        stream_index=table.stream,
        dimension_order="NHWC",
        num_ffmpeg_threads=1,
        seek_mode="exact",
    )
    undecodable = len(decoder) - len(table.times_s)  # it counts pictures before the first key frame of Matroska
    for number in numbers.tolist():
        frame = decoder.get_frame_at(number + undecodable)
        if abs(frame.pts_seconds - table.times_s[number]) > TIME_SLACK_S:
            found = f"frame {number} at {frame.pts_seconds:.3f} s, the container at {table.times_s[number]:.3f} s"
            raise DecodeFailure(f"torchcodec has {found}")
        yield frame.data.numpy()


DECODERS: dict[DecoderName, Callable[[VideoTable, IntArray], Iterator[ByteArray]]] = {
    "decord": decode_by_decord,
    "pyav": decode_by_pyav,
    "torchcodec": decode_by_torchcodec,
}
"""Decoder name to `fn(table, numbers)`: RGB frames (H, W, 3), upright, as many as there are."""


def fitting_decoder(table: VideoTable, decoder: DecoderName) -> DecoderName:
    """The decoder that reads this video where `decoder` is wanted: itself or PyAV."""
    decoded_bytes = len(table.times_s) * table.width * table.height * 3
    if not table.container.startswith(INDEXED_CONTAINERS) or (decoder == "decord" and decoded_bytes > DECORD_BYTES):
        return "pyav"
    return decoder


class Video:
    """A video file: what its container says, and its frames."""

    def __init__(self, table: VideoTable, decoder: DecoderName) -> None:
        """Decode `table`'s stream by `decoder`; nothing is decoded yet."""
        self.table = table
        self.frame_count = len(table.times_s)
        self._decode = DECODERS[fitting_decoder(table, decoder)]

    def read(self, numbers: IntArray) -> Iterator[NumberedFrame]:
        """The frames `numbers` (increasing).

        Raises:
            Exception: whatever the decoder raises on damaged frames.
            DecodeFailure: it ends before the last one.
        """
        at = 0
        for rgb in self._decode(self.table, numbers):
            number = int(numbers[at])
            yield NumberedFrame(number, float(self.table.times_s[number]), rgb)
            at += 1
        if at < len(numbers):
            raise DecodeFailure(f"ended before frame {numbers[at]} of {self.frame_count}")


def open_video(path: str, decoder: DecoderName, max_megapixels: float = float("inf")) -> Video:
    """Open a video file.

    Raises:
        DecodeFailure: no readable video, cut off, or its frames have more pixels than allowed.
    """
    return Video(read_table(path, max_megapixels), decoder)


def import_decoder(decoder: DecoderName) -> None:
    """Load a decoder's libraries, and PyAV, which reads containers.

    Raises:
        DataError: they are not installed, or do not load.
    """
    import av  # noqa: F401

    if decoder == "decord":
        import decord  # noqa: F401
    elif decoder == "torchcodec":
        try:
            import torchcodec.decoders  # noqa: F401
        except (ImportError, OSError, RuntimeError) as error:
            cause = str(error).strip().partition("\n")[0]
            raise DataError(
                f"torchcodec does not load ({cause}); expected the extra mcjepa[torchcodec] and the system's FFmpeg "
                "libraries; run `pip install 'mcjepa[torchcodec]'` and `apt install ffmpeg`, or set decoder=decord"
            ) from error


def decoder_version(decoder: DecoderName) -> str:
    """Names and versions of what reads and decodes videos, without importing it."""
    versions = [_package_version({"decord": "decord2", "pyav": "av"}.get(decoder, decoder))]
    if decoder != "pyav":
        versions.append(_package_version("av"))  # reads containers
    if decoder == "torchcodec":
        versions.append(find_library("avcodec") or "no libavcodec")
    return ", ".join(versions)


def _package_version(package: str) -> str:
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return f"{package} (not installed)"
