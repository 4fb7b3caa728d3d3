"""Lists the members of an uncompressed tar with the places of their contents; nothing is ever unpacked.

Names of members are only names: they become no paths. Headers are read by Python's tarfile through a file that
goes forward only and gives small pieces, so a hostile tar can neither loop nor fill the memory.
"""

from __future__ import annotations

import contextlib
import io
import tarfile
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

from mcjepa.data_prep.corpora.places import is_local, store_and_key
from mcjepa.data_prep.errors import DataError
from mcjepa.data_prep.storage import Store

BLOCK_BYTES = 512
MAX_HEADER_BYTES = 1 << 20
PIECE_BYTES = 1 << 20
REMOTE_BUFFER_BYTES = 1 << 20
KINDS = {
    tarfile.LNKTYPE: "a hard link",
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
    tarfile.FIFOTYPE: "a pipe",
}


class TarMember(NamedTuple):
    """A member that is not a folder; or, with an empty name, what is wrong with the tar itself."""

    name: str
    """Its name without empty parts, `.` and `..`."""
    offset: int
    bytes: int
    refusal: str
    """Why its content cannot be read; empty where it can."""
    archive: int = 0
    """Of tars that were written one behind the other: in which of them it lies, by the byte that one begins at."""


class OpenTar:
    """An open tar: its members in order, and the contents of small ones."""

    def __init__(self, file: BinaryIO, total_bytes: int) -> None:
        """Read from a seekable file of a known length."""
        self._file = file
        self._total_bytes = total_bytes

    def members(self) -> Iterator[TarMember]:
        """All members but folders; hidden ones are left out. The last tells of damage, if there is any.

        Tars that were written one behind the other into one file are read as one.
        """
        start: int | None = 0
        while start is not None:
            end = 0
            try:
                self._file.seek(start)
                headers: Any = _Headers(self._file, start)
                with tarfile.open(fileobj=headers, mode="r:", encoding="utf-8", errors="surrogateescape") as opened:
                    tar: Any = opened
                    while (member := tar.next()) is not None:
                        tar.members = []  # else it keeps all of them
                        name = clean_name(member.name)
                        if not member.isdir() and not any(part.startswith(".") for part in name.split("/")):
                            yield TarMember(name, member.offset_data, member.size, self._refusal(member), start)
                    end = tar.offset
            except DataError:  # the store's, not the tar's
                raise
            except (tarfile.TarError, ValueError, OverflowError, LookupError, RecursionError) as error:
                where = f" from byte {start}" if start else ""
                yield TarMember("", 0, -1, f"not read to its end as an uncompressed tar{where} ({error})")
                return
            self._file.seek(end)
            if self._file.read(BLOCK_BYTES) != bytes(BLOCK_BYTES):
                yield TarMember("", 0, -1, f"damaged or cut off at byte {end}: no header and no end mark there")
                return
            start = self._next_block(end)

    def _next_block(self, end: int) -> int | None:
        """Place of the first block behind an end mark that is not zero; None where the file ends in zeros."""
        at = end
        self._file.seek(at)
        while piece := self._file.read(PIECE_BYTES):
            if piece.count(0) != len(piece):
                used = len(piece) - len(piece.lstrip(b"\0"))
                return at + used // BLOCK_BYTES * BLOCK_BYTES
            at += len(piece)
        return None

    def read(self, member: TarMember) -> bytes:
        """The content of a small member; the walk goes on where it was."""
        place = self._file.tell()
        try:
            self._file.seek(member.offset)
            return self._file.read(member.bytes)
        finally:
            self._file.seek(place)

    def _refusal(self, member: tarfile.TarInfo) -> str:
        if member.issparse():
            return "a sparse member, not one piece of the tar"
        if not member.isreg():
            return f"{KINDS.get(member.type, 'a member of an unknown type')}, not a file"
        if not 0 <= member.size <= self._total_bytes - member.offset_data:
            return f"cut off: {member.size} bytes from {member.offset_data} in a tar of {self._total_bytes}"
        return ""


@contextlib.contextmanager
def open_tar(location: str, total_bytes: int) -> Iterator[OpenTar]:
    """Open a tar in a folder or below an s3 prefix, where it is read by ranges.

    Raises:
        OSError: a local file cannot be opened.
        DataError: the store cannot be read.
    """
    if is_local(location):
        with open(location, "rb") as file:
            yield OpenTar(file, total_bytes)
    else:
        ranged = _RangedFile(*store_and_key(location), total_bytes)
        yield OpenTar(io.BufferedReader(ranged, REMOTE_BUFFER_BYTES), total_bytes)


def clean_name(name: str) -> str:
    """A member's name without the parts that would lead out of a folder.

    >>> clean_name("../../a/./b.png"), clean_name("/etc/c.png"), clean_name("..")
    ('a/b.png', 'etc/c.png', 'unnamed')
    """
    return "/".join(part for part in name.split("/") if part not in ("", ".", "..")) or "unnamed"


class _Headers:
    """What tarfile may do with the file: small reads, and going forward."""

    def __init__(self, file: BinaryIO, start: int) -> None:
        self._file = file
        self._reached = start

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {size} bytes; at most {MAX_HEADER_BYTES} are read")
        data = self._file.read(size)
        self._reached = self._file.tell()
        return data

    def seek(self, position: int) -> int:
        if position < self._reached - 1:
            raise tarfile.ReadError(f"a header at byte {self._reached} leads back to byte {position}")
        return self._file.seek(position)

    def tell(self) -> int:
        return self._file.tell()


class _RangedFile(io.RawIOBase):
    """An object of a store as a seekable file: each read is a ranged get."""

    def __init__(self, store: Store, key: str, total_bytes: int) -> None:
        self._store, self._key, self._total_bytes = store, key, total_bytes
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._total_bytes}[whence]
        self._position = start + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        length = min(len(buffer), self._total_bytes - self._position)
        data = self._store.read_range(self._key, self._position, length) if length > 0 else b""
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)
