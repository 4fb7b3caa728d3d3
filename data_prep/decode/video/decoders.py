"""decord, PyAV and torchcodec: the pixels of a video's frames, upright, in presentation order.

8-bit pixels are equal in all three; of 10 bit, PyAV's differ by up to 3 of 255 in the mean.

Always sequential: random access gives wrong frames on open-GOP HEVC, and a seek costs a whole GOP. Memory holds a few
frames, whatever a video's length. decord decodes ahead without limit while its user is busy (dmlc/decord issue 208: a
video of 5 minutes fills 5 GB).
"""

from __future__ import annotations

import heapq
import sys
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from functools import partial
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from mcjepa.data_prep.decode.colour import CHROMA_PLACE, to_plain
from mcjepa.data_prep.decode.messages import DecodeFailure
from mcjepa.data_prep.decode.orientation import UPRIGHT, Orientation
from mcjepa.data_prep.decode.video.containers import VideoTable, frame_orientation, open_container, walk
from mcjepa.data_prep.decode.video.planes import PlanarFrame, is_planar, to_rgb
from mcjepa.data_prep.settings import DecoderName

ByteArray = npt.NDArray[np.uint8]
IntArray = npt.NDArray[np.int64]
Pixels = ByteArray | PlanarFrame
"""A frame as RGB (H, W, 3), or as it was decoded."""

TIME_SLACK_S = 1e-3
FRAMES_AHEAD = 4


def decode_by_decord(table: VideoTable, numbers: IntArray) -> Iterator[ByteArray]:
    """Frames `numbers` (increasing) by decord.

    It always decodes up to the end: what is damaged after the last wanted frame may be met ahead of it, by chance. For
    each frame that its decoder leaves out it gives the last one once more: two equal ones at the end are looked into.

    Raises:
        DecodeFailure: frames were left out.
    """
    import decord

    reader = decord.VideoReader(table.path, ctx=decord.cpu(0), num_threads=1)
    keys = [*reader.get_key_indices(), sys.maxsize]
    at, end = 0, len(table.times_s)
    asked = {n for n in (end - 2, end - 1) if table.refreshed and n >= 0}
    others = asked - set(numbers[-2:].tolist())
    last: list[ByteArray] = []
    try:
        for number in [*heapq.merge(numbers.tolist(), sorted(others)), end]:
            while at < number:
                # Skipping past a key frame would be a seek to it, which loses frames of open GOPs: decode over it.
                free = min(number, keys[bisect_left(keys, at)] - 1) - at
                if free > 0:
                    reader.skip_frames(free)
                else:
                    reader.next()
                at += max(1, free)
            if number < end:
                pixels = _without_padding(reader.next().asnumpy())
                at += 1
                last += [pixels] if number in asked else []
                if number not in others:
                    yield pixels
    except StopIteration:
        return
    if len(last) == len(asked) == 2 and np.array_equal(last[0], last[1]):
        _require_all_shown(table)


def _require_all_shown(table: VideoTable) -> None:
    with open_container(table.path) as container:
        shown = sum(1 for _ in frames_in_order(container, table))
    if shown < len(table.times_s):
        raise DecodeFailure(f"ended before frame {shown} of {len(table.times_s)}")


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


def _read_ahead(frames: Iterator[ByteArray], most: int) -> Iterator[ByteArray]:
    """The same frames; up to `most` are made in another thread while the last one is used."""
    end = object()
    with ThreadPoolExecutor(1) as thread:
        waiting = deque(thread.submit(next, frames, end) for _ in range(most))
        while (frame := waiting.popleft().result()) is not end:
            waiting.append(thread.submit(next, frames, end))
            yield cast(ByteArray, frame)


def _decode_by_pyav(table: VideoTable, numbers: IntArray, deinterlace: bool, convert: bool) -> Iterator[ByteArray]:
    to_pixels: Callable[[Any], ByteArray] = to_rgb
    if convert:
        to_pixels = partial(to_plain, transfer=table.facts.transfer, primaries=table.facts.primaries)
    left = len(numbers)
    for frame, orientation in _wanted_frames(table, numbers, deinterlace, CHROMA_PLACE if convert else {}):
        yield np.ascontiguousarray(orientation.apply(to_pixels(frame)))
        left -= 1
        if not left:
            return


def decode_to_planes(table: VideoTable, numbers: IntArray, deinterlace: bool = False) -> Iterator[Pixels]:
    """Frames `numbers` (increasing) by PyAV as they are decoded, up to the end of the video, as decord does.

    A frame that is unlike the first ones (another matrix, interlaced) comes as RGB.
    """
    for frame, orientation in _wanted_frames(table, numbers, deinterlace):
        if is_planar(frame):
            yield PlanarFrame(frame, orientation)
        else:
            yield np.ascontiguousarray(orientation.apply(to_rgb(frame)))


def _wanted_frames(
    table: VideoTable, numbers: IntArray, deinterlace: bool, options: Mapping[str, str] | None = None
) -> Iterator[tuple[Any, Orientation]]:
    """PyAV's frames `numbers` and how they lie; `options` are the decoder's."""
    wanted = iter(numbers.tolist())
    number = next(wanted, None)
    orientation = UPRIGHT
    with open_container(table.path) as container:
        if options:
            container.streams[table.stream].codec_context.options = options
        frames = frames_in_order(container, table)
        for at, frame in enumerate(deinterlaced(frames) if deinterlace else frames):
            orientation = frame_orientation(frame) or orientation
            if at == number:
                yield frame, orientation
                number = next(wanted, None)


def frames_in_order(container: Any, table: VideoTable) -> Iterator[Any]:
    """All frames, stretch by stretch: the decoder starts anew with each.

    Raises:
        DecodeFailure: a packet is damaged, a decoder has filled up what was missing of a frame, a frame is shown at
            another time than the container has for it, or a stretch that is not the last has another number of frames
            than its packets tell.
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
                _require_time(table, given, frame, stream)
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
            if frame.is_corrupt:
                raise DecodeFailure(f"damaged at frame {given} of {len(table.times_s)} (its decoder filled it up)")
            _require_time(table, given, frame, stream)
            yield frame
            given += 1


def _require_time(table: VideoTable, number: int, frame: Any, stream: Any) -> None:
    """Refuse a frame that is another one than its place among them says: a decoder has left some out before it."""
    if not table.exact or frame.pts is None:
        return
    found = frame.pts * float(stream.time_base)
    expected = table.times_s[number] if number < len(table.times_s) else None
    if found != expected:  # products of the same numbers
        at = "none" if expected is None else f"one at {expected:.3f} s"
        raise DecodeFailure(
            f"pictures are missing before frame {number} of {len(table.times_s)}: the decoder gives that of "
            f"{found:.3f} s, by its packets {at} comes next"
        )


def frame_number(table: VideoTable, stretch: int, packet: Any, stream: Any) -> int:
    """Number of the frame that a packet of this stretch gives, or of the first one after it."""
    start, end = np.searchsorted(table.stretches, [stretch, stretch + 1]).tolist()
    at = packet.dts if packet.pts is None else packet.pts
    if at is None:  # the empty packet at the end
        return int(end) - 1
    # The times are products of the same numbers: they are met exactly.
    return min(start + int(np.searchsorted(table.times_s[start:end], at * float(stream.time_base))), int(end) - 1)


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


DECODERS: dict[DecoderName, Callable[[VideoTable, IntArray], Iterator[Pixels]]] = {
    "decord": decode_by_decord,
    "pyav": decode_by_pyav,
    "pyav-planes": decode_to_planes,
    "torchcodec": decode_by_torchcodec,
}
"""Decoder name to `fn(table, numbers)`: frames, upright, as many as there are."""
