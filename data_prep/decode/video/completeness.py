"""Is a video file whole? A cut off one decodes without complaint up to its end, and would be taken for a shorter video.

Two rules, both exact about what the container declares:

* Bytes: the file ends before a part that it declares. MP4 and QuickTime: a top-level `moov`, `moof` or `mdat` box;
  Matroska and WebM: the Segment; AVI: a RIFF chunk; MPEG transport streams: a packet.
* Time: the last packet of all streams ends earlier than the declared duration by more than half a second and five
  frames. Not for MP4 and QuickTime (edit lists make the duration another thing), AVI (dropped frames at the end have
  no packet) and MPEG streams (FFmpeg computes their duration from the last packet).

What declares neither cannot be judged: a transport stream cut between packets, a live WebM.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from mcjepa.data_prep.decode.messages import DecodeFailure

SLACK_S, SLACK_FRAMES = 0.5, 5
JUDGED_BY_BYTES = ("mov,", "avi", "mpeg")
MEDIA_BOXES = frozenset({b"moov", b"moof", b"mdat"})
OTHER_BOXES = frozenset({b"ftyp", b"styp", b"free", b"skip", b"wide", b"pnot", b"sidx", b"meta", b"uuid", b"mfra"})
SEGMENT_ID = b"\x18\x53\x80\x67"
UNKNOWN_RIFF_SIZES = (0, 0xFFFFFFFF)
TS_PACKET_BYTES = {188: 0, 192: 4, 204: 0}
"""Size of a transport packet to the place of its sync byte."""


def require_whole_file(path: str) -> None:
    """Refuse a file that is shorter than its container declares.

    Raises:
        DecodeFailure: it is cut off.
    """
    size = os.stat(path).st_size
    with Path(path).open("rb") as file:
        head = file.read(2048)
        if head[4:8] in MEDIA_BOXES | OTHER_BOXES:
            ends: Iterator[int] = _media_box_ends(file, size)
        elif head.startswith(b"\x1aE\xdf\xa3"):
            ends = iter((_segment_end(head),))
        elif head.startswith(b"RIFF"):
            ends = _riff_ends(file, size)
        else:
            ends = iter((_transport_end(head, size),))
        for end in ends:
            if end > size:
                raise DecodeFailure(f"cut off: {size} bytes of at least {end}")


def require_whole_play(container: Any, stream: Any, end_s: float) -> None:
    """Refuse a file whose packets end before its declared duration does; packets may be read once more.

    Args:
        container: Open in PyAV.
        stream: Its video stream.
        end_s: End of the stream's last packet.

    Raises:
        DecodeFailure: it is cut off.
    """
    if container.format.name.startswith(JUDGED_BY_BYTES) or not container.duration:
        return
    slack_s = max(SLACK_S, SLACK_FRAMES / float(stream.average_rate or 1000))
    wanted_s = container.duration / 1e6 - slack_s  # some writers count from 0, some from the first packet
    if end_s < wanted_s:
        container.seek(0)
        end_s = max((packet_end_s(packet) for packet in container.demux()), default=end_s)
    if end_s < wanted_s:
        raise DecodeFailure(f"cut off: it ends at {end_s:.2f} s of {container.duration / 1e6:.2f} s")


def packet_end_s(packet: Any) -> float:
    """When what a packet holds has been shown, seconds; 0 for one without a time."""
    at = packet.dts if packet.pts is None else packet.pts
    return 0.0 if at is None else float((at + (packet.duration or 0)) * packet.time_base)


def _media_box_ends(file: BinaryIO, size: int) -> Iterator[int]:
    """Ends of the top-level boxes that hold media or its tables (ISO 14496-12, 4.2)."""
    at = 0
    while at + 8 <= size:
        file.seek(at)
        header = file.read(16)
        length, name = int.from_bytes(header[:4], "big"), header[4:8]
        if length == 1:
            length = int.from_bytes(header[8:16], "big")
        if name not in MEDIA_BOXES | OTHER_BOXES or length < 8:  # padding, or a box up to the end of the file
            return
        at += length
        if name in MEDIA_BOXES:
            yield at


def _segment_end(head: bytes) -> int:
    """End of a Matroska file's Segment; 0 where it is not declared (RFC 8794, 8.2)."""
    at, length = _read_vint(head, 4)
    at += length or 0
    if head[at : at + 4] != SEGMENT_ID:
        return 0
    start, length = _read_vint(head, at + 4)
    return 0 if length is None else start + length


def _read_vint(data: bytes, at: int) -> tuple[int, int | None]:
    """Where an EBML length ends, and its value (None: unknown)."""
    first = data[at] if at < len(data) else 0
    width = 9 - first.bit_length()
    value = int.from_bytes(data[at : at + width], "big") & ((1 << 7 * width) - 1)
    return at + width, None if value == (1 << 7 * width) - 1 else value


def _riff_ends(file: BinaryIO, size: int) -> Iterator[int]:
    """Ends of an AVI's RIFF chunks; large files have several."""
    at = 0
    while at + 8 <= size:
        file.seek(at)
        header = file.read(8)
        length = int.from_bytes(header[4:], "little")
        if header[:4] != b"RIFF" or length in UNKNOWN_RIFF_SIZES:
            return
        at += 8 + length
        yield at
        at += length % 2


def _transport_end(head: bytes, size: int) -> int:
    """Where a transport stream's last packet ends; 0 for anything else."""
    for packet_bytes, sync in TS_PACKET_BYTES.items():
        marks = head[sync::packet_bytes][:4]
        if len(marks) == 4 and set(marks) == {0x47}:
            return -(-size // packet_bytes) * packet_bytes
    return 0
