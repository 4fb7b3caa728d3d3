"""Lists the files below a folder in the byte order of their keys, with one folder's names in memory at a time."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from typing import NamedTuple

from mcjepa.data_prep.storage.keys import EVERYTHING, UNMEASURED, FileEntry, KeySpan, is_hidden


class _Level(NamedTuple):
    """A folder that the walk is in."""

    identity: tuple[int, int]
    """Device and inode, by which a link to a folder above is known."""
    path: bytes
    key: bytes
    names: Iterator[bytes]


def walk_files(top: str, prefix: str = "", span: KeySpan = EVERYTHING) -> Iterator[FileEntry]:
    """Every file below `top` whose key starts with `prefix` and lies in `span`; nothing when the folder is absent.

    Keys are sorted by their bytes, as S3 sorts them. Hidden names (with a dot in front) are left out. Links to
    folders are followed, except one that leads to a folder it lies in: it is an entry of unknown length.
    """
    base, _, start = prefix.rpartition("/")
    if is_hidden(base):
        return
    key = os.fsencode(base) + b"/" if base else b""
    try:
        levels = [_enter(os.path.join(os.fsencode(top), key), key, [], span, os.fsencode(start))]
    except (FileNotFoundError, NotADirectoryError):
        return
    while levels:
        level = levels[-1]
        for name in level.names:
            path, key = level.path + name, level.key + name
            if not name.endswith(b"/"):
                yield FileEntry(os.fsdecode(key), _measure(path))
                continue
            try:
                levels.append(_enter(path, key, levels, span))
                break
            except OSError:
                if span.holds(os.fsdecode(key)):  # other spans meet it too
                    yield FileEntry(os.fsdecode(key[:-1]), UNMEASURED)
        else:
            levels.pop()


def names_in(path: bytes, start: bytes = b"") -> list[bytes]:
    """Names in a folder that begin with `start`, hidden ones left out, those of folders with a slash, as they come."""
    with os.scandir(path) as entries:
        return [
            entry.name + b"/" if _is_folder(entry) else entry.name
            for entry in entries
            if not entry.name.startswith(b".") and entry.name.startswith(start)
        ]


def _enter(path: bytes, key: bytes, above: list[_Level], span: KeySpan, start: bytes = b"") -> _Level:
    """Open a folder: its names that begin with `start` and may be in `span`, in the order of the keys."""
    found = os.stat(path)
    identity = (found.st_dev, found.st_ino)
    if any(level.identity == identity for level in above):
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
    names = names_in(path, start)
    if span != EVERYTHING:
        names = [name for name in names if span.meets(key + name)]
    names.sort(reverse=True)
    return _Level(identity, path, key, _taken(names))


def _taken(names: list[bytes]) -> Iterator[bytes]:
    """The names from the last to the first, each forgotten when it is given out."""
    while names:
        yield names.pop()


def _is_folder(entry: os.DirEntry[bytes]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _measure(path: bytes) -> int:
    try:
        found = os.stat(path)
    except OSError:
        return UNMEASURED
    return found.st_size if stat.S_ISREG(found.st_mode) else UNMEASURED
