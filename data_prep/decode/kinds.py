"""What a file holds, by its first bytes: names lie, and a reason should say what was found."""

from __future__ import annotations

HEAD_BYTES = 264

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
    ("a HEIF image", 4, b"ftypmif1"),
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
