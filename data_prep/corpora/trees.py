"""Trees of files in folders and below s3 prefixes: the same names in the same order from both.

Names are sorted by the bytes of the whole name (a folder sorts as its name and '/'), as S3 sorts its keys.
Hidden names are left out. Links to folders are followed; one that leads to a folder it lies in is listed, with
the reason why it is not entered, as are other things that cannot be read.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from mcjepa.data_prep.corpora.census import Reading, describe_others
from mcjepa.data_prep.corpora.places import Location, is_local, plain_location
from mcjepa.data_prep.errors import DataError
from mcjepa.data_prep.storage import EVERYTHING, open_store

IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".ppm", ".pgm", ".bmp", ".webp", ".tif", ".tiff", ".gif"}
    | {".avif", ".jp2", ".j2k", ".heic", ".heif", ".hif"}
)
VIDEO_SUFFIXES = frozenset(
    {".mp4", ".mkv", ".avi", ".mov", ".webm", ".m4v", ".mpg", ".mpeg", ".ts", ".wmv", ".3gp", ".3g2", ".mts", ".m2ts"}
    | {".flv", ".f4v", ".ogv", ".mxf", ".qt", ".vob", ".asf", ".m2v", ".dv"}
)
PACKERS = (".gz", ".bz2", ".xz", ".zst", ".lz4")


class FoundFile(NamedTuple):
    """A file of a tree that is meant to be an input."""

    name: str
    bytes: int
    """Length; -1 where it cannot be measured."""
    refusal: str
    """Why it cannot be read; empty where it can."""


class Tree:
    """What lies below a folder or an s3 prefix, by its listings: no file is examined one by one."""

    def __init__(self, root: Location) -> None:
        """Look at `root`.

        Raises:
            DataError: a folder that is absent.
        """
        self.root = str(existing_folder(root)) if is_local(plain_location(root)) else plain_location(root)
        self.base = self.root if self.root.endswith("/") else f"{self.root}/"
        """What stands in front of a name to make a location."""
        self._store = open_store(self.root)
        self._listed: dict[str, dict[str, int]] = {}

    def media(self, suffixes: frozenset[str], reading: Reading | None = None) -> Iterator[FoundFile]:
        """All files with one of `suffixes` (any case), and what could hide such files but cannot be entered.

        Streamed: memory holds one folder's names, or one page of an s3 listing. What is passed over is counted.

        Args:
            suffixes: Those of the wanted kind.
            reading: Which names are wanted, and who counts.

        Raises:
            DataError: there is none, or the folder cannot be read.
        """
        reading = reading or Reading()
        found = False
        for name, size in self._store.files(span=reading.span):
            reading.census.entries += 1
            suffix = suffix_of(name)
            if suffix not in suffixes and (size >= 0 or not _hides_files(self.base + name)):
                reading.census.leave(suffix)
                continue
            if suffix in suffixes and not reading.wants(name):
                reading.census.leave(suffix, "not among members")
                continue
            found = True
            yield FoundFile(name, size, "" if size >= 0 else refusal_of(self.base + name))
        if not found and reading.span == EVERYTHING:
            kinds = ", ".join(sorted(suffixes))
            there = describe_others(reading.census.record())
            raise DataError(
                f"{self.root} has no file ending in {kinds}{f' (it has {there})' if there else ''}; "
                "expected at least one; name another folder, or other `members`"
            )

    def keep(self, *folders: str) -> None:
        """List the folders (`a/b`) once, for all that is asked of their files from now on."""
        for folder in folders:
            if folder not in self._listed:
                entries = self._store.files(f"{folder}/" if folder else "")
                self._listed[folder] = {entry.key: entry.bytes for entry in entries}

    def below(self, folder: str) -> list[str]:
        """Names of all files below a folder, sorted by their bytes, with those that cannot be read.

        The folder is listed once and kept.
        """
        self.keep(folder)
        return list(self._listed[folder])

    def bytes_of(self, name: str) -> int:
        """Length of a file; -1 when it is not there or cannot be read."""
        parent = name
        while parent:
            parent = parent.rpartition("/")[0]
            if parent in self._listed:
                return self._listed[parent].get(name, -1)
        return self._store.size(name) if self._store.exists(name) else -1

    def has(self, name: str) -> bool:
        """Whether there is such a file that can be read."""
        return self.bytes_of(name) >= 0

    def read_text(self, name: str) -> str:
        """A whole text file, e.g. the list of a split.

        Raises:
            DataError: it is absent or no text.
        """
        if not self.has(name):
            raise DataError(f"{self.base}{name} is not there; expected it in the data set; correct root or split")
        try:
            return self._store.read(name).decode()
        except UnicodeDecodeError as error:
            raise DataError(f"{self.base}{name} is no text ({error}); expected UTF-8; replace it") from error

    def place(self, name: str) -> Location:
        """The location of a file: a Path in a folder, a string below an s3 prefix."""
        return Path(self.base + name) if is_local(self.base) else self.base + name


def require_partners(there: Iterable[str], known: Collection[str], base: str, partner: str) -> None:
    """Refuses masks and labels whose frame or image is not there: without it the set would be smaller by one, unsaid.

    Args:
        there: names of those that are there.
        known: names of those that belong to a frame or image.
        base: what stands in front of a name to make a location.
        partner: what they lack, such as `frame`.

    Raises:
        DataError: naming the first one.
    """
    odd = [name for name in there if name not in known]
    if odd:
        more = f" (and {len(odd) - 1} more)" if len(odd) > 1 else ""
        raise DataError(
            f"{base}{odd[0]}{more} is there without its {partner}; expected both or neither; complete the data set"
        )


def existing_folder(root: Location) -> Path:
    """The folder `root`, checked.

    Raises:
        DataError: it is absent, or not a folder.
    """
    folder = Path(plain_location(root))
    if not folder.exists():
        raise DataError(f"{folder} does not exist; expected a folder of input files; correct the path")
    if not folder.is_dir():
        raise DataError(f"{folder} is a file; expected a folder of input files; name its folder")
    return folder


def part_of(root: Location, part: str) -> str:
    """The location of the part of a corpus that lies in its folder `part`; the corpus itself when that is empty."""
    return f"{plain_location(root)}/{part}" if part else plain_location(root)


def files_below(root: Location, suffixes: frozenset[str]) -> Iterator[str]:
    """Names of all files below `root` with one of `suffixes`.

    Raises:
        DataError: the folder is absent, or has no such file.
    """
    yield from (found.name for found in Tree(root).media(suffixes) if suffix_of(found.name) in suffixes)


def suffix_of(name: str) -> str:
    """The last suffix of a name in small letters, with its dot; empty where there is none. A packed tar has two.

    >>> suffix_of("a.b/c.JPG"), suffix_of("a.b/c"), suffix_of("c.tar.gz")
    ('.jpg', '', '.tar.gz')
    """
    stem, dot, ending = name.rpartition(".")
    suffix = f".{ending.lower()}" if dot and "/" not in ending else ""
    return f".tar{suffix}" if suffix in PACKERS and stem.lower().endswith(".tar") else suffix


def _hides_files(path: str) -> bool:
    """Whether a whole folder may be meant: one that was not entered, or a link without suffix that leads nowhere."""
    return os.path.isdir(path) or (not suffix_of(path) and os.path.islink(path) and not os.path.exists(path))


def refusal_of(path: str) -> str:
    """Why a file that could not be measured cannot be read; empty when it has become a plain file meanwhile."""
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        return f"cannot be examined ({error.strerror})"
    if stat.S_ISDIR(mode):
        readable = os.access(path, os.R_OK | os.X_OK)
        return "a link to a folder that it lies in" if readable else "a folder that may not be read"
    return "" if stat.S_ISREG(mode) else "neither a file nor a folder"
