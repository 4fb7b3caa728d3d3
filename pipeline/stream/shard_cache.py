"""Whole shards on a disk of the node, shared by all of its processes under a byte cap.

    CACHE/SHA256.tar             a shard, complete; named after the digest in its dataset's manifest
    CACHE/.SHA256.partial        a shard on its way; its length is reserved, its writer holds a lock on it
    CACHE/.lock                  held for the moment in which files appear or leave

All locks are the kernel's (flock) and end with the process that holds them, so a crash leaves no stale one; what it
left half-written is removed by the next process that makes room. Shards never change, so a name cannot go stale either.
The least recently used shards leave first. One that is being read may leave too: its readers keep the open file, and
its bytes are freed when they close it.

Shards are brought from a bucket while their first samples are read by ranges. A stream reads most of a shard within
one shuffle window, so the first sample asked of a shard is the sign that the others will be. Nothing waits for a
copy: until it is there, samples come from the bucket one by one.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO, Literal

from mcjepa.data_prep.errors import DataError
from mcjepa.data_prep.storage import Store

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


log = logging.getLogger(__name__)

THREADS = 2
"""Copies at a time, a process."""
RETRY_S = 5.0
"""Pause after a shard that another process was copying, or for which there was no room."""


@dataclass(frozen=True)
class RemoteShard:
    """A shard in a store."""

    store: Store
    key: str
    sha256: str
    bytes: int


class ShardFetcher:
    """The copying threads of one process; they start with the first wish and end with the process."""

    def __init__(self, cache: ShardCache, verify: Verify) -> None:
        """Fill `cache`, checking by `verify`."""
        self._cache, self._verify = cache, verify
        self._wishes: queue.SimpleQueue[RemoteShard | None] = queue.SimpleQueue()
        self._pause_until: dict[str, float] = {}
        self._threads: list[threading.Thread] = []
        self._fault: DataError | None = None
        self._off = False

    def open(self, shard: RemoteShard) -> int | None:
        """A descriptor of the cached shard, or None: then it is on its way.

        Raises:
            DataError: a shard that was to be cached is not the one of the manifest.
        """
        if self._fault:
            raise self._fault
        if self._off:
            return None
        try:
            found = self._cache.open(shard.sha256, shard.bytes)
        except OSError as error:
            self._switch_off(error)
            return None
        if found is None and time.monotonic() >= self._pause_until.get(shard.sha256, 0.0):
            self._pause_until[shard.sha256] = float("inf")  # until it has been tried
            self._wishes.put(shard)
            if len(self._threads) < THREADS:
                self._threads.append(threading.Thread(target=self._serve, name="shard-fetcher", daemon=True))
                self._threads[-1].start()
        return found

    def close(self) -> None:
        """Let the threads end after the copies in hand."""
        for _ in self._threads:
            self._wishes.put(None)

    def _serve(self) -> None:
        while (shard := self._wishes.get()) is not None:
            try:
                source = partial(shard.store.open, shard.key)
                self._cache.fill(shard.sha256, shard.bytes, source, self._verify)
            except DataError as error:
                self._fault = DataError(f"{shard.key} of {shard.store.location}: {error}")
            except OSError as error:
                self._switch_off(error)
            self._pause_until[shard.sha256] = time.monotonic() + RETRY_S

    def _switch_off(self, error: OSError) -> None:
        if not self._off:
            self._off = True
            log.warning(
                "shards are no longer cached by this process: %s; expected a writable folder with room for "
                "stream.store.cache_gib; mend it or name another stream.store.cache_dir; until then samples are read "
                "from the bucket one by one",
                error,
            )
