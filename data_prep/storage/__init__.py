"""Where files lie: a folder or an S3 prefix, behind one small interface, and atomic writes.

A location is a path, `file://…` or `s3://bucket/prefix`. The S3 endpoint, region and credentials come from
the standard AWS variables and profiles only (AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, …), never from a recipe.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import BinaryIO, Protocol
from urllib.parse import quote, unquote_to_bytes

from mcjepa.data_prep.errors import DataError
from mcjepa.data_prep.storage.disk import atomic_write, explained_disk_errors, write_json
from mcjepa.data_prep.storage.folder import FolderStore
from mcjepa.data_prep.storage.keys import EVERYTHING, FileEntry, GrowingFile, KeySpan

__all__ = [
    "EVERYTHING",
    "FileEntry",
    "FolderStore",
    "GrowingFile",
    "KeySpan",
    "Store",
    "absolute_location",
    "atomic_write",
    "digest_of",
    "explained_disk_errors",
    "join_location",
    "local_path",
    "open_store",
    "write_json",
]
BLOCK_BYTES = 4 << 20
FILE_SCHEME = "file://"


class Store(Protocol):
    """Named byte strings under one location; keys are relative, with '/' between parts."""

    @property
    def location(self) -> str:
        """The location as given, without a trailing slash."""

    def read(self, key: str) -> bytes:
        """The whole content; AbsentKey when absent."""

    def read_range(self, key: str, offset: int, length: int) -> bytes:
        """`length` bytes from `offset`, fewer only at the end; AbsentKey when absent."""

    def open(self, key: str) -> AbstractContextManager[BinaryIO]:
        """The content as a stream from its start; AbsentKey when absent."""

    def download(self, key: str, path: Path, span: tuple[int, int] | None = None) -> None:
        """Copy the content, or (offset, length) of it, to a local file; AbsentKey when absent."""

    def write(self, key: str, data: bytes) -> None:
        """Write atomically: a reader sees the old content or the new, never a part."""

    def write_file(self, key: str, path: Path) -> None:
        """Take over a finished local file, atomically; the file is gone afterwards."""

    def growing_file(self, key: str, path: Path) -> AbstractContextManager[GrowingFile]:
        """Take over a local file that is still being written; what is not finished at the end is given up."""

    def write_if_absent(self, key: str, data: bytes) -> bool:
        """Conditional put: write only when the key is absent; False when another was there first."""

    def exists(self, key: str) -> bool:
        """Whether the key is there."""

    def size(self, key: str) -> int:
        """Length in bytes; AbsentKey when absent."""

    def version(self, key: str) -> str:
        """What changes whenever the content is written anew, in one request; AbsentKey when absent."""

    def files(self, prefix: str = "", span: KeySpan = EVERYTHING) -> Iterator[FileEntry]:
        """Keys that start with `prefix` and lie in `span`, with their lengths, sorted by the keys' bytes; streamed.

        Hidden names (a part begins with a dot: unfinished files) are left out.
        """

    def level(self, prefix: str = "") -> list[str]:
        """Keys of the files and, with a slash, of the folders directly at `prefix`, sorted by their bytes.

        `prefix` is empty or a folder's with its slash; of a bucket no more than a hundred pages are looked at. Hidden
        names are left out.
        """

    def list(self, prefix: str) -> Iterator[str]:
        """Keys of the files that can be read among `files(prefix)`."""

    def scratch(self) -> Path:
        """A folder on this machine for unfinished files that `write_file` takes over."""

    def clear_scratch(self) -> None:
        """Remove unfinished files that killed processes left behind."""

    def move(self, key: str, target: str) -> None:
        """Give the content another key; AbsentKey when absent."""

    def remove(self, key: str) -> None:
        """Remove the key; nothing happens when it is absent."""


def open_store(location: str) -> Store:
    """Open a location.

    Raises:
        DataError: a scheme other than none, `file` and `s3`, a `file://` without its third slash, or an S3 location
            without a bucket.
    """
    if location.startswith("s3://"):
        from mcjepa.data_prep.storage.s3 import S3Store

        return S3Store(location)
    if not location.startswith(FILE_SCHEME) and ("://" in location or not location):
        raise DataError(f"location {location!r}; expected a path, file://… or s3://bucket/prefix; correct it")
    return FolderStore(location, local_path(location))


def local_path(location: str) -> Path:
    """The path that a location on this machine names.

    Of `file://` it is what follows, %-escapes decoded (RFC 8089). `#` and `?` are letters as any other: a file has no
    part and no query, and what stands behind them must not be cut off.

    >>> str(local_path("file:///data/run#1/50%25%20of?")), str(local_path("/data/run#1/50%25"))
    ('/data/run#1/50% of?', '/data/run#1/50%25')

    Raises:
        DataError: it is of another machine, or begins without a slash.
    """
    if not location.startswith(FILE_SCHEME):
        return Path(location).expanduser()
    host, slash, path = location.removeprefix(FILE_SCHEME).partition("/")
    if host not in ("", "localhost") or not slash:
        raise DataError(f"location {location!r} begins with {host!r}; expected file:///PATH; add the third slash")
    return Path(os.fsdecode(unquote_to_bytes(os.fsencode(slash + path))))


def absolute_location(location: str) -> str:
    """The same location, valid in a process that runs in another folder."""
    if "://" in location:
        return location
    return str(Path(location).expanduser().absolute())


def digest_of(store: Store, key: str) -> str:
    """sha256 of a key's content, hexadecimal, read in blocks.

    Raises:
        AbsentKey: there is no such key.
        DataError: it cannot be read.
    """
    digest = hashlib.sha256()
    with store.open(key) as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def join_location(location: str, name: str) -> str:
    """The location of `name` below `location`.

    >>> join_location("s3://b/p/", "50%"), join_location("file:///p", "50%")
    ('s3://b/p/50%', 'file:///p/50%25')
    """
    return f"{location.rstrip('/')}/{quote(name) if location.startswith(FILE_SCHEME) else name}"
