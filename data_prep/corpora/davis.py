"""DAVIS video object segmentation (Perazzi et al. 2016, Pont-Tuset et al. 2017), davischallenge.org.

ROOT/JPEGImages/480p/SEQ/00000.jpg    ROOT is the folder `DAVIS` of the archive
ROOT/Annotations/480p/SEQ/00000.png   palette ids 0.. (2017) or grey 0/255 (2016)
ROOT/ImageSets/2017/val.txt           one sequence a line
"""

from __future__ import annotations

from pathlib import Path

from data_prep.corpora.items import MaskedVideo
from data_prep.corpora.trees import existing_folder
from data_prep.errors import DataError

FRAMES = "JPEGImages/480p"
MASKS = "Annotations/480p"
VALIDATION = "2017/val"


def davis_sequences(root: Path, split: str = "") -> list[str]:
    """Names of the sequences of a list below ImageSets, in its order, or of all folders, sorted.

    Raises:
        DataError: the list or one of its sequences is absent, or there is none at all.
    """
    folder = existing_folder(existing_folder(root) / FRAMES)
    if not split:
        names = sorted(p.name for p in folder.iterdir() if p.is_dir())
    else:
        path = root / "ImageSets" / f"{split}.txt"
        if not path.is_file():
            raise DataError(f"{path} is not there; expected the list of a DAVIS split; correct the split")
        names = path.read_text().split()
    missing = [name for name in names if not (folder / name).is_dir()]
    if missing or not names:
        found = f"{folder} lacks {', '.join(missing)}" if names else f"{folder} has no sequence"
        raise DataError(f"{found}; expected every sequence of split {split!r}; complete the data set")
    return names


def davis_frames(root: Path, sequence: str) -> list[Path]:
    """Frames of a sequence in order.

    Raises:
        DataError: it has none.
    """
    folder = root / FRAMES / sequence
    frames = sorted(folder.glob("*.jpg"))
    if not frames:
        raise DataError(f"{folder} has no .jpg; expected the frames of the sequence; complete the data set")
    return frames


def davis_videos(root: Path) -> list[MaskedVideo]:
    """The validation sequences of DAVIS-2017 with the masks of every frame.

    Raises:
        DataError: a listed sequence, or the mask of one of its frames, is absent.
    """
    videos = []
    for sequence in davis_sequences(root, VALIDATION):
        frames = davis_frames(root, sequence)
        masks = [root / MASKS / sequence / f"{frame.stem}.png" for frame in frames]
        missing = [m for m in masks if not m.is_file()]
        if missing:
            raise DataError(f"{missing[0]} is not there; expected a mask a frame; complete the data set")
        videos.append(MaskedVideo(sequence, tuple(frames), tuple(masks)))
    return videos
