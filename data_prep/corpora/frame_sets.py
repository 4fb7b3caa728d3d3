"""Readers of multi-frame sets as sequences, for training without ground truth: `fn(root, split)`."""

from __future__ import annotations

import re
from collections.abc import Iterator

from mcjepa.data_prep.corpora.inputs import numbered_sequence
from mcjepa.data_prep.corpora.items import Input
from mcjepa.data_prep.corpora.trees import Tree
from mcjepa.data_prep.errors import DataError

PASSES = ("clean", "final")
KITTI_PARTS = ("training", "testing")
NUMBERED_FRAME = re.compile(r"(?P<sequence>\d+)_\d+\.png")


def list_sintel(root: str, split: str = "") -> Iterator[Input]:
    """MPI-Sintel (Butler et al. 2012, sintel.is.tue.mpg.de): ROOT = MPI-Sintel-complete, one input a scene.

    {training,test}/{clean,final}/SCENE/frame_0001.png, 1024x436, 24 Hz. SPLIT: `clean` (also when empty) or
    `final` of the training part, `test/clean`, `test/final`.
    """
    part = split or "clean"
    folder = f"training/{part}" if part in PASSES else part
    return _by_folder(Tree(root), folder, (".png",))


def list_things3d(root: str, split: str = "") -> Iterator[Input]:
    """FlyingThings3D (Mayer et al. 2016, lmb.informatik.uni-freiburg.de): one input a scene and camera.

    frames_{clean,final}pass/{TRAIN,TEST}/{A,B,C}/0000/{left,right}/0006.png, 10 frames each, 960x540; or
    frames_{clean,final}pass_webp/….webp. SPLIT: `clean` (also when empty) or `final` of TRAIN, `clean/TEST`, ….
    """
    rendering, _, part = (split or "clean").partition("/")
    tree = Tree(root)
    folders = [f"frames_{rendering}pass{webp}/{part or 'TRAIN'}" for webp in ("", "_webp")]
    folder = next((f for f in folders if tree.below(f)), folders[0])
    return _by_folder(tree, folder, (".png", ".webp"))


def list_kitti2012_multiview(root: str, split: str = "") -> Iterator[Input]:
    """KITTI 2012 multi-view (Geiger et al. 2012, cvlibs.net/datasets/kitti): one input a number, left camera.

    {training,testing}/{colored_0|image_0}/000000_00.png to _20.png, 10 Hz; frames 10 and 11 are the pair with
    ground truth. SPLIT: `training`, `testing`, empty: both.
    """
    return _by_number(root, split, ("colored_0", "image_0"))


def list_kitti2015_multiview(root: str, split: str = "") -> Iterator[Input]:
    """KITTI 2015 multi-view (Menze and Geiger 2015, cvlibs.net/datasets/kitti): one input a number, left camera.

    {training,testing}/image_2/000000_00.png to _20.png, 10 Hz; frames 10 and 11 are the pair with ground truth.
    SPLIT: `training`, `testing`, empty: both.
    """
    return _by_number(root, split, ("image_2",))


def list_hd1k_sequences(root: str, split: str = "") -> Iterator[Input]:
    """HD1K (Kondermann et al. 2016, hci-benchmark.iwr.uni-heidelberg.de): one input a sequence.

    hd1k_input/image_2/000000_0010.png: number of the sequence, number of the frame; 2560x1080. No splits.
    """
    if split:
        raise DataError(f"HD1K has no split {split!r}; expected none; leave `split` empty")
    yield from _numbered(Tree(root), "hd1k_input/image_2", "")


def _by_folder(tree: Tree, folder: str, suffixes: tuple[str, ...]) -> Iterator[Input]:
    """Every folder below `folder` that holds frames, named by its place below it."""
    groups: dict[str, dict[str, int]] = {}
    for name in tree.below(folder):
        place, _, file = name.removeprefix(f"{folder}/").rpartition("/")
        if place and file.endswith(suffixes):
            groups.setdefault(place, {})[file] = tree.bytes_of(name)
    if not groups:
        raise DataError(f"{tree.base}{folder} has no frames; expected sequences of them; correct root or split")
    for place, frames in groups.items():
        yield numbered_sequence(place, f"{tree.base}{folder}/{place}", frames)


def _by_number(root: str, split: str, folders: tuple[str, ...]) -> Iterator[Input]:
    """KITTI's sequences of one split, or of all that are there."""
    tree = Tree(root)
    parts = (split,) if split else KITTI_PARTS
    images = {part: next((f"{part}/{f}" for f in folders if tree.below(f"{part}/{f}")), "") for part in parts}
    if not any(images.values()):
        raise DataError(f"{tree.base}{parts[0]} has no {' or '.join(folders)}; expected KITTI's images; correct it")
    for part, folder in images.items():
        if folder:
            yield from _numbered(tree, folder, f"{part}/")


def _numbered(tree: Tree, folder: str, prefix: str) -> Iterator[Input]:
    """Frames SEQUENCE_FRAME.png of one folder, grouped by the number of their sequence."""
    groups: dict[str, dict[str, int]] = {}
    for name in tree.below(folder):
        file = name.removeprefix(f"{folder}/")
        if found := NUMBERED_FRAME.fullmatch(file):
            groups.setdefault(found["sequence"], {})[file] = tree.bytes_of(name)
    if not groups:
        raise DataError(f"{tree.base}{folder} has no frames NUMBER_NUMBER.png; expected them; correct the root")
    for sequence, frames in groups.items():
        yield numbered_sequence(f"{prefix}{sequence}", tree.base + folder, frames)
