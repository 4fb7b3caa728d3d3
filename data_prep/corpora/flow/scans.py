"""What a flow set has and what it lacks: its pairs for scoring, where a missing file is counted and not fatal.

MPI-Sintel's training part has 23 scenes with 1,041 pairs: frames 1 to N of a scene, ground truth for all but the last
(Butler et al. 2012). KITTI's devkits number the pairs 0 to 193 (2012) and 0 to 199 (2015), and 0 to 194 and 0 to 199
in the test parts. Line n of FlyingChairs_train_val.txt is pair n.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from mcjepa.data_prep.corpora.flow.pairs import REQUIRED, PairFiles, PairLister
from mcjepa.data_prep.corpora.flow.sets import CHAIRS_LIST, CHAIRS_MARKS, SINTEL_FRAMES, SINTEL_SHORT_SCENES
from mcjepa.data_prep.corpora.items import FlowPair
from mcjepa.data_prep.corpora.places import Location
from mcjepa.data_prep.corpora.trees import Tree
from mcjepa.data_prep.errors import DataError


@dataclass(frozen=True, kw_only=True)
class FlowScan:
    """The pairs of a flow set, by the names of its files."""

    pairs: list[FlowPair]
    """Pairs of which every file is there, in the set's order; each has the optional files that any pair has, as means
    over regions would else be of fewer pairs than their card says."""

    missing: dict[str, str] = field(default_factory=dict)
    """Name of a pair that should be there to what of it is not, in the set's order."""

    expected: int | None = None
    """Pairs of the whole set, where that is known."""


def scan_pairs(set_name: str, list_pairs: PairLister, split: str, root: Location, *, subset: bool = False) -> FlowScan:
    """All pairs of a set's split, and those that should be there too.

    Args:
        set_name: name of the set; `EXPECTED_PAIRS` knows the whole list of some.
        list_pairs: the set's reader.
        split: its split.
        root: folder or s3 prefix of the set.
        subset: the folder holds a part of the set on purpose: only listed pairs that are there in part are missing.

    Raises:
        DataError: no pair is whole.
    """
    tree = Tree(root)
    pairs: list[FlowPair] = []
    missing: dict[str, str] = {}
    listed = list(list_pairs(tree, split))
    given = {role for pair in listed for role in pair.files}
    for pair in listed:
        gone = [pair.files[role] for role in REQUIRED if not tree.has(pair.files[role])]
        gone += [file for role, file in pair.absent.items() if role in given]
        if not gone:
            pairs.append(FlowPair(pair.name, **{role: tree.place(name) for role, name in pair.files.items()}))
        elif not (subset and not any(tree.has(pair.files[role]) for role in REQUIRED)):
            missing[pair.name] = f"{gone[0]} is not there"
    known = EXPECTED_PAIRS[set_name](tree) if set_name in EXPECTED_PAIRS and not subset else None
    if known:
        missing = _with_absent(known, pairs, missing)
    if not pairs:
        lacking = next((f"; {name}: {what}" for name, what in missing.items()), "")
        raise DataError(
            f"{tree.root} has no whole pair of the set {set_name}{lacking}; expected pairs; correct the root"
        )
    return FlowScan(pairs=pairs, missing=missing, expected=len(known) if known else None)


def scan_test_pairs(list_pairs: PairLister, root: Location) -> list[FlowPair]:
    """The pairs of a benchmark's test part, which has frames only.

    Raises:
        DataError: there is none, or a frame of one is absent.
    """
    tree = Tree(root)
    pairs = [_without_truth(tree, pair) for pair in list_pairs(tree, "")]
    if not pairs:
        raise DataError(f"{tree.root} has no test frames; expected the benchmark's test part; correct the root")
    return pairs


def _without_truth(tree: Tree, pair: PairFiles) -> FlowPair:
    for name in pair.files.values():
        if not tree.has(name):
            raise DataError(f"{tree.base}{name} is not there; expected the pair {pair.name} whole; complete the set")
    return FlowPair(pair.name, flow=None, **{role: tree.place(name) for role, name in pair.files.items()})


def _with_absent(known: list[str], pairs: list[FlowPair], missing: dict[str, str]) -> dict[str, str]:
    """The missing pairs with those that no file was listed of, in the order of the whole list."""
    there = {pair.name for pair in pairs}
    listed = {name: missing.get(name, "absent: no ground truth, or no frames") for name in known if name not in there}
    return listed | missing


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
