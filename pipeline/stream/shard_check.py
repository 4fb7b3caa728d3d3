"""Are the shards those of the manifest: lengths and digests, looked at before a training starts.

A dataset id says what is trained on only as long as somebody compares it with the bytes. What is looked at is the
recipe's choice (`stream.store.check`); each rank takes its share. A folder is asked for one length at a time, a bucket
for those of neighbouring shards, as many as a page of its listing holds.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from typing import Literal, NamedTuple

import numpy as np

from mcjepa.data_prep.errors import AbsentKey, DataError
from mcjepa.data_prep.layout import SHARD_FOLDER, shard_key
from mcjepa.data_prep.storage import FolderStore, KeySpan, Store, digest_of, open_store
from mcjepa.pipeline.stream.catalogue import Catalogue
from mcjepa.pipeline.stream.dataset_shards import DatasetShards
from mcjepa.pipeline.stream.seeding import seeded_permutation

Check = Literal["none", "sizes", "sampled", "full"]
SAMPLED = 4
"""Shards of a stream whose digests `sampled` compares."""
LISTED = 480
"""Shards whose lengths a bucket tells at a time: with their sidecars, a page of 1,000 keys."""
MOST_SIZES, MOST_LISTS = 4096, 512
"""Files of a folder and pages of a bucket that a rank asks for, of each stream."""
THREADS = 8

log = logging.getLogger(__name__)


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
            datasets, seed = catalogue.datasets, ("shard check", name, draw)
            in_folder = [isinstance(open_store(each.location), FolderStore) for each in datasets]
            widths = [1 if each else LISTED for each in in_folder]
            looks = seeded_permutation(sum(_counts(datasets, widths)), *seed)[rank::world_size]
            looks = looks[: MOST_SIZES if any(in_folder) else MOST_LISTS]
            if problem := next(filter(None, threads.map(_size_problem, _stretches(datasets, widths, looks))), ""):
                return problem
            if check == "sizes":
                continue
            single = [1] * len(datasets)
            order = seeded_permutation(sum(_counts(datasets, single)), *seed)
            hashed = {"sampled": order[:SAMPLED], "full": order}[check][rank::world_size]
            for [shard] in _stretches(datasets, single, hashed):
                if problem := _digest_problem(shard):
                    return problem
    return ""


def _counts(datasets: Sequence[DatasetShards], widths: Sequence[int]) -> list[int]:
    """Stretches of every dataset, each of so many shards."""
    return [-(-len(each.shards) // width) for each, width in zip(datasets, widths, strict=True)]


def _stretches(datasets: Sequence[DatasetShards], widths: Sequence[int], rows: np.ndarray) -> Iterator[list[_Shard]]:
    """The stretches of such numbers, of all datasets' shards in a row cut into stretches of each dataset's width."""
    first = np.cumsum([0, *_counts(datasets, widths)])
    for row in rows.tolist():
        number = int(np.searchsorted(first, row, side="right")) - 1
        dataset, begin = datasets[number], (row - int(first[number])) * widths[number]
        places = range(begin, min(begin + widths[number], len(dataset.shards)))
        yield [_Shard(dataset.location, dataset.shards[n], dataset.sha256[n], int(dataset.bytes[n])) for n in places]


def _size_problem(shards: list[_Shard]) -> str:
    """What is wrong with a stretch of shards of one dataset; a listing is believed only where it finds nothing."""
    store = open_store(shards[0].location)
    listed = {} if isinstance(store, FolderStore) else _listed_lengths(store, [shard.name for shard in shards])
    for shard in shards:
        if listed.get(shard.name) == shard.bytes:
            continue
        try:
            size = store.size(shard_key(shard.name))
        except AbsentKey:
            return _problem(shard, "is absent", "its file")
        if size != shard.bytes:
            return _problem(shard, f"has {size} bytes", f"{shard.bytes}")
    return ""


def _listed_lengths(store: Store, names: list[str]) -> dict[str, int]:
    """Lengths of neighbouring shards by a listing; empty where the bucket cannot be listed: each is asked for then."""
    found: dict[str, int] = {}
    try:
        for _, alike in groupby(names, len):  # shard 1,000,000 stands before shard 999,999
            keys = {shard_key(name): name for name in alike}
            for entry in store.files(f"{SHARD_FOLDER}/", KeySpan(min(keys), max(keys) + "\0")):
                if entry.key in keys:
                    found[keys[entry.key]] = entry.bytes
    except DataError as error:
        log.info("the lengths of shards are asked for one by one: %s", error)
    return found


def _digest_problem(shard: _Shard) -> str:
    found = digest_of(open_store(shard.location), shard_key(shard.name))
    return "" if found == shard.sha256 else _problem(shard, f"has sha256 {found[:12]}", shard.sha256[:12])


def _problem(shard: _Shard, found: str, expected: str) -> str:
    return (
        f"shard {shard.name} of {shard.location} {found}, expected {expected} as in the manifest: it is not what the "
        "dataset id names; run `mcjepa prep audit` on it and restore or prepare it again (stream.store.check says what "
        "is compared; none trains on it as it is)"
    )
