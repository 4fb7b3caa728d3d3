"""What a file holds, by its first bytes: names lie, and a reason should say what was found."""

from __future__ import annotations

import re
import struct

HEAD_BYTES = 264

END_OF_JPEG, START_OF_SCAN = b"\xff\xd9", b"\xff\xda"
SEQUENTIAL = (b"\xff\xc0\0\x11\x08", b"\xff\xc0\0\x0b\x08", b"\xff\xc1\0\x11\x08", b"\xff\xc0\0\x14\x08")
"""Frame headers of JPEGs with 8 bits and three, one or four channels, not progressive."""
_FRAMES = (b"\xc0\0\x11\x08", b"\xc1\0\x11\x08", b"\xc2\0\x11\x08")
"""Of such with three channels, progressive ones too."""

# What it is, where its mark lies, and the mark; the first that fits counts.
SIGNATURES = (
    ("a JPEG image", 0, b"\xff\xd8\xff"),
    ("a PNG image", 0, b"\x89PNG\r\n\x1a\n"),
    ("a GIF image", 0, b"GIF8"),
    ("a WebP image", 8, b"WEBP"),
    ("a TIFF image", 0, b"II*\0"),
    ("a TIFF image", 0, b"MM\0*"),
    ("a JPEG 2000 image", 4, b"jP  \r\n"),
    ("an AVIF image", 4, b"ftypavif"),
    ("a HEIF image", 4, b"ftyphei"),
    ("a HEIF image", 4, b"ftyphev"),
    ("a HEIF image", 4, b"ftypmif1"),
    ("a HEIF image", 4, b"ftypmsf1"),
    ("a JPEG XL image", 0, b"\xff\x0a"),
    ("a JPEG XL image", 4, b"JXL \r\n"),
    ("a BigTIFF image", 0, b"II+\0"),
    ("a BigTIFF image", 0, b"MM\0+"),
    ("an MP4 audio file", 4, b"ftypM4A"),
    ("an MP4 or QuickTime video", 4, b"ftyp"),
    ("an MP4 or QuickTime video", 4, b"moov"),
    ("a Matroska or WebM video", 0, b"\x1aE\xdf\xa3"),
    ("an AVI video", 8, b"AVI "),
    ("a WAV audio file", 8, b"WAVE"),
    ("an MPEG video", 0, b"\0\0\1\xba"),
    ("a Windows Media file", 0, b"0&\xb2u\x8ef\xcf\x11"),
    ("a Flash video", 0, b"FLV\1"),
    ("an Ogg file", 0, b"OggS"),
    ("a FLAC audio file", 0, b"fLaC"),
    ("an MP3 audio file", 0, b"ID3"),
    ("a ZIP archive", 0, b"PK\3\4"),
    ("a gzip archive", 0, b"\x1f\x8b\x08"),
    ("a tar archive", 257, b"ustar"),
    ("a PDF document", 0, b"%PDF-"),
)


def describe_content(head: bytes) -> str:
    """What a file is that starts with `head`, as words that follow "holds".

    >>> describe_content(b"GIF89a...")
    'a GIF image'
    >>> describe_content(b"secret!")
    'nothing known (it starts with the bytes 73 65 63 72 65 74 21)'
    """
    for name, offset, mark in SIGNATURES:
        if head[offset : offset + len(mark)] == mark:
            return name
    return f"nothing known (it starts with the bytes {head[:8].hex(' ')})"


def explain_unreadable(data: bytes, kind: str) -> str:
    """Why a picture that Pillow does not know is none that it can read: an unsupported one, or damaged.

    Args:
        data: The whole file.
        kind: What `describe_content` says of it.
    """
    why = {"a JPEG image": _unsupported_jpeg, "a TIFF image": _unsupported_tiff}.get(kind, lambda _: "")(data)
    if kind in ("a HEIF image", "a JPEG XL image", "a BigTIFF image"):
        why = why or "a format that is not supported"
    return why or "but it is damaged"


def with_end_of_jpeg(data: bytes) -> bytes:
    """A JPEG of one sequential scan with its end mark, which writers that are cut short leave out.

    Nothing is filled up: a decoder still tells where picture data are missing. Where there are several scans it could
    not tell, so those stay as they are.
    """
    if data.endswith(END_OF_JPEG):  # as nearly all do, which saves a search through the whole
        return data
    lacks_end = data.rfind(END_OF_JPEG) < data.rfind(START_OF_SCAN)
    if not lacks_end or data.count(START_OF_SCAN) != 1 or not any(mark in data for mark in SEQUENTIAL):
        return data
    return data + END_OF_JPEG[data.endswith(b"\xff") :]


HARMLESS = ("bad icc marker", "jfif revision", "adobe color transform", "invalid sos parameters")
"""Warnings of libjpeg about what stands before a picture's data or is passed over."""
DAMAGE_OF_JPEG = ("corrupt jpeg data", "premature end", "inconsistent progression")
EXTRANEOUS = re.compile(r"(\d+) extraneous bytes before marker 0xd9")


def tells_of_damage(warning: str, data: bytes) -> bool:
    """Whether what libjpeg says of a JPEG means that picture data are missing or wrong.

    Bytes that are left before the end mark mean it too: decoding that has gone wrong ends too early. They do not where
    they are all alike: some writers fill up the last block.

    Args:
        warning: Its last warning or error.
        data: The whole file.
    """
    words = warning.lower()
    if any(known in words for known in HARMLESS) or not any(known in words for known in DAMAGE_OF_JPEG):
        return False
    left = EXTRANEOUS.search(words)
    padding = data[: data.rfind(END_OF_JPEG)][-int(left[1]) :] if left and int(left[1]) else b""
    return not (padding and padding.count(padding[:1]) == len(padding))


def plain_jpeg_size(head: bytes) -> tuple[int, int] | None:
    """Width and height of a JPEG in which there is nothing to judge; None for all other files.

    That is one with 8 bits and three channels, Huffman-coded, and nothing before its picture but tables, comments and
    JFIF's mark: no profile, no EXIF, no second picture (ITU-T T.81, B.2).

    Args:
        head: The file's first bytes, up to its first scan at least; None where they end before.
    """
    at, size = 2, None
    while head.startswith(b"\xff\xd8") and at + 10 <= len(head) and head[at] == 0xFF:
        mark, length = head[at + 1], int.from_bytes(head[at + 2 : at + 4], "big")
        if mark == START_OF_SCAN[1]:
            return size if size and all(size) else None
        if head[at + 1 : at + 5] in _FRAMES and size is None and head[at + 9] == 3:
            size = int.from_bytes(head[at + 7 : at + 9], "big"), int.from_bytes(head[at + 5 : at + 7], "big")
        elif not (
            (mark == 0xE0 and head[at + 4 : at + 9] == b"JFIF\0")
            or (mark == 0xDB and (length - 2) % 65 == 0)
            or mark in (0xC4, 0xDD, 0xFE)  # Huffman tables, restarts, comments
        ):
            return None
        at += 2 + length
    return None


def _unsupported_jpeg(data: bytes) -> str:
    """By its frame header (ITU-T T.81, B.2.2): what is not Huffman-coded with 8 bits."""
    at = 2
    while at + 9 < len(data) and data[at] == 0xFF:
        mark, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        if 0xC0 <= mark <= 0xCF and mark not in (0xC4, 0xC8, 0xCC):
            if data[at + 4] != 8:
                return f"of {data[at + 4]} bits, which is not supported: 8 bits are known"
            kinds = {0xC3: "lossless", **dict.fromkeys(range(0xC9, 0xD0), "with arithmetic coding")}
            return f"{kinds[mark]}, which is not supported" if mark in kinds else ""
        at += 2 + length
    return ""


def _unsupported_tiff(data: bytes) -> str:
    """By the tags of its first page (TIFF 6.0): bits, sample format and compression."""
    order = "<" if data[:2] == b"II" else ">"
    try:
        (at,) = struct.unpack_from(f"{order}I", data, 4)
        (count,) = struct.unpack_from(f"{order}H", data, at)
        tags = {}
        for number in range(count):
            tag, kind, values, value = struct.unpack_from(f"{order}HHII", data, at + 2 + 12 * number)
            if kind == 3 and values <= 2:
                (value,) = struct.unpack_from(f"{order}H", data, at + 2 + 12 * number + 8)
            elif kind == 3:
                (value,) = struct.unpack_from(f"{order}H", data, value)
            tags[tag] = value
    except struct.error:
        return ""
    if not {256, 257} <= tags.keys():
        return ""
    samples = {1: "whole numbers", 2: "signed numbers", 3: "floating point numbers"}.get(tags.get(339, 1), "numbers")
    what = f"{tags.get(277, 1)} channel(s) of {tags.get(258, 1)}-bit {samples}, compression {tags.get(259, 1)}"
    return f"with {what}, which is not supported"
