"""Whole shards on a disk of the node, shared by all of its processes under a byte cap.

    CACHE/SHA256.tar             a shard, complete; named after the digest in its dataset's manifest
    CACHE/.SHA256.partial        a shard on its way; its length is reserved, its writer holds a lock on it
    CACHE/.lock                  held for the moment in which files appear or leave

All locks are the kernel's (flock) and end with the process that holds them, so a crash leaves no stale one; what it
left half-written is removed by the next process that makes room. Shards never change, so a name cannot go stale either.
The least recently used shards leave first. One that is being read may leave too: its readers keep the open file, and
its bytes are freed when they close it.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import BinaryIO, Literal

from mcjepa.data_prep.errors import DataError

RECENT_S = 30.0
"""A shard used within this time is not removed: what does not fit beside such shards is not cached."""
_PIECE_BYTES = 1 << 20

Verify = Literal["length", "sha256"]
OpenShard = Callable[[], AbstractContextManager[BinaryIO]]


class ShardCache:
    """A folder of shards; any number of processes may use it at once."""

    def __init__(self, folder: str | Path, cap_bytes: int) -> None:
        """Name the folder and the most that it may hold; it is made at first use."""
        self._folder, self._cap_bytes = Path(folder).expanduser(), cap_bytes

    def open(self, sha256: str, length: int) -> int | None:
        """A descriptor of a shard, marked as used now; None when it is not there.

        Args:
            sha256: the shard's digest.
            length: its bytes; a file of another length is damaged and removed.
        """
        path = self._path(sha256)
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            return None
        if os.fstat(descriptor).st_size == length:
            self.touch(descriptor)
            return descriptor
        os.close(descriptor)
        path.unlink(missing_ok=True)
        return None

    @staticmethod
    def touch(descriptor: int) -> bool:
        """Mark an open shard as used now; False when it has been removed from the cache."""
        with contextlib.suppress(PermissionError):  # another user's: its own processes mark it
            os.utime(descriptor)
        return os.fstat(descriptor).st_nlink > 0

    def fill(self, sha256: str, length: int, source: OpenShard, verify: Verify) -> bool:
        """Copy a shard into the cache.

        Args:
            sha256: its digest.
            length: its bytes.
            source: opens its content from the start.
            verify: whether the content is compared with the digest, or only its length.

        Returns:
            Whether it was copied; not when it is there, another process is at it, or there is no room.

        Raises:
            DataError: the content is not the shard's, or cannot be got.
            OSError: the folder cannot be written.
        """
        descriptor = self._claim(sha256, length)
        if descriptor is None:
            return False
        try:
            self._copy(descriptor, sha256, length, source, verify)
            os.fsync(descriptor)
            with self._locked():
                os.replace(self._partial(sha256), self._path(sha256))
        except BaseException:
            with self._locked():
                self._partial(sha256).unlink(missing_ok=True)
            raise
        finally:
            os.close(descriptor)
        return True

    def held_bytes(self) -> int:
        """Bytes of all shards, those on their way included; what dead writers left is removed."""
        return sum(size for _, size, _ in self._shards()) + sum(size for _, size in self._partials())

    def _claim(self, sha256: str, length: int) -> int | None:
        """A locked, empty, reserved partial file; None as `fill` has False."""
        self._folder.mkdir(parents=True, exist_ok=True)
        with self._locked():
            if self._path(sha256).exists():
                return None
            descriptor = os.open(self._partial(sha256), os.O_RDWR | os.O_CREAT, 0o644)
            if not _try_lock(descriptor):
                os.close(descriptor)
                return None
            os.ftruncate(descriptor, 0)
            if not self._make_room(length):
                self._partial(sha256).unlink()
                os.close(descriptor)
                return None
            os.ftruncate(descriptor, length)  # counts from now on, whoever looks
            return descriptor

    def _make_room(self, length: int) -> bool:
        """Remove what was used least recently until `length` bytes fit; False, and nothing removed, if they cannot."""
        shards = self._shards()
        free = self._cap_bytes - sum(size for _, size, _ in shards) - sum(size for _, size in self._partials())
        oldest = time.time() - RECENT_S
        leaving = []
        for used, size, path in sorted(shards):
            if free >= length or used > oldest:
                break
            leaving.append(path)
            free += size
        if free < length:
            return False
        for path in leaving:
            path.unlink(missing_ok=True)
        return True

    def _shards(self) -> list[tuple[float, int, Path]]:
        """Time of last use, bytes and path of every complete shard."""
        found = []
        for path in self._folder.glob("[!.]*.tar"):
            with contextlib.suppress(FileNotFoundError):
                status = path.stat()
                found.append((status.st_mtime, status.st_size, path))
        return found

    def _partials(self) -> Iterator[tuple[Path, int]]:
        """Unfinished shards with their reserved bytes; those whose writer is gone are removed first."""
        for path in self._folder.glob(".*.partial"):
            with contextlib.suppress(FileNotFoundError):
                descriptor = os.open(path, os.O_RDWR)
                try:
                    size = os.fstat(descriptor).st_size
                    if _try_lock(descriptor):
                        path.unlink()
                    else:
                        yield path, size
                finally:
                    os.close(descriptor)

    def _copy(self, descriptor: int, sha256: str, length: int, source: OpenShard, verify: Verify) -> None:
        digest, copied = hashlib.sha256(), 0
        with source() as content:
            while piece := content.read(_PIECE_BYTES):
                copied += os.pwrite(descriptor, piece, copied)
                if verify == "sha256":
                    digest.update(piece)
        found = digest.hexdigest() if verify == "sha256" else sha256
        if (copied, found) != (length, sha256):
            raise DataError(
                f"a shard in the store has {copied} bytes and sha256 {found[:12]}, expected {length} and {sha256[:12]} "
                "as in its manifest; run `mcjepa prep audit` on the dataset and prepare it again"
            )

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        descriptor = os.open(self._folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _path(self, sha256: str) -> Path:
        return self._folder / f"{sha256}.tar"

    def _partial(self, sha256: str) -> Path:
        return self._folder / f".{sha256}.partial"


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
