"""Frames of a video file in presentation order, by decord, PyAV or torchcodec.

The container is read by PyAV (`data_prep.decode.containers`), so number, time and choice of a frame do not depend on
the decoder; the decoders give pixels. 8-bit pixels are equal in all three; of 10 bit, PyAV's differ by up to 3 of
255 in the mean. Frames come upright and with square pixels.

decord and torchcodec decode plain videos only; `fitting_decoder` names what PyAV decodes for them. They turn some
pictures wrongly (mirrored ones), squeeze those that come after a change of size, and know no interlacing.

Always sequential: random access gives wrong frames on open-GOP HEVC, and a seek costs a whole GOP. Memory holds a few
frames, whatever a video's length. So PyAV reads what the others cannot:

* decord decodes ahead without limit while its user is busy (dmlc/decord issue 208: a video of 5 minutes fills 5 GB).
  It reads only videos that fit into DECORD_BYTES decoded as a whole. For larger ones PyAV takes no more CPU time.
* decord and torchcodec read MP4, QuickTime, Matroska and WebM only: of transport streams decord gives no frame, of
  AVI and MPEG program streams torchcodec loses the last ones. Without a declared duration (recorders in browsers)
  decord fails.
"""

from __future__ import annotations

import sys
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from ctypes.util import find_library
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any, cast

import cv2
import numpy as np
import numpy.typing as npt

from mcjepa.data_prep.decode.colour import CHROMA_PLACE, converts, to_plain
from mcjepa.data_prep.decode.containers import (
    VideoTable,
    frame_orientation,
    open_container,
    read_table,
    square_size,
    walk,
)
from mcjepa.data_prep.decode.messages import DecodeFailure, Unwanted
from mcjepa.data_prep.decode.orientation import UPRIGHT
from mcjepa.data_prep.settings import DecoderName, VideoConfig

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
    whole: tuple[int, int] | None = None
    """Width and height of a picture of which `rgb` is a fraction; None: those of `rgb`."""


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


def decode_by_pyav(
    table: VideoTable, numbers: IntArray, deinterlace: bool = False, convert: bool = False
) -> Iterator[ByteArray]:
    """Frames `numbers` (increasing) by PyAV, a few of them ahead in a thread, as decord does.

    Args:
        table: What its container says.
        numbers: The frames.
        deinterlace: Make whole frames of interlaced ones.
        convert: Map wide colours to plain ones.
    """
    yield from _read_ahead(_decode_by_pyav(table, numbers, deinterlace, convert), FRAMES_AHEAD)


def _as_decord(frame: Any) -> ByteArray:
    """RGB (H, W, 3) with decord's way of turning YUV into RGB."""
    from av.video.reformatter import Interpolation

    return cast(ByteArray, frame.to_ndarray(format="rgb24", interpolation=Interpolation.BICUBIC, threads=1))


def _read_ahead(frames: Iterator[ByteArray], most: int) -> Iterator[ByteArray]:
    """The same frames; up to `most` are made in another thread while the last one is used."""
    end = object()
    with ThreadPoolExecutor(1) as thread:
        waiting = deque(thread.submit(next, frames, end) for _ in range(most))
        while (frame := waiting.popleft().result()) is not end:
            waiting.append(thread.submit(next, frames, end))
            yield cast(ByteArray, frame)


def _decode_by_pyav(table: VideoTable, numbers: IntArray, deinterlace: bool, convert: bool) -> Iterator[ByteArray]:
    to_rgb: Callable[[Any], ByteArray] = _as_decord
    if convert:
        to_rgb = partial(to_plain, transfer=table.facts.transfer, primaries=table.facts.primaries)
    wanted = iter(numbers.tolist())
    number = next(wanted, None)
    orientation = UPRIGHT
    with open_container(table.path) as container:
        if convert:
            container.streams[table.stream].codec_context.options = CHROMA_PLACE
        frames = _frames_in_order(container, table)
        for at, frame in enumerate(deinterlaced(frames) if deinterlace else frames):
            orientation = frame_orientation(frame) or orientation
            if at == number:
                yield np.ascontiguousarray(orientation.apply(to_rgb(frame)))
                number = next(wanted, None)
            if number is None:
                return


def _frames_in_order(container: Any, table: VideoTable) -> Iterator[Any]:
    """All frames, stretch by stretch: the decoder starts anew with each.

    Raises:
        DecodeFailure: a packet is damaged, or a stretch that is not the last has another number of frames than its
            packets tell.
    """
    from av.error import FFmpegError

    stream: Any = container.streams[table.stream]
    context = stream.codec_context
    context.thread_type = "NONE"
    ends = np.flatnonzero(np.diff(table.stretches)) + 1
    given = stretch = 0
    for packet, begins in walk(container, stream):
        if begins:
            for frame in context.decode(None):
                yield frame
                given += 1
            if given != ends[stretch]:
                raise DecodeFailure(f"its part {stretch + 1} ends at frame {given}, by its packets at {ends[stretch]}")
            context.flush_buffers()
            stretch += 1
        try:
            decoded = packet.decode()
        except FFmpegError as error:
            number = frame_number(table, stretch, packet, stream)
            raise DecodeFailure(f"damaged at frame {number} of {len(table.times_s)} ({error.strerror})") from error
        for frame in decoded:
            yield frame
            given += 1


def frame_number(table: VideoTable, stretch: int, packet: Any, stream: Any) -> int:
    """Number of the frame that a packet of this stretch gives, or of the first one after it."""
    start, end = np.searchsorted(table.stretches, [stretch, stretch + 1]).tolist()
    at = packet.dts if packet.pts is None else packet.pts
    if at is None:  # the empty packet at the end
        return int(end) - 1
    # The times are products of the same numbers: they are met exactly.
    return min(start + int(np.searchsorted(table.times_s[start:end], at * float(stream.time_base))), int(end) - 1)


def explain_failure(table: VideoTable, decoder: DecoderName, error: Exception) -> str:
    """Why a decoder failed, in words that are the same on every run.

    decord decodes in threads: which of its errors comes first, and at which frame, is chance. PyAV tells which packet
    is damaged.
    """
    if decoder != "pyav":
        try:
            with open_container(table.path) as container:
                for _ in _frames_in_order(container, table):
                    pass
        except DecodeFailure as failure:
            return str(failure)
    return f"{decoder} cannot decode it ({type(error).__name__}: {error}); PyAV may: set decoder=pyav"


def deinterlaced(frames: Iterator[Any]) -> Iterator[Any]:
    """The same number of frames; from the first interlaced one on, those that are so come from both of their fields."""
    graph: Any = None
    kind: tuple[int, int, str] | None = None
    for frame in frames:
        if graph is None and not frame.interlaced_frame:
            yield frame
            continue
        if (frame.width, frame.height, frame.format.name) != kind:
            yield from _drained(graph)
            graph, kind = _yadif(frame), (frame.width, frame.height, frame.format.name)
        graph.push(frame)
        yield from _pulled(graph)
    yield from _drained(graph)


def _yadif(frame: Any) -> Any:
    from av.filter import Graph

    graph = Graph()
    graph.link_nodes(
        graph.add_buffer(
            width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base or Fraction(1, 1000)
        ),
        graph.add("yadif", "mode=send_frame:deint=interlaced"),
        graph.add("buffersink"),
    ).configure()
    return graph


def _drained(graph: Any) -> Iterator[Any]:
    if graph is not None:
        graph.push(None)
        yield from _pulled(graph)


def _pulled(graph: Any) -> Iterator[Any]:
    from av.error import BlockingIOError as NeedsMore
    from av.error import EOFError as AtEnd

    while True:
        try:
            yield graph.pull()
        except (NeedsMore, AtEnd):
            return


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
    """The decoder that reads this video where `decoder` is wanted: itself, or PyAV where the video is not plain."""
    decoded_bytes = len(table.times_s) * table.width * table.height * 3
    plain = (
        table.container.startswith(INDEXED_CONTAINERS)
        and table.timed
        and table.steady
        and table.facts.orientation == UPRIGHT
        and not table.facts.interlaced
        and not table.stretches.any()
    )
    return decoder if plain and (decoder != "decord" or decoded_bytes <= DECORD_BYTES) else "pyav"


class Video:
    """A video file: what its container says, and its frames."""

    def __init__(self, table: VideoTable, decoder: DecoderName, config: VideoConfig) -> None:
        """Decode `table`'s stream by `decoder`; nothing is decoded yet.

        Raises:
            Unwanted: its colours or its interlacing are refused by the settings.
        """
        self.table = table
        self.frame_count = len(table.times_s)
        facts = table.facts
        convert = config.wide_colours == "convert" and bool(facts.wide_colours)
        if (
            facts.wide_colours
            and config.wide_colours != "keep"
            and not (convert and converts(facts.transfer, facts.primaries))
        ):
            raise Unwanted(f"{facts.wide_colours}: stored as they are its colours would be wrong; see wide_colours")
        self.decoder = "pyav" if convert else fitting_decoder(table, decoder)
        self._decode = DECODERS[self.decoder]
        if facts.interlaced and config.interlaced == "refuse":
            raise Unwanted("interlaced: refused by interlaced=refuse")
        if self.decoder == "pyav":
            deinterlace = config.interlaced == "deinterlace"
            self._decode = partial(decode_by_pyav, deinterlace=deinterlace, convert=convert)
        aspect = table.pixel_aspect if config.square_pixels else Fraction(1)
        self.size = table.upright_size(aspect)
        """Width and height of its first frames as `read` gives them, px."""
        self._aspect = 1 / aspect if facts.orientation.transposed else aspect

    def read(self, numbers: IntArray) -> Iterator[NumberedFrame]:
        """The frames `numbers` (increasing).

        Raises:
            DecodeFailure: it is damaged, or ends before the last one.
        """
        at = 0
        for rgb in self._decoded(numbers):
            number = int(numbers[at])
            yield NumberedFrame(number, float(self.table.times_s[number]), square(rgb, self._aspect))
            at += 1
        if at < len(numbers):
            raise DecodeFailure(f"ended before frame {numbers[at]} of {self.frame_count}")

    def _decoded(self, numbers: IntArray) -> Iterator[ByteArray]:
        """The decoder's frames; what it says of damage in our words."""
        try:
            yield from self._decode(self.table, numbers)
        except (DecodeFailure, MemoryError):
            raise
        except Exception as error:  # decord's class derives from nothing narrower
            raise DecodeFailure(explain_failure(self.table, self.decoder, error)) from error


def square(rgb: ByteArray, aspect: Fraction) -> ByteArray:
    """A picture (H, W, 3) whose pixels have this width over their height, with square pixels (bilinear)."""
    if aspect == 1:
        return rgb
    size = square_size(rgb.shape[1], rgb.shape[0], aspect)
    return np.asarray(cv2.resize(rgb, size, interpolation=cv2.INTER_LINEAR), np.uint8)


def open_video(
    path: str, decoder: DecoderName, max_megapixels: float = float("inf"), config: VideoConfig | None = None
) -> Video:
    """Open a video file.

    Raises:
        DecodeFailure: no readable video, cut off, or its frames have more pixels than allowed.
        Unwanted: its colours or its interlacing are refused by `config`; None refuses nothing.
    """
    return Video(read_table(path, max_megapixels), decoder, config or VideoConfig(wide_colours="keep"))


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
