"""The description of a generated moving-photos folder: ROOT/moving_photos.json."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from mcjepa.data_prep.errors import DataError

VERSION = 1
INDEX_NAME = "moving_photos.json"


@dataclass(frozen=True)
class MovingPhotosIndex:
    """What a generated folder is made of: the content of its moving_photos.json."""

    version: int
    config_digest: str
    settings: dict[str, object]
    train_photos: tuple[str, ...]
    heldout_photos: tuple[str, ...]
    photo_sha256: dict[str, str]
    skipped: tuple[tuple[str, str], ...] = ()
    """Photos that could not be read, with reasons."""


def read_index(root: Path) -> MovingPhotosIndex:
    """Read ROOT/moving_photos.json.

    Raises:
        DataError: it is absent or of another version.
    """
    path = root / INDEX_NAME
    if not path.is_file():
        raise DataError(f"{root} has no {INDEX_NAME}; expected a moving-photos folder; generate it first")
    content = json.loads(path.read_text())
    if content.get("version") != VERSION:
        raise DataError(f"{path} is version {content.get('version')}; expected {VERSION}; remove {root}, rerun")
    for name in ("train_photos", "heldout_photos", "skipped"):
        content[name] = tuple(tuple(v) if isinstance(v, list) else v for v in content[name])
    return MovingPhotosIndex(**content)
