"""Which sample lies where: manifests and sidecars as plain data, the same in every process.

Catalogue     the samples of a stream's datasets in a row: number -> dataset, shard, place; from manifests only
ShardIndex    the members of one shard's samples: from its sidecar, read when the shard is first touched
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mcjepa.data_prep.dataset.manifest import Sidecar
from mcjepa.pipeline.settings.stream import SourceConfig
from mcjepa.pipeline.stream.dataset_shards import DatasetShards
from mcjepa.pipeline.stream.manifest_index import open_shards
from mcjepa.pipeline.stream.order import SourceCounts


class Address(NamedTuple):
    """Where a sample lies: the dataset, the shard and the place within it, each counted from 0."""

    dataset: int
    shard: int
    place: int


class Catalogue:
    """The samples of several datasets in a row, each once."""

    def __init__(self, datasets: Sequence[DatasetShards], counts: Sequence[SourceCounts]) -> None:
        """Number the samples of `datasets`; `counts` says how much of each an epoch takes."""
        self.datasets, self.counts = tuple(datasets), tuple(counts)
        # Arrays: loading processes share their pages, where every look at a Python object would copy its page.
        self._first_rows = np.cumsum([0, *(len(each.shards) for each in datasets)])
        ends = [source.shard_ends for source in counts]
        bases = np.cumsum([0, *(each[-1] if len(each) else 0 for each in ends)])
        shifted = [each + base if base else each for each, base in zip(ends, bases.tolist(), strict=False)]
        self._ends = shifted[0] if len(shifted) == 1 else np.concatenate(shifted)

    def locate(self, indexes: np.ndarray) -> list[Address]:
        """Where samples lie; 0 <= index < the samples of all datasets."""
        rows = np.searchsorted(self._ends, indexes, side="right")
        places = indexes - np.where(rows > 0, self._ends[rows - 1], 0)
        numbers = np.searchsorted(self._first_rows, rows, side="right") - 1
        shards = rows - self._first_rows[numbers]
        return list(map(Address, numbers.tolist(), shards.tolist(), places.tolist()))


def open_catalogue(sources: Sequence[SourceConfig], folder: Path | None = None) -> Catalogue:
    """Find out what a stream's sources hold.

    Args:
        sources: of the stream.
        folder: where the processes of this machine share what they have read of manifests (`index_folder`); None: the
            manifests are read into memory.

    Raises:
        DataError: a dataset is not published or its manifest is damaged.
    """
    datasets = [open_shards(source.location, source.revision, folder) for source in sources]
    pairs = zip(datasets, sources, strict=True)
    return Catalogue(datasets, [SourceCounts(found.samples, asked.repeat, asked.weight) for found, asked in pairs])


class StoredSample(NamedTuple):
    """A sample's entry in its shard's index."""

    address: Address
    key: str
    members: dict[str, tuple[int, int]]
    """Suffix (`jpg`, `00.jpg`, `json`) to offset in the shard and length, bytes."""


class ShardIndex:
    """A sidecar in flat arrays: a tenth of its objects' size."""

    def __init__(self, sidecar: Sidecar) -> None:
        """Take over the places of all members."""
        members = [member for sample in sidecar.samples for member in sample.members]
        suffixes = list(dict.fromkeys(member.suffix for member in members))
        codes = {suffix: code for code, suffix in enumerate(suffixes)}
        self._suffixes = suffixes
        self._codes = np.array([codes[member.suffix] for member in members], dtype=np.int32)
        self._spans = np.array([(member.offset, member.bytes) for member in members], dtype=np.int64)
        self._ends = np.cumsum([len(sample.members) for sample in sidecar.samples], dtype=np.int64)
        self._keys = [sample.key for sample in sidecar.samples]

    def sample(self, address: Address) -> StoredSample:
        """The entry of one sample of this shard."""
        end = int(self._ends[address.place])
        start = int(self._ends[address.place - 1]) if address.place else 0
        codes, spans = self._codes[start:end].tolist(), self._spans[start:end].tolist()
        members = {self._suffixes[code]: (offset, length) for code, (offset, length) in zip(codes, spans, strict=True)}
        return StoredSample(address, self._keys[address.place], members)
