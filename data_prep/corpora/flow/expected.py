"""Which pairs a whole flow set has, where the set or its benchmark says so.

MPI-Sintel's training part has 23 scenes with 1,041 pairs: frames 1 to N of a scene, ground truth for all but the last
(Butler et al. 2012). KITTI's devkits number the pairs 0 to 193 (2012) and 0 to 199 (2015), and 0 to 194 and 0 to 199
in the test parts. Line n of FlyingChairs_train_val.txt is pair n.
"""

from __future__ import annotations

from collections.abc import Callable

from mcjepa.data_prep.corpora.flow.sets import CHAIRS_LIST, CHAIRS_MARKS
from mcjepa.data_prep.corpora.trees import Tree

SINTEL_FRAMES = 50
SINTEL_SHORT_SCENES = {"ambush_2": 21, "ambush_4": 33, "ambush_6": 20, "market_6": 40}
SINTEL_SCENES = (
    *("alley_1", "alley_2", "ambush_2", "ambush_4", "ambush_5", "ambush_6", "ambush_7", "bamboo_1", "bamboo_2"),
    *("bandage_1", "bandage_2", "cave_2", "cave_4", "market_2", "market_5", "market_6", "mountain_1", "shaman_2"),
    *("shaman_3", "sleeping_1", "sleeping_2", "temple_2", "temple_3"),
)
SINTEL_TEST_SCENES = (
    *("PERTURBED_market_3", "PERTURBED_shaman_1", "ambush_1", "ambush_3", "bamboo_3", "cave_3", "market_1"),
    *("market_4", "mountain_2", "temple_1", "tiger", "wall"),
)
"""In the order of their bytes; from the README of the benchmark's bundler."""

KITTI_TRAINING = {"kitti2012": 194, "kitti2015": 200}

TEST_PAIRS = {"sintel-test": 2 * 552, "kitti2012-test": 195, "kitti2015-test": 200}
"""Pairs of the test parts; Sintel's 552 in each of the two passes."""


def sintel_pairs(tree: Tree) -> list[str]:
    """Names of all 1,041 training pairs.

    >>> len(sintel_pairs(None)), sintel_pairs(None)[0]
    (1041, 'alley_1/frame_0001')
    """
    lengths = {scene: SINTEL_SHORT_SCENES.get(scene, SINTEL_FRAMES) for scene in SINTEL_SCENES}
    return [f"{scene}/frame_{number:04d}" for scene, frames in lengths.items() for number in range(1, frames)]


def chairs_pairs(split: str, tree: Tree) -> list[str]:
    """Names of the pairs that the set's own list has; none where there is no list."""
    if not tree.has(CHAIRS_LIST):
        return []
    wanted = CHAIRS_MARKS.values() if not split else (CHAIRS_MARKS[split],)
    marks = tree.read_text(CHAIRS_LIST).split()
    return [f"{number:05d}" for number, mark in enumerate(marks, 1) if mark in wanted]


def _kitti_pairs(set_name: str, tree: Tree) -> list[str]:
    return [f"{number:06d}" for number in range(KITTI_TRAINING[set_name])]


EXPECTED_PAIRS: dict[str, Callable[[Tree], list[str]]] = {
    "sintel-clean": sintel_pairs,
    "sintel-final": sintel_pairs,
    "kitti2012": lambda tree: _kitti_pairs("kitti2012", tree),
    "kitti2015": lambda tree: _kitti_pairs("kitti2015", tree),
    "chairs": lambda tree: chairs_pairs("", tree),
    "chairs-train": lambda tree: chairs_pairs("train", tree),
    "chairs-val": lambda tree: chairs_pairs("val", tree),
}
"""Set name to the names of its pairs, in its order; of other sets the list is not known."""
