"""What a flow set has and what it lacks: its pairs for scoring, where a missing file is counted and not fatal."""

from __future__ import annotations

from dataclasses import dataclass, field

from mcjepa.data_prep.corpora.flow.expected import EXPECTED_PAIRS
from mcjepa.data_prep.corpora.flow.pairs import REQUIRED, PairFiles, PairLister
from mcjepa.data_prep.corpora.items import FlowPair
from mcjepa.data_prep.corpora.places import Location
from mcjepa.data_prep.corpora.trees import Tree
from mcjepa.data_prep.errors import DataError


@dataclass(frozen=True, kw_only=True)
class FlowScan:
    """The pairs of a flow set, by the names of its files."""

    pairs: list[FlowPair]
    """Pairs of which every file is there, in the set's order."""

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
    for pair in list_pairs(tree, split):
        gone = [pair.files[role] for role in REQUIRED if not tree.has(pair.files[role])]
        if not gone:
            pairs.append(FlowPair(pair.name, **{role: tree.place(name) for role, name in pair.files.items()}))
        elif not (subset and len(gone) == len(REQUIRED)):
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
