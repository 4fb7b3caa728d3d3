"""Files below a local folder, for `data_prep.storage.open_store`."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from mcjepa.data_prep.errors import DataError
from mcjepa.data_prep.storage.disk import atomic_write, explained_disk_errors, write_neighbour
from mcjepa.data_prep.storage.folder_walk import names_in, walk_files
from mcjepa.data_prep.storage.keys import EVERYTHING, FileEntry, GrowingFile, KeySpan, absent, checked_key, short

SCRATCH_NAME = ".scratch"
COPY_BYTES = 1 << 20


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

    @contextlib.contextmanager
    def open(self, key: str) -> Iterator[BinaryIO]:
        """The open file."""
        with self._present(key):
            file = self.path(key).open("rb")
        with file:
            yield file

    def download(self, key: str, path: Path, span: tuple[int, int] | None = None) -> None:
        """Copy the file, or a span of it."""
        with self.open(key) as source, explained_disk_errors(str(path)), path.open("wb") as target:
            if span is None:
                shutil.copyfileobj(source, target, COPY_BYTES)
            else:
                source.seek(span[0])
                if _copy_length(source, target, span[1]) < span[1]:
                    raise short(f"{self._location}/{key}", span)

    def write(self, key: str, data: bytes) -> None:
        """Write atomically."""
        atomic_write(self.path(key), data)

    def write_file(self, key: str, path: Path) -> None:
        """Rename the file into place, flushed to disk; copied first when it lies on another disk."""
        target = self.path(key)
        with explained_disk_errors(str(target)):
            target.parent.mkdir(parents=True, exist_ok=True)
            with path.open("rb") as file:
                os.fsync(file.fileno())
            try:
                os.replace(path, target)
            except OSError as error:
                if error.errno != errno.EXDEV:
                    raise
                neighbour = target.with_name(f".{target.name}.{os.getpid()}.partial")
                shutil.copyfile(path, neighbour)
                os.replace(neighbour, target)
                path.unlink()

    @contextlib.contextmanager
    def growing_file(self, key: str, path: Path) -> Iterator[GrowingFile]:
        """Nothing is done before the file is finished."""
        yield _Unfinished(self, key, path)

    def write_if_absent(self, key: str, data: bytes) -> bool:
        """Write through a hard link, which fails when the name is taken."""
        path = self.path(key)
        with explained_disk_errors(str(path)):
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = write_neighbour(path, data)
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

    def version(self, key: str) -> str:
        """The file's number, length and time of writing."""
        with self._present(key):
            status = self.path(key).stat()
        return f"{status.st_ino} {status.st_size} {status.st_mtime_ns}"

    def files(self, prefix: str = "", span: KeySpan = EVERYTHING) -> Iterator[FileEntry]:
        """A walk through the folder; what is there but cannot be measured has the length -1."""
        with self._readable():
            yield from walk_files(str(self._folder), prefix, span)

    def level(self, prefix: str = "") -> list[str]:
        """All names in one folder."""
        with self._readable():
            names = names_in(os.path.join(os.fsencode(str(self._folder)), os.fsencode(prefix)))
        return [prefix + os.fsdecode(name) for name in sorted(names)]

    def list(self, prefix: str) -> Iterator[str]:
        """Keys of the files that start with `prefix`."""
        return (entry.key for entry in self.files(prefix) if entry.bytes >= 0)

    def scratch(self) -> Path:
        """The hidden folder `.scratch` of this store: on the same disk, so that files are only renamed."""
        folder = self._folder / SCRATCH_NAME
        with explained_disk_errors(str(folder)):
            folder.mkdir(parents=True, exist_ok=True)
        return folder

    def clear_scratch(self) -> None:
        """Remove the folder of unfinished files."""
        shutil.rmtree(self._folder / SCRATCH_NAME, ignore_errors=True)

    def move(self, key: str, target: str) -> None:
        """Rename the file."""
        path = self.path(target)
        with explained_disk_errors(str(path)), self._present(key):
            path.parent.mkdir(parents=True, exist_ok=True)
            os.replace(self.path(key), path)

    def remove(self, key: str) -> None:
        """Remove the file."""
        self.path(key).unlink(missing_ok=True)

    @contextlib.contextmanager
    def _readable(self) -> Iterator[None]:
        try:
            yield
        except PermissionError as error:
            raise DataError(
                f"{error.filename!r} cannot be listed ({error.strerror}); expected a readable folder; change its mode"
            ) from error

    @contextlib.contextmanager
    def _present(self, key: str) -> Iterator[None]:
        try:
            yield
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
            raise absent(self._location, key) from error


def _copy_length(source: BinaryIO, target: BinaryIO, length: int) -> int:
    """Copy at most `length` bytes; returns how many there were."""
    left = length
    while left and (piece := source.read(min(left, COPY_BYTES))):
        target.write(piece)
        left -= len(piece)
    return length - left


class _Unfinished:
    """A file that is renamed when it is finished."""

    def __init__(self, store: FolderStore, key: str, path: Path) -> None:
        self._store, self._key, self._path = store, key, path

    def settle(self, length: int) -> None:
        """Nothing: a rename takes no time."""

    def finish(self) -> None:
        """Take the file over."""
        self._store.write_file(self._key, self._path)
