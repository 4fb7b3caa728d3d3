"""Objects under a prefix of an S3 bucket, for `data_prep.storage.open_store`."""

from __future__ import annotations

import builtins
import hashlib
import io
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

from mcjepa.data_prep.errors import AbsentKey, DataError
from mcjepa.data_prep.storage.disk import explained_disk_errors
from mcjepa.data_prep.storage.keys import EVERYTHING, FileEntry, KeySpan, checked_key, is_hidden, short
from mcjepa.data_prep.storage.s3_client import S3Client
from mcjepa.data_prep.storage.s3_errors import ConditionFailed, EmptySpan
from mcjepa.data_prep.storage.s3_list import list_level, list_objects
from mcjepa.data_prep.storage.s3_read import ObjectStream
from mcjepa.data_prep.storage.s3_upload import S3Upload, abort_uploads

LOG = logging.getLogger(__name__)

BUFFER_BYTES = 1 << 20


class S3Store:
    """A store under a prefix of an S3 bucket; may be shared between threads and sent to other processes."""

    def __init__(self, location: str) -> None:
        """Split `s3://bucket/prefix`, in which `#` and `?` are letters as any other; nothing is contacted yet."""
        bucket, _, prefix = location.partition("://")[2].partition("/")
        self._location = location.rstrip("/")
        self._prefix = prefix.strip("/")
        if not bucket:
            raise DataError(f"location {location!r} names no bucket; expected s3://bucket/prefix; add it")
        self._client = S3Client(self._location, bucket)

    def __reduce__(self) -> tuple[type[S3Store], tuple[str]]:
        """Sent to another process as its location only: a client cannot be."""
        return S3Store, (self._location,)

    @property
    def location(self) -> str:
        """The location as given."""
        return self._location

    def read(self, key: str) -> bytes:
        """The whole content."""
        with self._stream(key) as stream:
            return stream.readall()

    def read_range(self, key: str, offset: int, length: int) -> bytes:
        """`length` bytes from `offset`, by a ranged get."""
        if length <= 0:
            return b""
        try:
            with self._stream(key, (offset, length)) as stream:
                return stream.readall()
        except EmptySpan:
            return b""

    @contextmanager
    def open(self, key: str) -> Iterator[BinaryIO]:
        """A buffered stream that survives lost connections."""
        with io.BufferedReader(self._stream(key), BUFFER_BYTES) as file:
            yield cast(BinaryIO, file)

    def download(self, key: str, path: Path, span: tuple[int, int] | None = None) -> None:
        """Get the object, or a span of it."""
        if span and not span[1]:
            path.write_bytes(b"")
            return
        with self._stream(key, span) as stream, explained_disk_errors(str(path)), path.open("wb") as file:
            if span and stream.remaining < span[1]:
                raise short(f"{self._location}/{key}", span)
            shutil.copyfileobj(stream, file, BUFFER_BYTES)

    def write(self, key: str, data: bytes) -> None:
        """One put, which S3 makes visible whole."""
        self._client.call("put_object", self._name(key), Body=data)

    def write_file(self, key: str, path: Path) -> None:
        """Upload the file, in parts when it is large, and remove it."""
        with self.growing_file(key, path) as file:
            file.finish()

    def growing_file(self, key: str, path: Path) -> S3Upload:
        """An upload whose parts go up while the file is written."""
        return S3Upload(self._client, self._name(key), path)

    def write_if_absent(self, key: str, data: bytes) -> bool:
        """One plain put with If-None-Match: * (never multipart: some servers ignore the condition there).

        A put that was sent again, because its answer was lost, may find its own object: then the bytes decide.
        """
        try:
            self._client.call("put_object", self._name(key), Body=data, IfNoneMatch="*")
        except ConditionFailed as error:
            return error.repeated and self.read(key) == data
        return True

    def exists(self, key: str) -> bool:
        """Whether the object is there."""
        try:
            self.size(key)
        except AbsentKey:
            return False
        return True

    def size(self, key: str) -> int:
        """Length in bytes."""
        return int(self._client.call("head_object", self._name(key))["ContentLength"])

    def version(self, key: str) -> str:
        """Tag, length and time of writing."""
        told = self._client.call("head_object", self._name(key))
        return f"{told['ETag']} {told['ContentLength']} {told['LastModified']}"

    def files(self, prefix: str = "", span: KeySpan = EVERYTHING) -> Iterator[FileEntry]:
        """Objects, page by page."""
        start = f"{self._prefix}/" if self._prefix else ""
        within = KeySpan(span.first and start + span.first, span.end and start + span.end)
        for name, size in list_objects(self._client, start + prefix, within):
            if not is_hidden(name[len(start) :]) and not name.endswith("/"):
                yield FileEntry(name[len(start) :], size)

    def level(self, prefix: str = "") -> builtins.list[str]:
        """By the server's own grouping at slashes."""
        start = f"{self._prefix}/" if self._prefix else ""
        names = (name[len(start) :] for name in list_level(self._client, start + prefix))
        return [name for name in names if name != prefix and not is_hidden(name)]

    def list(self, prefix: str) -> Iterator[str]:
        """Keys that start with `prefix`."""
        return (entry.key for entry in self.files(prefix))

    def scratch(self) -> Path:
        """A folder of this user's, for this location alone, among the system's temporary files."""
        digest = hashlib.sha256(self._location.encode()).hexdigest()[:16]
        folder = Path(tempfile.gettempdir()) / f"mcjepa-{os.getuid()}-{digest}"
        with explained_disk_errors(str(folder)):
            folder.mkdir(mode=0o700, exist_ok=True)
        if folder.lstat().st_uid != os.getuid():
            raise DataError(f"{folder} is another user's; expected one of one's own; set TMPDIR to a folder of yours")
        return folder

    def clear_scratch(self) -> None:
        """Remove it on this machine, and unfinished uploads from the bucket."""
        shutil.rmtree(self.scratch(), ignore_errors=True)
        try:
            abort_uploads(self._client, f"{self._prefix}/" if self._prefix else "")
        except DataError as error:  # not every server or user can list them: they cost room, no more
            LOG.warning("unfinished uploads are left: %s", error)

    def move(self, key: str, target: str) -> None:
        """Copy the object within the server, in parts when it is large, and delete it."""
        self._client.copy(self._name(key), self._name(target))
        self.remove(key)

    def remove(self, key: str) -> None:
        """Delete the object."""
        self._client.call("delete_object", self._name(key))

    def _name(self, key: str) -> str:
        return f"{self._prefix}/{checked_key(key)}" if self._prefix else checked_key(key)

    def _stream(self, key: str, span: tuple[int, int] | None = None) -> ObjectStream:
        name = self._name(key)

        def get(**request: Any) -> dict[str, Any]:
            return self._client.call("get_object", name, **request)

        return ObjectStream(get, f"{self._location}/{key}", span)
