"""Finding the files of a corpus: recursive, sorted, streamed, with an error that says what is missing."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from data_prep.errors import DataError

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".ppm", ".pgm", ".bmp", ".webp", ".tif", ".tiff"})
VIDEO_SUFFIXES = frozenset({".mp4", ".mkv", ".avi", ".mov", ".webm", ".m4v", ".mpg", ".mpeg", ".ts", ".wmv"})


def existing_folder(root: str | Path) -> Path:
    """The folder `root`, checked.

    Raises:
        DataError: it is absent, or not a folder.
    """
    folder = Path(root).expanduser()
    if not folder.exists():
        raise DataError(f"{folder} does not exist; expected a folder of input files; correct the path")
    if not folder.is_dir():
        raise DataError(f"{folder} is a file; expected a folder of input files; name its folder")
    return folder


def files_below(root: str | Path, suffixes: frozenset[str]) -> Iterator[str]:
    """Paths relative to `root` of all files with one of `suffixes` (any case), hidden ones left out.

    In each folder its files come first, then its folders, both sorted; memory holds one folder's entries,
    never the whole tree.

    Raises:
        DataError: the folder is absent, unreadable, or has no such file.
    """
    folder = existing_folder(root)
    found = False
    for name in _walk(folder, ""):
        if os.path.splitext(name)[1].lower() in suffixes:
            found = True
            yield name
    if not found:
        kinds = ", ".join(sorted(suffixes))
        raise DataError(f"{folder} has no file ending in {kinds}; expected at least one; name another folder")


def _walk(folder: Path, prefix: str) -> Iterator[str]:
    try:
        with os.scandir(folder) as entries:
            listing = sorted((e.is_dir(), e.name) for e in entries if not e.name.startswith("."))
    except PermissionError as error:
        raise DataError(f"{folder} cannot be read; expected a readable folder; change its mode") from error
    for is_folder, name in listing:
        if is_folder:
            yield from _walk(folder / name, f"{prefix}{name}/")
        else:
            yield prefix + name
