"""The held-out part of a moving-photos folder as a segmentation set and as masked videos."""

from __future__ import annotations

from pathlib import Path

from mcjepa.data_prep.corpora.items import LabelledImage, MaskedVideo
from mcjepa.data_prep.corpora.moving_photos.index import read_index
from mcjepa.data_prep.corpora.trees import existing_folder
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
        raise DataError(f"{root} has too few held-out sequences for split {split}; expected 3; generate more")
    return items


def moving_photos_classes(root: Path) -> tuple[str, ...]:
    """Names of the classes: the held-out photos."""
    return read_index(root).heldout_photos


def moving_photos_videos(root: Path) -> list[MaskedVideo]:
    """Held-out sequences that show an object in their first frame, with the masks of every frame."""
    videos = []
    for folder in _sequences(root):
        frames, masks = sorted(folder.glob("frame_*.png")), sorted(folder.glob("objects_*.png"))
        video = MaskedVideo(folder.name, tuple(frames), tuple(masks))
        if video.read_mask(0).any():
            videos.append(video)
    if not videos:
        raise DataError(f"{root} has no held-out sequence with objects; expected one; generate more")
    return videos


def _sequences(root: Path) -> list[Path]:
    folder = existing_folder(existing_folder(root) / "heldout")
    return sorted(p for p in folder.iterdir() if p.is_dir())
