"""Records that outlive a full disk: lines and small files wait in memory until there is room, in their order."""

from __future__ import annotations

import errno
import logging
import os
import threading
from collections import deque
from pathlib import Path

from mcjepa.data_prep.errors import DataError
from mcjepa.data_prep.storage import atomic_write

log = logging.getLogger(__name__)
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
MOST_WAITING = 20_000
"""Lines that wait in memory; the oldest are given up beyond that, and counted."""
MOST_FILES = 200
"""Files that wait in memory, of some kilobytes each; the oldest are given up beyond that, and named."""


class PatientLines:
    """One file; a line is on disk, or waits for room. May be used by several threads.

    Args:
        path: the file, made at the first line. A last line that a crash has torn is ended first.
        sync: flush every line to the disk itself.
    """

    def __init__(self, path: Path, *, sync: bool = False) -> None:
        self.path, self._sync = path, sync
        self._waiting: deque[str] = deque()
        self._lock = threading.Lock()
        self._lost = 0

    @property
    def waiting(self) -> int:
        """Lines that are not on disk yet."""
        return len(self._waiting)

    def append(self, line: str) -> bool:
        """Writes a line behind those that wait; returns whether all are on disk.

        Raises:
            OSError: the file cannot be written for another reason than room.
        """
        with self._lock:
            if len(self._waiting) >= MOST_WAITING:
                self._waiting.popleft()
                self._lost += 1
            self._waiting.append(line)
            return self._settle()

    def settle(self) -> bool:
        """Tries to write what waits; returns whether all is on disk."""
        with self._lock:
            return self._settle()

    def _settle(self) -> bool:
        count = len(self._waiting)
        if not count:
            return True
        try:
            self._write("".join(f"{line}\n" for line in self._waiting))
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise
            if count == 1:
                log.warning("%s: %s; the run goes on and its records wait in memory", self.path, error.strerror)
            return False
        self._waiting.clear()
        if count > 1:
            log.info("%s: there is room again, %d lines that waited are written", self.path, count)
        if self._lost:
            log.error("%s: %d lines were given up, more than %d had to wait", self.path, self._lost, MOST_WAITING)
            self._lost = 0
        return True

    def _write(self, text: str) -> None:
        """Appends all of it or nothing."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        try:
            size = os.fstat(descriptor).st_size
            torn = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
            data = (b"\n" if torn else b"") + text.encode()
            try:
                while data:
                    data = data[os.write(descriptor, data) :]
                if self._sync:
                    os.fsync(descriptor)
            except OSError:
                os.ftruncate(descriptor, size)
                raise
        finally:
            os.close(descriptor)


class PatientFiles:
    """Small files, each written whole or not at all: on disk, or waiting for room."""

    def __init__(self) -> None:
        self._waiting: dict[Path, bytes] = {}

    @property
    def waiting(self) -> int:
        """Files that are not on disk yet."""
        return len(self._waiting)

    def write(self, path: Path, data: bytes) -> bool:
        """Writes a file behind those that wait; returns whether all are on disk.

        Raises:
            DataError, OSError: it cannot be written for another reason than room.
        """
        self._waiting[path] = data
        if len(self._waiting) > MOST_FILES:
            oldest = next(iter(self._waiting))
            log.error("%s is given up: more than %d files had to wait for room", oldest, MOST_FILES)
            del self._waiting[oldest]
        done = self.settle()
        if not done:
            log.warning("no room for %s; the run goes on and %d files wait in memory", path, len(self._waiting))
        return done

    def settle(self) -> bool:
        """Tries to write what waits; returns whether all is on disk."""
        for path in list(self._waiting):
            try:
                atomic_write(path, self._waiting[path])
            except (DataError, OSError) as error:
                if getattr(error.__cause__ or error, "errno", None) not in NO_ROOM:
                    raise
                return False
            del self._waiting[path]
        return True
