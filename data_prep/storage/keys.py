"""What stores speak of: keys and their errors, entries of a listing, files on their way."""

from __future__ import annotations

import os
from typing import NamedTuple, Protocol

from mcjepa.data_prep.errors import AbsentKey, DataError

UNMEASURED = -1


class FileEntry(NamedTuple):
    """A file of a store, as a listing gives it."""

    key: str
    bytes: int
    """Length; -1 for what is there but is no file that can be measured: a dangling or looping link, a pipe, a
    folder that may not be read."""


class KeySpan(NamedTuple):
    """A stretch of a listing, in the byte order of its keys."""

    first: str = ""
    """The first key that may be in it; of a folder, its name with a slash."""
    end: str = ""
    """The first key behind it; empty: the listing's end."""

    def holds(self, key: str) -> bool:
        """Whether a key is in it.

        >>> KeySpan("b", "d/").holds("c/x"), KeySpan("b", "d/").holds("d/x"), KeySpan("b").holds("a/x")
        (True, False, False)
        """
        found = os.fsencode(key)
        return found >= os.fsencode(self.first) and (not self.end or found < os.fsencode(self.end))

    def meets(self, name: bytes) -> bool:
        """Whether a file of this key, or with a slash at its end a folder, may have something in it.

        >>> [KeySpan("b/m", "d/").meets(name) for name in (b"a/", b"b/", b"b/c", b"c/", b"d/")]
        [False, True, False, True, False]
        """
        first = os.fsencode(self.first)
        inside = name >= first or (name.endswith(b"/") and first.startswith(name))
        return inside and (not self.end or name < os.fsencode(self.end))


EVERYTHING = KeySpan()


class GrowingFile(Protocol):
    """A local file that a store takes over while it is still being written."""

    def settle(self, length: int) -> None:
        """The first `length` bytes are written (flushed) and will not change: they may be sent."""

    def finish(self) -> None:
        """The file is complete: it becomes the key's content, atomically, and is gone here."""


def is_hidden(key: str) -> bool:
    """Whether a part of the key begins with a dot."""
    return key.startswith(".") or "/." in key


def short(name: str, span: tuple[int, int]) -> DataError:
    """The error for content that ends before a span does."""
    return DataError(
        f"{name} ends before byte {sum(span)}; expected {span[1]} bytes from byte {span[0]}; it changed since it was "
        "listed: restore it, or prepare into another root"
    )


def absent(location: str, key: str) -> AbsentKey:
    """The error for a key that is not there."""
    return AbsentKey(f"{location} has no {key}; expected it there; check the location")


def checked_key(key: str) -> str:
    """The key itself; a key that leads out of the location is refused."""
    if key.startswith("/") or ".." in key.split("/"):
        raise DataError(f"key {key!r} leads out of its location; expected a relative name; correct it")
    return key
