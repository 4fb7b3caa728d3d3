"""Can the frames of a video change their size? Told by its key packets, for the codecs that say it there.

H.264, HEVC, MPEG-2 and MPEG-4 name the size in headers: where all that a file has are the same bytes, all frames have
one size. JPEG and the lossless and edited kinds have one size by their container. Of VP8, VP9, AV1 and all others it is
not known here: a browser's recording changes its size between any two frames.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

FIXED_BY_CONTAINER = frozenset(
    {"cinepak", "dvvideo", "dnxhd", "ffv1", "huffyuv", "prores", "rawvideo", "qtrle", "svq3"}
)
NAL_MARKS = {"h264": (0x1F, 7), "hevc": (0x7E, 66)}
"""Codec to mask and value of the first byte of a unit that holds a sequence's parameters."""
H264_IDR = 5
"""Type of the units of a picture that nothing after it reaches behind."""
START = b"\0\0\1"
MPEG_MARKS = {"mpeg2video": (b"\0\0\1\xb3", 4), "mpeg1video": (b"\0\0\1\xb3", 4), "mpeg4": (b"\0\0\1\x20", 24)}
"""Codec to the mark of the header with the size, and its length that matters, bytes."""
MOST_UNITS = 64


class ParameterSets:
    """Collects the headers of one stream."""

    def __init__(self, codec: str, extradata: bytes | None) -> None:
        """Start from the codec's FFmpeg name and what its container holds for all packets."""
        self._codec = codec
        self._extradata = extradata or b""
        self._found: set[bytes] = set(self._headers(self._extradata))
        self.steady = codec in FIXED_BY_CONTAINER or codec in NAL_MARKS or codec in MPEG_MARKS
        self.refreshed = False
        """Whether key packets of H.264 are none that a decoder can begin with anew: it recovers from there on."""

    def add(self, packet: Any) -> None:
        """Take in a key packet."""
        if not self.steady or self._codec in FIXED_BY_CONTAINER:
            return
        if packet.has_sidedata("new_extradata"):
            self.steady = False
            return
        data = bytes(packet)
        self._found.update(self._headers(data))
        self.steady = len(self._found) <= 1
        if self._codec == "h264" and not self.refreshed:
            self.refreshed = not any(unit and unit[0] & 0x1F == H264_IDR for unit in self._units(data))

    def _headers(self, data: bytes) -> Iterator[bytes]:
        if self._codec in MPEG_MARKS:
            mark, length = MPEG_MARKS[self._codec]
            if (at := data.find(mark)) >= 0:
                yield data[at + len(mark) : at + len(mark) + length]
        elif self._codec in NAL_MARKS:
            mask, wanted = NAL_MARKS[self._codec]
            yield from (unit for unit in self._units(data) if unit and unit[0] & mask == wanted)

    def _units(self, data: bytes) -> Iterator[bytes]:
        """The units of a packet or of a decoder's configuration record (ISO 14496-15)."""
        if data is self._extradata and data[:1] == b"\1":
            yield from _units_of_avcc(data) if self._codec == "h264" else _units_of_hvcc(data)
        elif self._extradata[:1] == b"\1":
            width = (self._extradata[4 if self._codec == "h264" else 21] & 3) + 1
            yield from _prefixed(data, width)
        else:
            yield from (part.rstrip(b"\0") for part in data.split(START, MOST_UNITS)[1:])


def _prefixed(data: bytes, width: int) -> Iterator[bytes]:
    at = 0
    while at + width < len(data):
        length = int.from_bytes(data[at : at + width], "big")
        yield data[at + width : at + width + length]
        at += width + length


def _units_of_avcc(data: bytes) -> Iterator[bytes]:
    at = 6
    for _ in range(data[5] & 0x1F if len(data) > 5 else 0):
        length = int.from_bytes(data[at : at + 2], "big")
        yield data[at + 2 : at + 2 + length]
        at += 2 + length


def _units_of_hvcc(data: bytes) -> Iterator[bytes]:
    at = 23
    for _ in range(data[22] if len(data) > 22 else 0):
        count = int.from_bytes(data[at + 1 : at + 3], "big")
        at += 3
        for _ in range(count):
            length = int.from_bytes(data[at : at + 2], "big")
            yield data[at + 2 : at + 2 + length]
            at += 2 + length
