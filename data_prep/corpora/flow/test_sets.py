"""Readers of the test parts of flow benchmarks: frames without ground truth, for submissions."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise

from mcjepa.data_prep.corpora.flow.pairs import PairFiles
from mcjepa.data_prep.corpora.trees import Tree
from mcjepa.data_prep.errors import DataError

SINTEL_FRAME = re.compile(r"test/(?P<pass>[^/]+)/(?P<scene>[^/]+)/(?P<stem>frame_(?P<number>\d+))\.png")
KITTI_FIRST = re.compile(r"testing/[^/]+/(?P<number>\d+)_10\.png")


def sintel_test(tree: Tree, split: str) -> Iterator[PairFiles]:
    """MPI-Sintel's test part: test/{clean,final}/SCENE/frame_0001.png; pairs of neighbours, PASS/SCENE/frame_0001.

    A number that is left out within a scene is an error.
    """
    for rendering in ("clean", "final"):
        found = [m for name in tree.below(f"test/{rendering}") if (m := SINTEL_FRAME.fullmatch(name))]
        for first, second in pairwise(found):
            if first["scene"] != second["scene"]:
                continue
            if int(second["number"]) != int(first["number"]) + 1:
                raise DataError(
                    f"{tree.base}{first[0]} is followed by {second['stem']}; expected the next number; complete the set"
                )
            name = f"{rendering}/{first['scene']}/{first['stem']}"
            yield PairFiles(name, {"frame0": first[0], "frame1": second[0]})


def kitti2012_test(tree: Tree, split: str) -> Iterator[PairFiles]:
    """KITTI 2012's test part: testing/{colored_0|image_0}/000000_10.png and _11.png."""
    return _kitti_test(tree, ("colored_0", "image_0"))


def kitti2015_test(tree: Tree, split: str) -> Iterator[PairFiles]:
    """KITTI 2015's test part: testing/image_2/000000_10.png and _11.png."""
    return _kitti_test(tree, ("image_2",))


def _kitti_test(tree: Tree, folders: tuple[str, ...]) -> Iterator[PairFiles]:
    folder = next((f"testing/{f}" for f in folders if tree.below(f"testing/{f}")), "")
    for name in tree.below(folder) if folder else ():
        if found := KITTI_FIRST.fullmatch(name):
            yield PairFiles(found["number"], {"frame0": name, "frame1": f"{folder}/{found['number']}_11.png"})
