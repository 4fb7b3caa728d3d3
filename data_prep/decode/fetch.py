"""Brings an input onto this machine: plain local files with plain names, which any decoder can open."""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from mcjepa.data_prep.corpora.items import Input
from mcjepa.data_prep.corpora.places import is_local, store_and_key
from mcjepa.data_prep.corpora.trees import suffix_of
from mcjepa.data_prep.decode.messages import DecodeFailure
from mcjepa.data_prep.errors import AbsentKey, DataError
from mcjepa.data_prep.storage import explained_disk_errors

MAX_SUFFIX_CHARACTERS = 8
GONE = (errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.ENODEV, errno.EHOSTDOWN, errno.ETIMEDOUT)
TOO_MANY_FILES = (errno.EMFILE, errno.ENFILE)


@contextlib.contextmanager
def local_input(item: Input, scratch: Path) -> Iterator[Input]:
    """The input with local files: itself where it is local, no member of a tar, and its names are UTF-8.

    Otherwise its content is fetched (from s3, from a tar), or linked under a plain name, into a new folder below
    `scratch` that is removed at the end; only the suffixes of names are kept, so no name becomes a path.

    Raises:
        DecodeFailure: a file is absent, cannot be opened, or is shorter than its place in the tar.
        DataError: the store failed, after its retries, or the disk is full: not the input's fault.
    """
    if is_local(item.uri) and item.span is None and all(map(_is_plain, item.files)):
        yield item
        return
    with explained_disk_errors(str(scratch)):
        scratch.mkdir(parents=True, exist_ok=True)
        folder = tempfile.TemporaryDirectory(prefix="input-", dir=scratch)
    with folder:
        names = tuple(
            f"{number:06d}{_plain_suffix(name)}" for number, name in enumerate(item.members or (_name(item),))
        )
        for location, name in zip(item.files, names, strict=True):
            _bring(location, item.span, Path(folder.name) / name)
        if item.members:
            yield replace(item, uri=folder.name, members=names)
        else:
            yield replace(item, uri=f"{folder.name}/{names[0]}", span=None)


def failed_read(location: str, error: OSError) -> DataError | DecodeFailure:
    """What it means that a file cannot be read: the input is at fault, or its disk or this machine, for others too."""
    if error.errno in GONE:
        return DataError(
            f"{location} cannot be read ({error.strerror}); expected its disk or file server to answer; repair or "
            "mount it, then run again: finished parts are kept"
        )
    if error.errno in TOO_MANY_FILES:
        return DataError(
            f"{location} cannot be opened ({error.strerror}); expected room for another open file; raise `ulimit -n`, "
            "or take fewer workers, then run again: finished parts are kept"
        )
    return DecodeFailure(f"{location} cannot be read ({error.strerror})")


def _bring(location: str, span: tuple[int, int] | None, target: Path) -> None:
    if is_local(location) and span is None:
        with explained_disk_errors(str(target)):
            target.symlink_to(os.path.abspath(location))
        return
    store, key = store_and_key(location)
    try:
        store.download(key, target, span)
    except AbsentKey as error:
        raise DecodeFailure(f"{location} is not there any more") from error
    except OSError as error:
        raise failed_read(location, error) from error
    except DataError as error:
        if span is not None and (size := store.size(key)) < sum(span):
            raise DecodeFailure(f"{location} has {size} bytes, this member ends at {sum(span)}: cut off") from error
        raise


def _name(item: Input) -> str:
    """The name that tells the kind of an input's file: in a tar, the member's."""
    return item.name if item.span is not None else item.uri


def _is_plain(location: str) -> bool:
    """Whether every decoder can be given the name: it is UTF-8."""
    try:
        location.encode()
    except UnicodeEncodeError:
        return False
    return True


def _plain_suffix(name: str) -> str:
    """The suffix of a name, if it is a harmless one.

    >>> _plain_suffix("a/b.JPG"), _plain_suffix("a.é/../x")
    ('.jpg', '')
    """
    suffix = suffix_of(name)
    return suffix if suffix[1:].isascii() and suffix[1:].isalnum() and len(suffix) <= MAX_SUFFIX_CHARACTERS else ""
