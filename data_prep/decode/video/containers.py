"""What a video's container says, read by PyAV whichever decoder is used: so all decoders agree on every frame.

The stream is FFmpeg's "best" video stream (the most pixels, cover pictures left out). Its frames are numbered by
presentation time, over the packets that give a picture: those with content that no edit list discards, from the
first key frame's time on (pictures shown before it lean on frames that the file does not have), and from the first
picture that a decoder gives: where intra refresh stands for key frames, a stream that was cut takes some to recover.

Where times start again (one recording behind another in a file) a new stretch begins: its frames come after those of
the stretch before, whatever their times. A few frames are decoded for what only they tell: orientation, colours,
interlacing.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mcjepa.data_prep.decode.colour import name_wide_colours
from mcjepa.data_prep.decode.kinds import HEAD_BYTES, describe_content
from mcjepa.data_prep.decode.messages import DecodeFailure, require_megapixels
from mcjepa.data_prep.decode.orientation import UPRIGHT, Orientation, from_display_matrix
from mcjepa.data_prep.decode.video.completeness import packet_end_s, require_whole_file, require_whole_play
from mcjepa.data_prep.decode.video.parameter_sets import ParameterSets
from mcjepa.data_prep.decode.video.planes import is_planar

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

# Playlists and other formats that make FFmpeg open further files are not among them.
FORMATS = (
    "mov,mp4,matroska,webm,avi,mpegts,mpeg,asf,flv,ogg,mxf,nut,ivf,mpegvideo,m4v,h264,hevc,dv,"
    "mp3,wav,flac,aac,ac3,aiff,w64"
)
BACK_S, AHEAD_S = 0.1, 3600.0
"""Steps of the decoding time that no single recording makes; before a key frame, no step back at all."""
PROBED_FRAMES, PROBED_PACKETS = 3, 64
MOST_ASPECT = 8


@dataclass(frozen=True)
class FrameFacts:
    """What the first decoded frames tell of all."""

    orientation: Orientation = UPRIGHT
    interlaced: bool = False
    transfer: int = 0
    """H.273's number of the transfer characteristics; 0 or 2: not said."""
    primaries: int = 0
    """H.273's number of the colour primaries."""
    planar: bool = False
    """Whether they are planes that need no RGB to become a JPEG's."""

    @property
    def wide_colours(self) -> str:
        """What of its colours is not that of plain video, in words; empty where nothing is."""
        return name_wide_colours(self.transfer, self.primaries)


@dataclass(frozen=True)
class VideoTable:
    """The best video stream of a file."""

    path: str
    container: str
    """FFmpeg's name of the format, e.g. `mov,mp4,m4a,3gp,3g2,mj2`."""
    stream: int
    """Index of the stream in the container."""
    width: int
    """As coded, before any turn."""
    height: int
    fps_hz: float
    """Mean frame rate by the container; 0 where it does not say."""
    times_s: FloatArray
    """Presentation time of every frame, seconds on the clock of its stretch, (frames,)."""
    stretches: IntArray
    """Number of the stretch of every frame, from 0, (frames,)."""
    pixel_aspect: Fraction
    """Width of a coded pixel over its height."""
    facts: FrameFacts
    steady: bool
    """Whether the container's packets tell that all frames have one size."""
    timed: bool
    """Whether the container declares how long it is."""
    exact: bool = True
    """Whether every packet says when its picture is shown."""
    refreshed: bool = False
    """Whether it has key frames that its decoder can only recover by (H.264: open groups, intra refresh)."""
    late: bool = False
    """Whether the first pictures after the first key frame are not shown: the decoder has to recover first."""

    def upright_size(self, aspect: Fraction) -> tuple[int, int]:
        """Width and height upright, px, where pixels of `aspect` are made square."""
        width, height = square_size(self.width, self.height, aspect)
        return (height, width) if self.facts.orientation.transposed else (width, height)


def square_size(width: int, height: int, aspect: Fraction) -> tuple[int, int]:
    """Size of a picture with square pixels: the axis along which its pixels are longer is stretched.

    >>> square_size(720, 576, Fraction(16, 15)), square_size(720, 480, Fraction(8, 9))
    ((768, 576), (720, 540))
    """
    return (round(width * aspect), height) if aspect >= 1 else (width, round(height / aspect))


def read_table(path: str, max_megapixels: float) -> VideoTable:
    """Read a video file's container.

    Raises:
        DecodeFailure: no readable video, cut off, or its frames have more pixels than allowed.
    """
    import av

    head = _read_head(path)
    kind = describe_content(head)
    if kind.endswith("image"):
        raise DecodeFailure(f"holds {kind}, not a video")
    require_whole_file(path)
    try:
        with open_container(path) as container:
            return _read_stream(path, container, max_megapixels)
    except av.error.FFmpegError as error:
        raise DecodeFailure(f"FFmpeg cannot read it ({error.strerror}): it holds {kind}, or is damaged") from None


def open_container(path: str) -> Any:
    """Open a video file in PyAV, as one of the known formats only."""
    import av

    return av.open(path, options={"format_whitelist": FORMATS}, metadata_errors="replace")


def _read_stream(path: str, container: Any, max_megapixels: float) -> VideoTable:
    from av.stream import Disposition

    stream = container.streams.best("video")
    if stream is None or stream.disposition & Disposition.attached_pic:
        raise DecodeFailure("no video stream")
    if stream.codec_context is None:
        raise DecodeFailure("no decoder for its video stream")
    width, height = stream.codec_context.width, stream.codec_context.height
    require_megapixels(width, height, max_megapixels)
    aspect = _pixel_aspect(stream)
    require_megapixels(*square_size(width, height, aspect), max_megapixels)
    index, fps_hz = stream.index, float(stream.average_rate or 0)
    parameters = ParameterSets(stream.codec_context.name, stream.codec_context.extradata)
    first_frames = _FirstFrames(stream)
    packets = _walk_packets(container, stream, parameters, first_frames)
    if not len(packets.ticks):
        raise DecodeFailure("its video stream has no frames")
    timed = bool(container.duration or stream.duration)
    require_whole_play(container, stream, packets.end_s)
    facts = first_frames.facts()
    unshown = first_frames.count_unshown(packets) if packets.exact else 0
    times_s = (packets.ticks[unshown:] * float(stream.time_base)).astype(np.float64)
    return VideoTable(
        path=path,
        container=container.format.name,
        stream=index,
        width=width,
        height=height,
        fps_hz=fps_hz,
        times_s=times_s,
        stretches=packets.stretches[unshown:],
        pixel_aspect=aspect,
        facts=facts,
        steady=parameters.steady,
        timed=timed,
        exact=packets.exact,
        refreshed=parameters.refreshed,
        late=unshown > 0,
    )


def _pixel_aspect(stream: Any) -> Fraction:
    """Width of a pixel over its height; 1 where nobody says."""
    aspect = Fraction(stream.sample_aspect_ratio or 1)
    if aspect <= 0:
        return Fraction(1)
    if not Fraction(1, MOST_ASPECT) <= aspect <= MOST_ASPECT:
        raise DecodeFailure(f"pixels of aspect ratio {aspect}; at most {MOST_ASPECT} to 1 is known")
    return aspect


def walk(container: Any, stream: Any) -> Iterator[tuple[Any, bool]]:
    """The packets of a stream, and whether one begins a new stretch; the last packet is empty."""
    last: dict[str, int] = {}
    tick_s = float(stream.time_base)
    for packet in container.demux(stream):
        # Presentation times step back and forth within a group of pictures; decoding times may be missing.
        clock = "pts" if packet.dts is None else "dts"
        at = getattr(packet, clock)
        begins = False
        if packet.size and at is not None:
            step_s = (at - last.get(clock, at)) * tick_s
            back_s = BACK_S if clock == "dts" else 10 * BACK_S
            begins = step_s < -back_s or step_s > AHEAD_S or (step_s < 0 and clock == "dts" and packet.is_keyframe)
            if begins:
                last.clear()
            last[clock] = max(at, last.get(clock, at))
        yield packet, begins


class _Packets(NamedTuple):
    """What the packets of a stream tell of its frames, in order."""

    ticks: IntArray
    stretches: IntArray
    end_s: float
    """When the last one ends."""
    exact: bool
    """Whether each has a presentation time."""


def _walk_packets(container: Any, stream: Any, parameters: ParameterSets, first_frames: _FirstFrames) -> _Packets:
    times: list[IntArray] = []
    ticks, first_key, end_s, exact = array("q"), None, 0.0, True
    for packet, begins in walk(container, stream):
        if begins:
            times.append(_shown(ticks, first_key))
            ticks, first_key = array("q"), None
        first_frames.look_at(packet)
        at = packet.dts if packet.pts is None else packet.pts
        if not packet.size:
            continue
        if at is None:
            raise DecodeFailure(f"no presentation time for frame {sum(map(len, times)) + len(ticks)}")
        if packet.is_keyframe:
            parameters.add(packet)
            first_key = at if first_key is None else first_key
        if not (packet.is_discard or _is_hidden(packet)):
            ticks.append(at)
            exact = exact and packet.pts is not None
        end_s = max(end_s, packet_end_s(packet))
    times.append(_shown(ticks, first_key))
    numbers = np.repeat(np.arange(len(times)), [len(part) for part in times])
    return _Packets(np.concatenate(times), numbers.astype(np.int64), end_s, exact)


def _is_hidden(packet: Any) -> bool:
    """Whether a packet of VP8 gives no picture, as those of its alternative references (RFC 6386, section 9.1)."""
    return packet.stream.codec_context.name in ("vp8", "libvpx") and not bytes(packet)[0] & 0b10000


def _shown(ticks: array[int], first_key: int | None) -> IntArray:
    """The presentation times of a stretch, increasing, from that of its first key frame on."""
    times = np.sort(np.frombuffer(ticks, np.int64)) if ticks else np.empty(0, np.int64)
    if first_key is not None:
        times = times[np.searchsorted(times, first_key) :]
    return times


class _FirstFrames:
    """Decodes the first packets of a stream while they are walked over."""

    def __init__(self, stream: Any) -> None:
        stream.codec_context.thread_type = "NONE"
        self._frames: list[Any] = []
        self._packets = 0
        self._damaged = False

    def look_at(self, packet: Any) -> None:
        """Decode a packet, the next one, as long as more frames are needed."""
        from av.error import FFmpegError

        if len(self._frames) >= PROBED_FRAMES or self._packets > PROBED_PACKETS:
            return
        self._packets += 1
        try:
            self._frames += packet.decode()
        except FFmpegError:  # the decoder proper says what is wrong with it
            self._damaged = True

    def facts(self) -> FrameFacts:
        """What they tell.

        Raises:
            DecodeFailure: nothing at the file's start can be decoded, or it is turned by an odd angle.
        """
        if not self._frames:
            raise DecodeFailure(f"none of its first {PROBED_PACKETS} packets gives a picture")
        first = self._frames[0]
        return FrameFacts(
            orientation=frame_orientation(first) or UPRIGHT,
            interlaced=any(frame.interlaced_frame for frame in self._frames),
            transfer=int(first.color_trc),
            primaries=int(first.color_primaries),
            planar=all(map(is_planar, self._frames)),
        )

    def count_unshown(self, packets: _Packets) -> int:
        """Frames of the first stretch that should come before the first one that does, though nothing is damaged."""
        first = self._frames[0].pts
        return (
            0 if first is None or self._damaged else int(np.searchsorted(packets.ticks[packets.stretches == 0], first))
        )


def frame_orientation(frame: Any) -> Orientation | None:
    """How a decoded frame lies, by the container or by a message in its stream; None where nobody says."""
    from av.sidedata.sidedata import Type

    data = frame.side_data.get(Type.DISPLAYMATRIX)
    return None if data is None else from_display_matrix(bytes(data))


def _read_head(path: str) -> bytes:
    try:
        with Path(path).open("rb") as file:
            head = file.read(HEAD_BYTES)
    except OSError as error:
        raise DecodeFailure(f"cannot be read ({error.strerror})") from error
    if not head:
        raise DecodeFailure("the file is empty")
    return head
