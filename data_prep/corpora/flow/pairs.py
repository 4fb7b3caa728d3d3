"""From the names of a flow set's files to pairs with ground truth and to inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from mcjepa.data_prep.corpora.items import FlowPair, Input
from mcjepa.data_prep.corpora.places import Location
from mcjepa.data_prep.corpora.trees import Tree
from mcjepa.data_prep.errors import DataError

REQUIRED = ("frame0", "frame1", "flow")


@dataclass(frozen=True)
class PairFiles:
    """The files of one pair, by their names below the root of its set."""

    name: str
    files: dict[str, str]
    """Field of FlowPair to name; optional files that are absent are left out."""
    absent: dict[str, str] = field(default_factory=dict)
    """The same of its optional files that are not there."""


PairLister = Callable[[Tree, str], Iterator[PairFiles]]
"""`fn(tree, split)`: the pairs of a split in a fixed order."""


def read_pairs(list_pairs: PairLister, split: str, root: Location) -> list[FlowPair]:
    """All pairs of a set's split.

    Raises:
        DataError: there is none, or a file of one is absent.
    """
    tree = Tree(root)
    pairs = _complete(tree, split, list_pairs(tree, split))
    return [FlowPair(p.name, **{role: tree.place(name) for role, name in p.files.items()}) for p in pairs]


def list_pairs_as_inputs(list_pairs: PairLister, default_split: str, root: str, split: str = "") -> Iterator[Input]:
    """All pairs of a set's split as inputs of kind `pair`.

    Raises:
        DataError: there is none, or a file of one is absent.
    """
    tree = Tree(root)
    part = split or default_split
    for pair in _complete(tree, part, list_pairs(tree, part)):
        sizes = [tree.bytes_of(name) for name in pair.files.values()]
        members, roles = tuple(pair.files.values()), tuple(pair.files)
        yield Input(pair.name, tree.root, "pair", members, roles, bytes=sum(sizes))


def pair_files(tree: Tree, name: str, frame0: str, frame1: str, flow: str, **optional: str) -> PairFiles:
    """A pair; of its optional files those that are there."""
    there = {role: file for role, file in optional.items() if tree.has(file)}
    absent = {role: file for role, file in optional.items() if role not in there}
    return PairFiles(name, {"frame0": frame0, "frame1": frame1, "flow": flow, **there}, absent)


def refuse_split(name: str, split: str) -> None:
    """Refuse a split of a set that has none."""
    if split:
        raise DataError(f"{name} has no split {split!r}; expected none; leave `split` empty")


def _complete(tree: Tree, split: str, pairs: Iterator[PairFiles]) -> Iterator[PairFiles]:
    """The pairs themselves; no pair at all, or an absent file, is an error."""
    found = False
    for pair in pairs:
        absent = next((pair.files[role] for role in REQUIRED if not tree.has(pair.files[role])), None)
        if absent:
            raise DataError(f"{tree.base}{absent} is not there; expected the pair {pair.name} whole; complete the set")
        found = True
        yield pair
    if not found:
        part = f" in split {split!r}" if split else ""
        raise DataError(f"{tree.root} has no pair with ground truth{part}; expected at least one; correct the root")
