"""Files of one's own, before anything is made of them: how many, how large, and which cannot be read."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from mcjepa.data_prep.corpora.image_files import DAMAGE, open_picture
from mcjepa.data_prep.corpora.inputs import list_images, list_videos
from mcjepa.data_prep.corpora.items import Input
from mcjepa.data_prep.errors import DataError
from mcjepa.pipeline.errors import UsageError

HEADS_READ = 24


@dataclass(frozen=True)
class Material:
    """The files of one kind."""

    folder: Path
    count: int
    sides_px: tuple[int, ...]
    """Short sides of those whose head was read."""
    unreadable: tuple[str, ...]
    """Names of those whose head cannot be read."""

    @property
    def side_px(self) -> int:
        """The usual short side."""
        return int(statistics.median(self.sides_px))


def look_at_videos(folder: str) -> Material:
    """The videos of a folder; see `_look_at`."""
    return _look_at(folder, "videos", list_videos, _video_side, least=1)


def look_at_photos(folder: str, least: int) -> Material:
    """The photos of a folder, of which at least so many can be read; see `_look_at`."""
    return _look_at(folder, "images", list_images, _photo_side, least)


def _look_at(
    folder: str, kind: str, lister: Callable[[str], Iterable[Input]], side: Callable[[str], int], least: int
) -> Material:
    """Counts the files of a folder and reads the heads of some of them, spread over it.

    Args:
        folder: with files in any folders below it.
        kind: `videos` or `images`, the option that names it.
        lister: lists them.
        side: short side of one, px.
        least: readable ones that are needed.

    Raises:
        UsageError: there is no such folder.
        DataError: too few of them, or none that can be read.
    """
    place = Path(folder).expanduser().resolve()
    if not place.is_dir():
        raise UsageError(f"--{kind} {folder}: no such folder, expected one with {kind}; check the path")
    found = [item for item in lister(str(place)) if not item.refusal]
    sides, unreadable = [], []
    for item in found[:: max(len(found) // HEADS_READ, 1)]:
        try:
            sides.append(side(item.uri))
        except DAMAGE as error:
            unreadable.append(f"{item.name} ({' '.join(str(error).split())[:80]})")
    if len(found) - len(unreadable) < least or not sides:
        bad = f", of which cannot be read: {', '.join(unreadable[:3])}" if unreadable else ""
        raise DataError(f"--{kind} {folder} holds {len(found)} {kind}{bad}; expected at least {least}; add some")
    return Material(place, len(found), tuple(sides), tuple(unreadable))


def _video_side(path: str) -> int:
    from mcjepa.data_prep.decode.video.containers import open_container

    with open_container(path) as container:
        stream = container.streams.best("video")
        if stream is None or stream.codec_context is None:
            raise ValueError("no video stream that can be decoded")
        side: int = min(stream.codec_context.width, stream.codec_context.height)
        return side


def _photo_side(path: str) -> int:
    with open(path, "rb") as file, open_picture(file) as image:
        return min(image.size)
