"""Where the files of corpora lie: paths and s3:// locations, read by one function."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path

from mcjepa.data_prep.errors import DataError
from mcjepa.data_prep.storage import Store, local_path, open_store

Location = str | Path
"""A path, or an s3:// location as a string (a Path would lose a slash)."""


def plain_location(location: Location) -> str:
    """The location as an s3:// location or a path: without file://, `~` and a trailing slash.

    Raises:
        DataError: it has another scheme.
    """
    text = str(location)
    scheme = text.partition("://")[0] if "://" in text else ""
    if scheme not in ("", "file", "s3"):
        raise DataError(
            f"{text} is of {scheme}://, which is not read; expected a path, file://… or s3://bucket/prefix; mount it, "
            "or use the S3 interface of that store (AWS_ENDPOINT_URL)"
        )
    if scheme == "file":
        text = str(local_path(text))
    elif not scheme:
        text = os.path.expanduser(text)
    return text.rstrip("/") or text[:1]


def is_local(location: Location) -> bool:
    """Whether it is a path of this machine."""
    return not str(location).startswith("s3://")


def store_and_key(location: Location) -> tuple[Store, str]:
    """The store that holds a file, one for each bucket, and the file's key in it."""
    text = str(location)
    if is_local(text):
        folder, _, name = text.rpartition("/")
        return open_store(folder or ("/" if text.startswith("/") else ".")), name
    bucket, _, key = text.removeprefix("s3://").partition("/")
    return _bucket_store(bucket, os.environ.get("AWS_ENDPOINT_URL", "")), key


@lru_cache(maxsize=8)
def _bucket_store(bucket: str, endpoint: str) -> Store:
    """One store a bucket and endpoint: a new client for each file would cost more than the file."""
    return open_store(f"s3://{bucket}")


def read_bytes(location: Location) -> bytes:
    """Read a whole file.

    Raises:
        DataError: it cannot be read.
    """
    if not is_local(location):
        store, key = store_and_key(location)
        return store.read(key)
    try:
        with open(location, "rb") as file:
            return file.read()
    except OSError as error:
        raise DataError(f"{location} cannot be read ({error.strerror}); expected a file; check it") from error
