"""What the folders of an evaluation's sets looked like: a digest of listings, for knowing whether data has changed."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from mcjepa.data_prep.corpora.flow.places import MARKS, find_set_folder
from mcjepa.data_prep.errors import DataError
from mcjepa.evals.settings import EvalConfig


def data_state(config: EvalConfig) -> str:
    """sha256 over names, lengths and times of change of all files in the sets' folders; none of them is read.

    Links to folders are followed, hidden files left out. Empty where a set's folder is not there.
    """
    digest = hashlib.sha256()
    for folder in _folders(config):
        if not folder.is_dir():
            return ""
        for line in sorted(_listed(folder, "", frozenset())):
            digest.update(line.encode("utf-8", "surrogateescape"))
        digest.update(b"\0")
    return digest.hexdigest()


def _folders(config: EvalConfig) -> Iterator[Path]:
    for name, place in (config.flow.sets if config.flow else {}).items():
        folder = Path(place, "absent")
        if name in MARKS:  # what is not, is refused where it is scored
            with contextlib.suppress(DataError):
                folder = find_set_folder(place, name)
        yield folder
    for one in (config.probe, config.vos, config.finetune, config.classify):
        if one:
            yield Path(one.root or "absent")


def _listed(folder: Path, name: str, above: frozenset[tuple[int, int]]) -> Iterator[str]:
    """A line a file below `folder / name`; a folder that lies in itself by a link is not entered again."""
    place = folder / name
    try:
        own = os.stat(place)
        here = above | {(own.st_dev, own.st_ino)}
        entries = list(os.scandir(place)) if len(here) > len(above) else []
    except OSError:
        return
    for entry in entries:
        if entry.name.startswith("."):
            continue
        below = f"{name}/{entry.name}".lstrip("/")
        try:
            if entry.is_dir():
                yield from _listed(folder, below, here)
            else:
                facts = entry.stat()
                yield f"{below}\0{facts.st_size}\0{facts.st_mtime_ns}\n"
        except OSError:
            yield f"{below}\0unreadable\n"
