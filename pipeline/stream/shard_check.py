"""Are the shards those of the manifest: lengths and digests, looked at before a training starts.

A dataset id says what is trained on only as long as somebody compares it with the bytes. What is looked at is the
recipe's choice (`stream.store.check`); each rank takes its share.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Literal, NamedTuple

import numpy as np

from mcjepa.data_prep.errors import AbsentKey
from mcjepa.data_prep.layout import shard_key
from mcjepa.data_prep.storage import digest_of, open_store
from mcjepa.pipeline.stream.catalogue import Catalogue
from mcjepa.pipeline.stream.seeding import seeded_permutation

Check = Literal["none", "sizes", "sampled", "full"]
SAMPLED = 4
"""Shards of a stream whose digests `sampled` compares."""
MOST_SIZES = 4096
"""Lengths that a rank asks for, of each stream."""
THREADS = 8


class _Shard(NamedTuple):
    location: str
    name: str
    sha256: str
    bytes: int


def find_shard_damage(
    catalogues: Mapping[str, Catalogue], check: Check, *, draw: int, rank: int = 0, world_size: int = 1
) -> str:
    """What differs from the manifests among a rank's share of the shards, in words; empty where nothing does.

    Args:
        catalogues: stream -> where its samples lie.
        check: how much is looked at.
        draw: chooses the shards of `sampled`: the same number chooses the same ones on every rank.
        rank: this process among `world_size`.
        world_size: processes that share the work.

    Raises:
        DataError: a store cannot be read.
    """
    if check == "none":
        return ""
    with ThreadPoolExecutor(THREADS) as threads:
        for name, catalogue in catalogues.items():
            order = seeded_permutation(sum(len(each.shards) for each in catalogue.datasets), "shard check", name, draw)
            sized = _shards(catalogue, order[rank::world_size][:MOST_SIZES])
            if problem := next(filter(None, threads.map(_size_problem, sized)), ""):
                return problem
            hashed = {"sizes": order[:0], "sampled": order[:SAMPLED], "full": order}[check][rank::world_size]
            for shard in _shards(catalogue, hashed):
                if problem := _digest_problem(shard):
                    return problem
    return ""


def _shards(catalogue: Catalogue, rows: np.ndarray) -> Iterator[_Shard]:
    """The shards of such numbers in the row of all datasets' shards."""
    first = np.cumsum([0, *(len(each.shards) for each in catalogue.datasets)])
    for row in rows.tolist():
        number = int(np.searchsorted(first, row, side="right")) - 1
        dataset, place = catalogue.datasets[number], row - int(first[number])
        yield _Shard(dataset.location, dataset.shards[place], dataset.sha256[place], int(dataset.bytes[place]))


def _size_problem(shard: _Shard) -> str:
    try:
        size = open_store(shard.location).size(shard_key(shard.name))
    except AbsentKey:
        return _problem(shard, "is absent", "its file")
    return "" if size == shard.bytes else _problem(shard, f"has {size} bytes", f"{shard.bytes}")


def _digest_problem(shard: _Shard) -> str:
    found = digest_of(open_store(shard.location), shard_key(shard.name))
    return "" if found == shard.sha256 else _problem(shard, f"has sha256 {found[:12]}", shard.sha256[:12])


def _problem(shard: _Shard, found: str, expected: str) -> str:
    return (
        f"shard {shard.name} of {shard.location} {found}, expected {expected} as in the manifest: it is not what the "
        "dataset id names; run `mcjepa prep audit` on it and restore or prepare it again (stream.store.check says what "
        "is compared; none trains on it as it is)"
    )
