"""Which inputs of a dataset repeat an earlier one: equal bytes, or frames that look alike.

Inputs are taken in the plan's order, and the first stays. `exact`: the content's sha256 is that of an earlier input.
`near`: at least half of an input's hashed samples are within `max_bits` of samples of ONE earlier input that is no
duplicate itself. Repetitions of a corpus (`0-videos@1/x.mp4` of `0-videos/x.mp4`) share the fate of the first.

A look that 32 kept inputs share says nothing of the next ones (the same title in ten thousand videos): they are not
entered under it, or the work would grow with the square of their number.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
import numpy.typing as npt

from mcjepa.data_prep.filters.hash_index import HashIndex, Hits, OwnerArray, change_points, compare_all, join_hits
from mcjepa.data_prep.filters.phash import ByteArray, HashArray

IntArray = npt.NDArray[np.int64]

REPETITION = re.compile(r"^(\d+-[^/@]*)@\d+/")
BLOCK_HASHES = 1024
COMMON_LOOK = 32


@dataclass(frozen=True)
class Duplicate:
    """Why an input is a duplicate."""

    of: str
    """Name of the earlier input."""
    kind: Literal["exact", "near"]
    distance: int
    """Bits within which every matching sample has one of the earlier input; 0 for exact ones."""


def resolve_duplicates(inputs: Iterable[tuple[str, str, Sequence[int | None]]], max_bits: int) -> dict[str, Duplicate]:
    """Decide for every input whether it repeats an earlier one.

    Args:
        inputs: Name, sha256 (hex; empty: unknown) and the hashes of the samples' first frames (None: flat), in the
            plan's order.
        max_bits: Greatest distance of hashes that are alike; -1: only equal bytes count.

    Returns:
        Names of the duplicates, in the plan's order.

    >>> found = resolve_duplicates([("a", "01", [7]), ("b", "02", [15]), ("c", "01", [7])], max_bits=2)
    >>> found["b"], found["c"]
    (Duplicate(of='a', kind='near', distance=1), Duplicate(of='a', kind='exact', distance=0))
    """
    resolver = _Resolver(max_bits)
    return {name: found for block in _blocks(inputs) for name, found in resolver.take(block)}


@dataclass(frozen=True)
class _Input:
    """An input with the different hashes of its samples."""

    name: str
    content: bytes
    hashes: HashArray
    weights: IntArray
    """How many samples have each hash."""


def _blocks(inputs: Iterable[tuple[str, str, Sequence[int | None]]]) -> Iterator[list[_Input]]:
    """Consecutive inputs with about BLOCK_HASHES hashes together; one with more is a block of its own."""
    block: list[_Input] = []
    size = 0
    for name, content, samples in inputs:
        known = np.array([h for h in samples if h is not None], np.uint64)
        hashes, weights = np.unique(known, return_counts=True) if len(known) != 1 else (known, np.ones(1, np.int64))
        if block and size + len(hashes) + 1 > BLOCK_HASHES:
            yield block
            block, size = [], 0
        block.append(_Input(name, bytes.fromhex(content), hashes, weights))
        size += len(hashes) + 1
    if block:
        yield block


class _Resolver:
    """What is known of all inputs so far."""

    def __init__(self, max_bits: int) -> None:
        self._max_bits = max_bits
        self._names: list[str] = []
        self._first_named: dict[str, int] = {}
        self._first_content: dict[bytes, int] = {}
        self._found: dict[int, Duplicate] = {}
        self._kept = HashIndex(max(0, max_bits))

    def take(self, block: list[_Input]) -> Iterator[tuple[str, Duplicate]]:
        """Decide about the next inputs."""
        start = len(self._names)
        newcomers = [(start + place, item) for place, item in enumerate(block) if not self._settle(start + place, item)]
        if self._max_bits >= 0:
            self._find_near([(number, item) for number, item in newcomers if len(item.hashes)])
        for item in block:
            found = self._found.get(self._first_named[_original_name(item.name)])
            if found:
                yield item.name, found

    def _settle(self, number: int, item: _Input) -> bool:
        """Whether names and digests alone tell what an input is: a repetition, or an exact duplicate."""
        self._names.append(item.name)
        if self._first_named.setdefault(_original_name(item.name), number) != number:
            return True
        same = self._first_content.setdefault(item.content, number) if item.content else number
        if same != number:
            self._found[number] = Duplicate(self._names[same], "exact", 0)
        return same != number

    def _find_near(self, newcomers: list[tuple[int, _Input]]) -> None:
        """Compare with the inputs kept before, then what is left with each other; enter those that stay."""
        group = _Group(newcomers)
        hits = self._kept.search(group.hashes).distinct()
        self._decide(group, hits)
        fresh = _Group([(number, item) for number, item in newcomers if number not in self._found])
        alike = join_hits(compare_all(fresh.hashes, fresh.hashes, fresh.owners, self._max_bits))
        self._decide(fresh, alike.chosen(alike.owner < fresh.owners[alike.query]).distinct())
        entered = np.bincount(hits.query, minlength=len(group.hashes)) < COMMON_LOOK
        stays = entered & np.array([owner not in self._found for owner in group.owners.tolist()], np.bool_)
        self._kept.add(group.hashes[stays], group.owners[stays])

    def _decide(self, group: _Group, hits: Hits) -> None:
        """An input is a duplicate of the first of those it is alike with that is none itself."""
        for number, others, distances in group.evidence(hits):
            for other, distance in zip(others, distances, strict=True):
                if int(other) not in self._found:
                    self._found[number] = Duplicate(self._names[other], "near", int(distance))
                    break


class _Group:
    """Hashes of several inputs side by side."""

    def __init__(self, inputs: list[tuple[int, _Input]]) -> None:
        sizes = [len(item.hashes) for _, item in inputs]
        self.hashes = np.concatenate([np.empty(0, np.uint64), *(item.hashes for _, item in inputs)])
        self.owners: OwnerArray = np.repeat(np.array([number for number, _ in inputs], np.int32), sizes)
        self._weights = np.concatenate([np.empty(0, np.int64), *(item.weights for _, item in inputs)])
        self._totals = np.repeat(np.array([item.weights.sum() for _, item in inputs], np.int64), sizes)

    def evidence(self, hits: Hits) -> Iterator[tuple[int, OwnerArray, ByteArray]]:
        """Inputs of which at least half is alike with one other, in order.

        Args:
            hits: Of this group's hashes, each pair once.

        Yields:
            An input's number, those of the others in order, and the distances.
        """
        order = np.lexsort((hits.owner, self.owners[hits.query]))
        query, other = hits.query[order], hits.owner[order]
        mine = self.owners[query]
        starts = change_points(mine, other)
        if not len(starts):
            return
        enough = 2 * np.add.reduceat(self._weights[query], starts) >= self._totals[query[starts]]
        distances = np.maximum.reduceat(hits.distance[order], starts)[enough]
        mine, other = mine[starts[enough]], other[starts[enough]]
        for start, stop in pairwise([*change_points(mine), len(mine)]):
            yield int(mine[start]), other[start:stop], distances[start:stop]


def _original_name(name: str) -> str:
    """An input's name without the number of its repetition.

    >>> _original_name("0-videos@1/x.mp4")
    '0-videos/x.mp4'
    """
    return REPETITION.sub(r"\1/", name) if "@" in name else name
