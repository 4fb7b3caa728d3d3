"""Where files lie: a folder or an S3 prefix, behind one small interface, and atomic writes.

A location is a path, `file://…` or `s3://bucket/prefix`. The S3 endpoint, region and credentials come from
the standard AWS variables and profiles only (AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, …), never from a recipe.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote, urlsplit

from data_prep.errors import AbsentKey, DataError

SCRATCH_NAME = ".scratch"
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


class Store(Protocol):
    """Named byte strings under one location; keys are relative, with '/' between parts."""

    @property
    def location(self) -> str:
        """The location as given, without a trailing slash."""

    def read(self, key: str) -> bytes:
        """The whole content; AbsentKey when absent."""

    def read_range(self, key: str, offset: int, length: int) -> bytes:
        """`length` bytes from `offset`, fewer only at the end; AbsentKey when absent."""

    def write(self, key: str, data: bytes) -> None:
        """Write atomically: a reader sees the old content or the new, never a part."""

    def write_file(self, key: str, path: Path) -> None:
        """Take over a finished local file, atomically; the file is gone afterwards."""

    def write_if_absent(self, key: str, data: bytes) -> bool:
        """Conditional put: write only when the key is absent; False when another was there first."""

    def exists(self, key: str) -> bool:
        """Whether the key is there."""

    def size(self, key: str) -> int:
        """Length in bytes; AbsentKey when absent."""

    def list(self, prefix: str) -> Iterator[str]:
        """Keys that start with `prefix`, sorted."""

    def scratch(self) -> Path:
        """A folder on this machine for unfinished files that `write_file` takes over."""

    def clear_scratch(self) -> None:
        """Remove unfinished files that killed processes left behind."""

    def remove(self, key: str) -> None:
        """Remove the key; nothing happens when it is absent."""


def open_store(location: str) -> Store:
    """Open a location.

    Raises:
        DataError: a scheme other than none, `file` and `s3`, or an S3 location without a bucket.
    """
    parts = urlsplit(location)
    if parts.scheme == "s3":
        from data_prep.storage_s3 import S3Store

        return S3Store(location)
    if parts.scheme == "file":
        return FolderStore(location, Path(unquote(parts.path)))
    if "://" in location or not location:
        raise DataError(f"location {location!r}; expected a path, file://… or s3://bucket/prefix; correct it")
    return FolderStore(location, Path(location).expanduser())


def absolute_location(location: str) -> str:
    """The same location, valid in a process that runs in another folder."""
    if "://" in location:
        return location
    return str(Path(location).expanduser().absolute())


def join_location(location: str, name: str) -> str:
    """The location of `name` below `location`."""
    return f"{location.rstrip('/')}/{name}"


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
        temporary = _write_neighbour(path, data)
        try:
            os.replace(temporary, path)
        except OSError:
            os.unlink(temporary)
            raise


def _write_neighbour(path: Path, data: bytes) -> str:
    """A temporary file beside `path` with the data on disk; removed again when writing fails."""
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
    except BaseException:
        os.unlink(temporary)
        raise
    return temporary


class FolderStore:
    """A store in a local folder; it is made at the first write."""

    def __init__(self, location: str, folder: Path) -> None:
        """Open `folder` under the name `location`; nothing is touched yet."""
        self._location = location.rstrip("/") or "/"
        self._folder = folder

    @property
    def location(self) -> str:
        """The location as given."""
        return self._location

    def path(self, key: str) -> Path:
        """The file that holds `key`."""
        return self._folder / checked_key(key)

    def read(self, key: str) -> bytes:
        """The whole content."""
        with self._present(key):
            return self.path(key).read_bytes()

    def read_range(self, key: str, offset: int, length: int) -> bytes:
        """`length` bytes from `offset`."""
        with self._present(key), self.path(key).open("rb") as file:
            return os.pread(file.fileno(), length, offset)

    def write(self, key: str, data: bytes) -> None:
        """Write atomically."""
        atomic_write(self.path(key), data)

    def write_file(self, key: str, path: Path) -> None:
        """Rename the file into place; copied first when it lies on another disk."""
        target = self.path(key)
        with explained_disk_errors(str(target)):
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.replace(path, target)
            except OSError as error:
                if error.errno != errno.EXDEV:
                    raise
                neighbour = target.with_name(f".{target.name}.{os.getpid()}.partial")
                shutil.copyfile(path, neighbour)
                os.replace(neighbour, target)
                path.unlink()

    def write_if_absent(self, key: str, data: bytes) -> bool:
        """Write through a hard link, which fails when the name is taken."""
        path = self.path(key)
        with explained_disk_errors(str(path)):
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = _write_neighbour(path, data)
            try:
                os.link(temporary, path)
            except FileExistsError:
                return False
            finally:
                os.unlink(temporary)
        return True

    def exists(self, key: str) -> bool:
        """Whether the file is there."""
        return self.path(key).is_file()

    def size(self, key: str) -> int:
        """Length in bytes."""
        with self._present(key):
            return self.path(key).stat().st_size

    def list(self, prefix: str) -> Iterator[str]:
        """Keys that start with `prefix`; unfinished files, whose names begin with a dot, are left out."""
        names = (p.relative_to(self._folder) for p in self._folder.rglob("*") if p.is_file())
        shown = (n.as_posix() for n in names if not any(part.startswith(".") for part in n.parts))
        yield from sorted(n for n in shown if n.startswith(prefix))

    def scratch(self) -> Path:
        """The hidden folder `.scratch` of this store: on the same disk, so that files are only renamed."""
        folder = self._folder / SCRATCH_NAME
        with explained_disk_errors(str(folder)):
            folder.mkdir(parents=True, exist_ok=True)
        return folder

    def clear_scratch(self) -> None:
        """Remove the folder of unfinished files."""
        shutil.rmtree(self._folder / SCRATCH_NAME, ignore_errors=True)

    def remove(self, key: str) -> None:
        """Remove the file."""
        self.path(key).unlink(missing_ok=True)

    @contextlib.contextmanager
    def _present(self, key: str) -> Iterator[None]:
        try:
            yield
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
            raise absent(self._location, key) from error


def absent(location: str, key: str) -> AbsentKey:
    """The error for a key that is not there."""
    return AbsentKey(f"{location} has no {key}; expected it there; check the location")


def checked_key(key: str) -> str:
    """The key itself; a key that leads out of the location is refused."""
    if key.startswith("/") or ".." in key.split("/"):
        raise DataError(f"key {key!r} leads out of its location; expected a relative name; correct it")
    return key
