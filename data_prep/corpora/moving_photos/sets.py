"""The held-out part of a moving-photos folder as a segmentation set and as masked videos."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from mcjepa.data_prep.corpora.items import LabelledImage, MaskedVideo
from mcjepa.data_prep.corpora.trees import existing_folder, require_partners
from mcjepa.data_prep.errors import DataError


def moving_photos_images(root: Path, split: str) -> list[LabelledImage]:
    """First and last frame of each held-out sequence, labelled with the photo each pixel was cut from.

    Every third sequence is `val`, the others `train`: both parts show the same photos, cut differently.

    Raises:
        DataError: another split, or no sequence in it.
    """
    if split not in ("train", "val"):
        raise DataError(f"moving-photos has no split {split!r}; expected `train` or `val`; correct it")
    items = []
    for number, folder in enumerate(_sequences(root)):
        if (number % 3 == 2) != (split == "val"):
            continue
        frames = sorted(folder.glob("frame_*.png"))
        for frame in (frames[0], frames[-1]):
            labels = frame.with_name(frame.name.replace("frame", "classes"))
            items.append(LabelledImage(f"{folder.name}/{frame.stem}", frame, labels))
    if not items:
        count = len(list(_sequences(root)))
        raise DataError(f"{root} has {count} held-out sequences, none for split {split}; expected 3; generate more")
    return items


def moving_photos_classes(root: Path) -> tuple[str, ...]:
    """Names of the classes: the held-out photos."""
    return read_index(root).heldout_photos


def moving_photos_videos(root: Path) -> list[MaskedVideo]:
    """Held-out sequences that show an object in their first frame, with the masks of every frame.

    Raises:
        DataError: there is none, or the frame of a mask is absent.
    """
    videos = []
    for folder in _sequences(root):
        frames = sorted(folder.glob("frame_*.png"))
        masks = [frame.with_name(frame.name.replace("frame", "objects")) for frame in frames]
        require_partners(map(str, sorted(folder.glob("objects_*.png"))), set(map(str, masks)), "", "frame")
        video = MaskedVideo(folder.name, tuple(frames), tuple(masks))
        if video.read_mask(0).any():
            videos.append(video)
    if not videos:
        raise DataError(f"{root} has no held-out sequence with objects; expected one; generate more")
    return videos


def _sequences(root: Path) -> list[Path]:
    folder = existing_folder(existing_folder(root) / "heldout")
    return sorted(p for p in folder.iterdir() if p.is_dir())


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
