"""Shards as pure bytes: plain USTAR tars of WebDataset samples, the same samples giving the same bytes.

Every member has mtime 0, uid and gid 0, mode 0644 and no names of users. A sample is its members
`KEY.SUFFIX`, sorted by suffix, side by side. The archive ends with two zero blocks and nothing more.
A writer hashes while it writes and can go back to a mark: an input that fails half-way leaves no trace.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import BinaryIO

from mcjepa.data_prep.dataset.manifest import Member, SampleEntry
from mcjepa.data_prep.errors import DataError

BLOCK = 512
END = bytes(2 * BLOCK)
MAX_NAME_BYTES = 100
MAX_MEMBER_BYTES = 8**11 - 1


def tar_header(name: str, size: int) -> bytes:
    """The 512-byte USTAR header of a plain file.

    Raises:
        DataError: the name or size does not fit USTAR.
    """
    encoded = name.encode()
    if len(encoded) > MAX_NAME_BYTES or size > MAX_MEMBER_BYTES:
        raise DataError(
            f"member {name} of {size} bytes does not fit a USTAR header; expected a name of at most "
            f"{MAX_NAME_BYTES} bytes and less than 8 GiB; lower `short_side` or rename the input"
        )
    head = b"".join(
        (
            encoded.ljust(100, b"\0"),
            b"0000644\0" + b"0000000\0" * 2,  # mode, uid, gid
            b"%011o\0" % size,
            b"00000000000\0",  # mtime
        )
    )
    tail = b"0" + bytes(100) + b"ustar\x0000" + bytes(247)  # plain file, no link, magic and version, the rest
    total = sum(head) + sum(tail) + 8 * ord(" ")  # the checksum field counts as blanks
    return head + b"%06o\0 " % total + tail


@dataclass(frozen=True)
class ShardMark:
    """A place in a shard to go back to."""

    offset: int
    samples: int
    digest: hashlib._Hash


class ShardWriter:
    """Writes samples into an open binary file that can be truncated."""

    def __init__(self, file: BinaryIO) -> None:
        """Start an empty shard at the beginning of `file`."""
        self._file = file
        self._digest = hashlib.sha256()
        self._offset = 0
        self._samples: list[SampleEntry] = []

    def add(self, key: str, members: Mapping[str, bytes]) -> None:
        """Append one sample.

        Args:
            key: Unique in the dataset, without dots or slashes.
            members: Suffix (`00.jpg`, `json`) to content.

        Raises:
            DataError: a key or suffix that WebDataset would read as something else, or too large a member.
        """
        if not key or "." in key or "/" in key or not members or not all(members):
            raise DataError(f"sample key {key!r}; expected a name without '.' and '/', with members; change it")
        entries: list[Member] = []
        pieces: list[bytes] = []
        offset = self._offset
        for suffix, data in sorted(members.items()):
            padding = bytes(-len(data) % BLOCK)
            pieces += (tar_header(f"{key}.{suffix}", len(data)), data, padding)
            entries.append(Member(suffix, offset + BLOCK, len(data)))
            offset += BLOCK + len(data) + len(padding)
        self._append(b"".join(pieces))
        self._samples.append(SampleEntry(key, tuple(entries)))

    def mark(self) -> ShardMark:
        """The present end of the shard."""
        return ShardMark(self._offset, len(self._samples), self._digest.copy())

    def go_back(self, mark: ShardMark) -> None:
        """Drop every sample added since `mark`."""
        self._file.seek(mark.offset)
        self._file.truncate()
        self._offset, self._digest = mark.offset, mark.digest.copy()
        del self._samples[mark.samples :]

    def finish(self) -> tuple[str, int, tuple[SampleEntry, ...]]:
        """Write the end of the archive; returns its sha256 (hex), its length in bytes and its samples."""
        self._append(END)
        self._file.flush()
        return self._digest.hexdigest(), self._offset, tuple(self._samples)

    def _append(self, data: bytes) -> None:
        self._file.write(data)
        self._digest.update(data)
        self._offset += len(data)
