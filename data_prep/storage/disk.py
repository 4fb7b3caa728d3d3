"""Atomic writes to a disk, and its errors in words."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mcjepa.data_prep.errors import DataError

FULL_DISK = (errno.ENOSPC, errno.EDQUOT)
UNWRITABLE = (
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EEXIST,
    errno.ENAMETOOLONG,
)


@contextlib.contextmanager
def explained_disk_errors(location: str) -> Iterator[None]:
    """Turn a full, read-only or forbidden disk into a DataError that says so."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL_DISK:
            raise DataError(
                f"no space left while writing {location}; expected room for the next file; "
                "free some space or choose another location, then run again: finished parts are kept"
            ) from error
        if error.errno in UNWRITABLE:
            raise DataError(
                f"{location} cannot be written ({error.strerror}); expected a writable folder; "
                "change its mode or choose another location"
            ) from error
        raise


def atomic_write(path: Path, data: bytes) -> None:
    """Write a file through a temporary neighbour, flushed to disk and renamed into place.

    Raises:
        DataError: the disk is full or the folder cannot be written.
    """
    with explained_disk_errors(str(path)):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = write_neighbour(path, data)
        try:
            os.replace(temporary, path)
        except OSError:
            os.unlink(temporary)
            raise


def write_json(path: Path, document: Any) -> None:
    """Write a readable JSON file, at once or not at all.

    Raises:
        DataError: the disk is full or the folder cannot be written.
    """
    atomic_write(path, (json.dumps(document, indent=1) + "\n").encode())


def write_neighbour(path: Path, data: bytes) -> str:
    """A temporary file beside `path` with the data on disk; removed again when writing fails."""
    temporary = str(path.with_name(f".{path.name}.{secrets.token_hex(6)}.partial"))
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)  # less the user's umask
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        os.unlink(temporary)
        raise
    return temporary
