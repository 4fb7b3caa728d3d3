"""Finds, among many 64-bit hashes that grow in number, those that differ from given ones in few bits.

Hashes that differ in at most k bits agree in one of k + 1 bands of their bits. A segment holds hashes sorted by each
band; segments are merged as they grow, so there are few of them. The newest hashes wait unsorted and are compared
one by one. Memory: about 12 bytes a hash and 4 a band.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt

from mcjepa.data_prep.filters.phash import HashArray, bit_distances

IndexArray = npt.NDArray[np.int64]
OwnerArray = npt.NDArray[np.int32]

HASH_BITS = 64
KEY_BITS = 16
WAITING = 8192
"""Unsorted hashes at most."""
PAIRS_AT_ONCE = 1 << 21


@dataclass(frozen=True)
class Hits:
    """Pairs of a query and an owner whose hashes are alike; a pair may come more than once."""

    query: IndexArray
    """Position in the array of queries."""
    owner: OwnerArray
    distance: npt.NDArray[np.uint8]

    def chosen(self, some: npt.NDArray[Any]) -> Hits:
        """The hits at these positions, or where this mask is true."""
        return Hits(self.query[some], self.owner[some], self.distance[some])

    def distinct(self) -> Hits:
        """Every pair once, with its least distance, in order of queries and owners."""
        ordered = self.chosen(np.lexsort((self.distance, self.owner, self.query)))
        return ordered.chosen(change_points(ordered.query, ordered.owner))


def change_points(*columns: npt.NDArray[Any]) -> IndexArray:
    """Where a row differs from the one before, in any column; the first row always does.

    >>> change_points(np.array([3, 3, 5, 5]), np.array([1, 1, 1, 2])).tolist()
    [0, 2, 3]
    """
    changed = np.ones(len(columns[0]), np.bool_)
    if len(changed):
        changed[1:] = np.any([column[1:] != column[:-1] for column in columns], axis=0)
    return np.flatnonzero(changed)


def join_hits(parts: Iterable[Hits]) -> Hits:
    """All hits of several searches."""
    some = [Hits(np.empty(0, np.int64), np.empty(0, np.int32), np.empty(0, np.uint8)), *parts]
    return Hits(*(np.concatenate([getattr(hits, name) for hits in some]) for name in ("query", "owner", "distance")))


class HashIndex:
    """Hashes and their owners' numbers."""

    def __init__(self, max_bits: int) -> None:
        """Start empty; `search` will find hashes within `max_bits`."""
        self._max_bits = max_bits
        self._segments: list[_Segment] = []
        self._hashes: HashArray = np.empty(0, np.uint64)
        self._owners: OwnerArray = np.empty(0, np.int32)

    def add(self, hashes: HashArray, owners: OwnerArray) -> None:
        """Take in hashes, one owner each."""
        self._hashes = np.concatenate([self._hashes, hashes])
        self._owners = np.concatenate([self._owners, owners])
        if len(self._hashes) < WAITING:
            return
        while self._segments and len(self._segments[-1].hashes) <= len(self._hashes):
            last = self._segments.pop()
            self._hashes = np.concatenate([last.hashes, self._hashes])
            self._owners = np.concatenate([last.owners, self._owners])
        self._segments.append(_Segment(self._hashes, self._owners, self._max_bits))
        self._hashes, self._owners = self._hashes[:0], self._owners[:0]

    def search(self, queries: HashArray) -> Hits:
        """All owners of hashes that are alike."""
        sorted_ones = chain.from_iterable(segment.search(queries) for segment in self._segments)
        return join_hits(chain(sorted_ones, compare_all(queries, self._hashes, self._owners, self._max_bits)))


def compare_all(queries: HashArray, hashes: HashArray, owners: OwnerArray, max_bits: int) -> Iterator[Hits]:
    """Hits of every query with every hash, some queries at a time."""
    rows = max(1, PAIRS_AT_ONCE // max(1, len(hashes)))
    for start in range(0, len(queries) if len(hashes) else 0, rows):
        distances = bit_distances(queries[start : start + rows, None], hashes).ravel()
        alike = np.flatnonzero(distances <= max_bits)
        query, other = np.divmod(alike, len(hashes))
        yield Hits(query + start, owners[other], distances[alike])


class _Segment:
    """Hashes that no longer change, sorted by the keys of every band."""

    def __init__(self, hashes: HashArray, owners: OwnerArray, max_bits: int) -> None:
        self.hashes = hashes
        self.owners = owners
        self._max_bits = max_bits
        self._bands = [_sort_band(_band_keys(hashes, band, max_bits + 1)) for band in range(max_bits + 1)]

    def search(self, queries: HashArray) -> Iterator[Hits]:
        """Hits of every band, some candidates at a time."""
        for band, (order, starts) in enumerate(self._bands):
            keys = _band_keys(queries, band, len(self._bands)).astype(np.int64)
            first, counts = starts[keys], starts[keys + 1] - starts[keys]
            for some in _portions(counts):
                yield self._compare(queries, some, np.repeat(some, counts[some]), order, first[some], counts[some])

    def _compare(
        self,
        queries: HashArray,
        some: IndexArray,
        query: IndexArray,
        order: OwnerArray,
        first: IndexArray,
        counts: IndexArray,
    ) -> Hits:
        within = np.arange(len(query)) - np.repeat(np.cumsum(counts) - counts, counts)
        candidate = order[np.repeat(first, counts) + within]
        distances = bit_distances(self.hashes[candidate], queries[query])
        alike = distances <= self._max_bits
        return Hits(query[alike], self.owners[candidate[alike]], distances[alike])


def _band_keys(hashes: HashArray, band: int, bands: int) -> npt.NDArray[np.uint16]:
    """The first 16 bits, at most, of every hash's band."""
    start, stop = band * HASH_BITS // bands, (band + 1) * HASH_BITS // bands
    mask = (1 << min(KEY_BITS, stop - start)) - 1
    return ((hashes >> np.uint64(start)) & np.uint64(mask)).astype(np.uint16)


def _sort_band(keys: npt.NDArray[np.uint16]) -> tuple[OwnerArray, IndexArray]:
    """Positions sorted by key, and where the positions of every key start."""
    starts = np.zeros((1 << KEY_BITS) + 1, np.int64)
    np.cumsum(np.bincount(keys, minlength=1 << KEY_BITS), out=starts[1:])
    return np.argsort(keys, kind="stable").astype(np.int32), starts


def _portions(counts: IndexArray) -> Iterator[IndexArray]:
    """Positions of queries in portions with about PAIRS_AT_ONCE candidates; those without any are left out."""
    busy = np.flatnonzero(counts)
    if len(busy):
        number = np.cumsum(counts[busy]) // PAIRS_AT_ONCE
        yield from np.split(busy, np.flatnonzero(np.diff(number)) + 1)
