"""One reading of a manifest a machine: its ranks and their loading processes map one index of it.

    INDEXES/PLACE.lock               held by whoever reads the manifest; says which index is the dataset's present one
    INDEXES/PLACE-VERSION.index      the columns of `dataset_shards`, complete
    INDEXES/.PLACE.PID.partial       one on its way

INDEXES is `manifests` in the node's shard cache (`stream.store.cache_dir`), else a folder of one's own among the
temporary files. PLACE stands for a location and a revision, VERSION for what the store says of the manifest: a dataset
that is published anew gets another index.

Nobody is chosen: whoever has the lock looks. It ends with its process, so the next one takes over from a killed reader,
and ranks may start at any time. An index counts only for the version that the store has *since the process asked*;
a look that another process began after that is as good as one's own, so of ranks that start together one or two ask.
Where the folder cannot be used, each process reads for itself and says so.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from mcjepa.data_prep.dataset.manifest import newest_revision
from mcjepa.data_prep.errors import AbsentKey, DataError
from mcjepa.data_prep.layout import manifest_key
from mcjepa.data_prep.storage import FolderStore, Store, absolute_location, open_store
from mcjepa.pipeline.stream.dataset_shards import DamagedIndex, DatasetShards, ShardColumns, map_shards

SMALL_BYTES = 1 << 20
"""Of a manifest in a folder: what is not longer is read by each process, and nothing is left behind."""
UNUSED_S = 30 * 24 * 3600.0
"""Indexes that nobody has opened for so long are removed."""
PATIENCE_S = 900.0
"""How long another process may take to read a manifest, before one reads it for oneself."""
_LOOK_S, _SAY_S = 0.02, 10.0

log = logging.getLogger(__name__)


def index_folder(cache_dir: str) -> Path:
    """Where this machine's indexes are.

    Args:
        cache_dir: the node's shard cache; empty: there is none.
    """
    if cache_dir:
        return Path(cache_dir).expanduser() / "manifests"
    return Path(tempfile.gettempdir()) / f"mcjepa-{os.getuid()}-manifests"


def open_shards(location: str, revision: int, folder: Path | None) -> DatasetShards:
    """The shards of a published dataset.

    Args:
        location: of the dataset.
        revision: of its manifest; 0: the newest.
        folder: of this machine's indexes; None: the manifest is read into memory and nothing is written.

    Raises:
        DataError: it is not published or its manifest is damaged.
    """
    store = open_store(location)
    if folder is None or (isinstance(store, FolderStore) and _length(store, revision) <= SMALL_BYTES):
        return ShardColumns(store, revision).in_memory()
    index = _Index(folder, store, revision)
    try:
        with index.locked() as descriptor:
            return index.open(descriptor)
    except _UnusableFolder as error:
        log.warning(
            "the manifest of %s is read and held by this process alone: %s; expected a folder on a disk of the node "
            "that can be written and locked, and room for 70 bytes a shard; mend it or name another "
            "(stream.store.cache_dir, TMPDIR)",
            location,
            error,
        )
        return index.unshared or ShardColumns(store, revision).in_memory()


class _UnusableFolder(Exception):
    """The folder of indexes cannot be used, or not in time."""


class _Seen(NamedTuple):
    """What a process found in the store, as it stands in the lock's file."""

    revision: int
    version: str
    asked_s: float
    """When it began to look, on the machine's own clock (CLOCK_MONOTONIC)."""
    boot: str
    """Which clock that is."""


class _Index:
    """The index of one location and revision."""

    def __init__(self, folder: Path, store: Store, revision: int) -> None:
        self._folder, self._store, self._revision = folder, store, revision
        words = f"{absolute_location(store.location)}\n{revision}"
        self._place = hashlib.sha256(words.encode(errors="surrogateescape")).hexdigest()[:16]
        self._asked_s = time.monotonic()
        self.unshared: DatasetShards | None = None
        """What was read and could not be written."""

    @contextlib.contextmanager
    def locked(self) -> Iterator[int]:
        """Hold the lock; its file's descriptor.

        Raises:
            _UnusableFolder: the folder cannot be made, or locks are not to be had.
        """
        with _folder_errors():
            _make_own(self._folder)
            descriptor = os.open(self._lock, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            with _folder_errors():
                self._wait(descriptor)
            yield descriptor
        finally:
            os.close(descriptor)  # and with it the lock

    def open(self, descriptor: int) -> DatasetShards:
        """Map the index of the present manifest; it is made where it is not there. The lock is held."""
        seen = self._seen(descriptor)
        if seen is None or seen.boot != _boot() or seen.asked_s < self._asked_s:
            seen = self._look()
        found = self._mapped(seen) or self._make(seen)
        with contextlib.suppress(OSError):  # on a full disk the next one looks for itself
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(seen).encode(), 0)
        return found

    def _look(self) -> _Seen:
        """Asks the store which manifest is the present one."""
        asked_s = time.monotonic()
        revision = self._revision or newest_revision(self._store)
        key = manifest_key(revision)
        try:
            return _Seen(revision, self._store.version(key), asked_s, _boot())
        except AbsentKey as error:
            raise DataError(
                f"{self._store.location}/{key} is not there; expected a published dataset; run `mcjepa prep run` or "
                "correct the path"
            ) from error

    def _mapped(self, seen: _Seen) -> DatasetShards | None:
        """The index of what was seen; None where there is none, or a damaged one."""
        path = self._path(seen)
        try:
            found = map_shards(self._store.location, path)
        except FileNotFoundError:
            return None
        except DamagedIndex as error:
            log.warning("%s is damaged: %s; the manifest of %s is read again", path, error, self._store.location)
            return None
        except OSError as error:
            raise _UnusableFolder(str(error)) from error
        with contextlib.suppress(OSError):  # another user's
            os.utime(path)
        return found

    def _make(self, seen: _Seen) -> DatasetShards:
        """Reads the manifest, writes its index and maps that."""
        started = time.monotonic()
        columns = ShardColumns(self._store, seen.revision)
        path, partial = self._path(seen), self._folder / f".{self._place}.{os.getpid()}.partial"
        try:
            with _folder_errors():
                self._tidy()
                columns.write(partial)
                os.replace(partial, path)
                found = map_shards(self._store.location, path)
        except _UnusableFolder:
            self.unshared = columns.in_memory()
            raise
        finally:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
        seconds = time.monotonic() - started
        log.info("read the manifest of %s for this machine in %.1f s: %s", self._store.location, seconds, path)
        return found

    def _tidy(self) -> None:
        """Removes earlier indexes of the place, what killed readers left of it, and what nobody has opened for long."""
        oldest = time.time() - UNUSED_S
        others = {path for path in self._folder.iterdir() if path.suffix in (".index", ".lock", ".partial")}
        for path in others - {self._lock}:
            with contextlib.suppress(OSError):
                earlier = path.name.startswith((f"{self._place}-", f".{self._place}."))
                if earlier or path.stat().st_mtime < oldest:
                    path.unlink()

    def _wait(self, descriptor: int) -> None:
        started, said = time.monotonic(), False
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                waited = time.monotonic() - started
            if waited > PATIENCE_S:
                raise _UnusableFolder(f"another process has held {self._lock} for {waited:.0f} s")
            if waited > _SAY_S and not said:
                said = True
                log.info("another process of this machine reads the manifest of %s", self._store.location)
            time.sleep(_LOOK_S)

    @staticmethod
    def _seen(descriptor: int) -> _Seen | None:
        """What the lock's file says; None where it is new or its writer was killed."""
        try:
            revision, version, asked_s, boot = json.loads(os.pread(descriptor, 4096, 0))
            return _Seen(int(revision), str(version), float(asked_s), str(boot))
        except (OSError, ValueError, TypeError):
            return None

    @property
    def _lock(self) -> Path:
        return self._folder / f"{self._place}.lock"

    def _path(self, seen: _Seen) -> Path:
        digest = hashlib.sha256(f"{seen.revision}\n{seen.version}".encode()).hexdigest()
        return self._folder / f"{self._place}-{digest[:16]}.index"


@contextlib.contextmanager
def _folder_errors() -> Iterator[None]:
    """Turns errors of the folder into one that means: do without."""
    try:
        yield
    except (OSError, DamagedIndex) as error:
        raise _UnusableFolder(str(error)) from error


def _make_own(folder: Path) -> None:
    """Makes the folder; among the temporary files, where anybody may make one of that name, it has to be ours."""
    folder.mkdir(mode=0o700 if folder.parent == Path(tempfile.gettempdir()) else 0o777, parents=True, exist_ok=True)
    if folder.parent == Path(tempfile.gettempdir()) and folder.lstat().st_uid != os.getuid():
        raise PermissionError(f"{folder} is another user's")


def _length(store: FolderStore, revision: int) -> int:
    """Bytes of a manifest in a folder; 0: there is none, which its reader says."""
    try:
        return store.size(manifest_key(revision or newest_revision(store)))
    except AbsentKey:
        return 0


def _boot() -> str:
    """Which start of which machine this is; its clock runs from there. Of its own process where no system tells."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/time')}"
    except OSError:
        return f"process {os.getpid()}"
