"""What a video's container says, read by PyAV whichever decoder is used: so all decoders agree on every frame.

The stream is FFmpeg's "best" video stream (the most pixels, cover pictures left out). Its frames are numbered by
presentation time, over the packets that give a picture: those with content that no edit list discards, from the
first key frame's time on (pictures shown before it lean on frames that the file does not have). Nothing is decoded.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mcjepa.data_prep.decode.completeness import packet_end_s, require_whole_file, require_whole_play
from mcjepa.data_prep.decode.failures import DecodeFailure, require_megapixels
from mcjepa.data_prep.decode.kinds import HEAD_BYTES, describe_content

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

# Playlists and other formats that make FFmpeg open further files are not among them.
FORMATS = (
    "mov,mp4,matroska,webm,avi,mpegts,mpeg,asf,flv,ogg,mxf,nut,ivf,mpegvideo,m4v,h264,hevc,dv,"
    "mp3,wav,flac,aac,ac3,aiff,w64"
)


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
    """Presentation time of every frame, seconds on the file's own clock, (frames,)."""


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
        with av.open(path, options={"format_whitelist": FORMATS}, metadata_errors="replace") as container:
            return _read_stream(path, container, max_megapixels)
    except av.error.FFmpegError as error:
        raise DecodeFailure(f"FFmpeg cannot read it ({error.strerror}): it holds {kind}, or is damaged") from None


def _read_stream(path: str, container: Any, max_megapixels: float) -> VideoTable:
    from av.stream import Disposition

    stream = container.streams.best("video")
    if stream is None or stream.disposition & Disposition.attached_pic:
        raise DecodeFailure("no video stream")
    if stream.codec_context is None:
        raise DecodeFailure("no decoder for its video stream")
    width, height = stream.codec_context.width, stream.codec_context.height
    require_megapixels(width, height, max_megapixels)
    index, tick_s, fps_hz = stream.index, float(stream.time_base), float(stream.average_rate or 0)
    ticks, end_s = _walk_packets(container, stream)
    if not len(ticks):
        raise DecodeFailure("its video stream has no frames")
    require_whole_play(container, stream, end_s)
    times_s = (ticks * tick_s).astype(np.float64)
    return VideoTable(path, container.format.name, index, width, height, fps_hz, times_s)


def _walk_packets(container: Any, stream: Any) -> tuple[IntArray, float]:
    """Presentation times of the stream's frames, in its ticks, increasing; and when the last one ends, s."""
    ticks, first_key, end_s = array("q"), None, 0.0
    for packet in container.demux(stream):
        at = packet.dts if packet.pts is None else packet.pts
        if not packet.size:
            continue
        if at is None:
            raise DecodeFailure(f"no presentation time for frame {len(ticks)}")
        if first_key is None and packet.is_keyframe:
            first_key = at
        if not packet.is_discard:
            ticks.append(at)
        end_s = max(end_s, packet_end_s(packet))
    times = np.sort(np.frombuffer(ticks, np.int64))
    return times if first_key is None else times[np.searchsorted(times, first_key) :], end_s


def _read_head(path: str) -> bytes:
    try:
        with Path(path).open("rb") as file:
            head = file.read(HEAD_BYTES)
    except OSError as error:
        raise DecodeFailure(f"cannot be read ({error.strerror})") from error
    if not head:
        raise DecodeFailure("the file is empty")
    return head
