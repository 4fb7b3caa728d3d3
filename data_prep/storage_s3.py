"""Objects under a prefix of an S3 bucket, for `data_prep.storage.open_store` (the only user of boto3)."""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from data_prep.errors import AbsentKey, DataError
from data_prep.storage import absent, checked_key

ATTEMPTS = 6
BODY_ATTEMPTS = 4
TIMEOUT_S = 60
PRECONDITION_FAILED = 412
CONFLICT = 409


class S3Store:
    """A store under a prefix of an S3 bucket; a client is made at first use, one for each store."""

    def __init__(self, location: str) -> None:
        """Split `s3://bucket/prefix`; nothing is contacted yet."""
        parts = urlsplit(location)
        self._location = location.rstrip("/")
        self._bucket = parts.netloc
        self._prefix = parts.path.strip("/")
        self._made: Any = None
        if not self._bucket:
            raise DataError(f"location {location!r} names no bucket; expected s3://bucket/prefix; add it")

    def __reduce__(self) -> tuple[type[S3Store], tuple[str]]:
        """Sent to another process as its location only: a client cannot be."""
        return S3Store, (self._location,)

    @property
    def location(self) -> str:
        """The location as given."""
        return self._location

    @property
    def _client(self) -> Any:
        if self._made is None:
            import boto3
            from botocore.config import Config

            os.environ.setdefault("AWS_EC2_METADATA_DISABLED", "true")
            retries = {"mode": "standard", "max_attempts": ATTEMPTS}
            config = Config(retries=retries, connect_timeout=TIMEOUT_S, read_timeout=TIMEOUT_S)
            self._made = boto3.session.Session().client("s3", config=config)
        return self._made

    def _name(self, key: str) -> str:
        return f"{self._prefix}/{checked_key(key)}" if self._prefix else checked_key(key)

    def read(self, key: str) -> bytes:
        """The whole content."""
        with self._explained(key):
            return self._read_body(Key=self._name(key))

    def read_range(self, key: str, offset: int, length: int) -> bytes:
        """`length` bytes from `offset`, by a ranged get."""
        if length <= 0:
            return b""
        span = f"bytes={offset}-{offset + length - 1}"
        with self._explained(key):
            return self._read_body(Key=self._name(key), Range=span)

    def _read_body(self, **request: str) -> bytes:
        """Get an object; a connection lost within its body, which boto3 does not retry, is tried again."""
        from botocore.exceptions import BotoCoreError

        for attempt in range(BODY_ATTEMPTS):
            reply = self._client.get_object(Bucket=self._bucket, **request)
            try:
                return bytes(reply["Body"].read())
            except BotoCoreError:
                if attempt == BODY_ATTEMPTS - 1:
                    raise
                time.sleep(2**attempt / 4)
        raise AssertionError("unreachable")

    def write(self, key: str, data: bytes) -> None:
        """One put, which S3 makes visible whole."""
        with self._explained(key):
            self._client.put_object(Bucket=self._bucket, Key=self._name(key), Body=data)

    def write_file(self, key: str, path: Path) -> None:
        """Upload the file, in parts when it is large, and remove it."""
        with self._explained(key):
            self._client.upload_file(str(path), self._bucket, self._name(key))
        path.unlink()

    def write_if_absent(self, key: str, data: bytes) -> bool:
        """One plain put with If-None-Match: * (never multipart: some servers ignore the condition there)."""
        from botocore.exceptions import ClientError

        with self._explained(key):
            try:
                self._client.put_object(Bucket=self._bucket, Key=self._name(key), Body=data, IfNoneMatch="*")
            except ClientError as error:
                if _status(error) in (PRECONDITION_FAILED, CONFLICT):
                    return False
                raise
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
        with self._explained(key):
            return int(self._client.head_object(Bucket=self._bucket, Key=self._name(key))["ContentLength"])

    def list(self, prefix: str) -> Iterator[str]:
        """Keys that start with `prefix`, page by page."""
        start = f"{self._prefix}/" if self._prefix else ""
        with self._explained(prefix):
            pages = self._client.get_paginator("list_objects_v2")
            for page in pages.paginate(Bucket=self._bucket, Prefix=start + prefix):
                for entry in page.get("Contents", ()):
                    yield entry["Key"][len(start) :]

    def scratch(self) -> Path:
        """The system's folder for temporary files."""
        return Path(tempfile.gettempdir())

    def clear_scratch(self) -> None:
        """Nothing: the system's folder is not ours alone."""

    def remove(self, key: str) -> None:
        """Delete the object."""
        with self._explained(key):
            self._client.delete_object(Bucket=self._bucket, Key=self._name(key))

    @contextlib.contextmanager
    def _explained(self, key: str) -> Iterator[None]:
        """Turn the client's errors, after its retries, into DataErrors with the location."""
        from boto3.exceptions import Boto3Error
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            yield
        except ClientError as error:
            code = error.response.get("Error", {}).get("Code", "")
            if code in ("NoSuchKey", "404", "NotFound"):
                raise absent(self._location, key) from error
            raise DataError(
                f"S3 answered {code} for {self._location}/{key}; expected success; "
                "check the bucket, the credentials and AWS_ENDPOINT_URL"
            ) from error
        except (BotoCoreError, Boto3Error) as error:
            raise DataError(
                f"S3 at {self._location} cannot be used ({error}); expected a reachable server and "
                "credentials in the standard AWS variables or profile; set them and run again"
            ) from error


def _status(error: Any) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
