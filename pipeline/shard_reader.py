"""Single samples out of published shards: by the sidecar's offsets, in any order, with the length checked.

    Catalogue     which sample lies where: manifests only, plain data, the same in every process
    ShardReader   one process's open files and sidecars

A sidecar is read when its shard is first touched, never all of them. The members wanted of a sample lie side
by side in the tar, so one ranged read fetches them.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_prep.errors import DataError
from data_prep.manifest import Sidecar, read_manifest, read_sidecar, shard_key
from data_prep.storage import FolderStore, Store, open_store
from pipeline.stream_config import SourceConfig

_KEPT_INDEXES = 1024
"""Sidecars kept in memory, in their compact form (about 100 bytes a sample)."""
_KEPT_FILES = 128
"""Open shards, below the usual limit of 1,024 open files of a process."""


@dataclass(frozen=True, kw_only=True)
class DatasetShards:
    """One published dataset: where it is and what its shards hold."""

    location: str
    """Folder or bucket prefix of the manifest."""
    dataset_id: str
    """Digest of the published content."""
    kind: str
    """`clip` or `image`."""
    shards: tuple[str, ...]
    """Names of the shards, in the manifest's order."""
    samples: tuple[int, ...]
    """Samples in each shard."""
    sha256: tuple[str, ...]
    """Digest of each shard."""


@dataclass(frozen=True)
class Address:
    """Where a sample lies: the dataset, the shard and the place within it, each counted from 0."""

    dataset: int
    shard: int
    place: int


class Catalogue:
    """The samples of several datasets in a row, some of them several times."""

    def __init__(self, datasets: Sequence[DatasetShards], repeats: Sequence[int]) -> None:
        """Number the samples of `datasets`; dataset i is passed over `repeats[i]` times."""
        self.datasets = tuple(datasets)
        self._owners = [
            (number, shard)
            for number, (dataset, repeat) in enumerate(zip(datasets, repeats, strict=True))
            for _ in range(repeat)
            for shard in range(len(dataset.shards))
        ]
        self.shard_samples = tuple(self.datasets[number].samples[shard] for number, shard in self._owners)
        self._ends = np.cumsum(self.shard_samples, dtype=np.int64)

    def locate(self, index: int) -> Address:
        """Where sample `index` lies, 0 <= index < sum of `shard_samples`."""
        row = int(np.searchsorted(self._ends, index, side="right"))
        number, shard = self._owners[row]
        return Address(number, shard, index - int(self._ends[row]) + self.shard_samples[row])


def open_catalogue(sources: Sequence[SourceConfig]) -> Catalogue:
    """Read the manifests of a stream's sources.

    Raises:
        DataError: a dataset is not published or its manifest is damaged.
    """
    datasets = []
    for source in sources:
        manifest = read_manifest(source.location, source.revision)
        datasets.append(
            DatasetShards(
                location=source.location,
                dataset_id=manifest.dataset_id,
                kind=manifest.kind,
                shards=tuple(shard.name for shard in manifest.shards),
                samples=tuple(shard.samples for shard in manifest.shards),
                sha256=tuple(shard.sha256 for shard in manifest.shards),
            )
        )
    return Catalogue(datasets, [source.repeat for source in sources])


@dataclass(frozen=True)
class StoredSample:
    """A sample's entry in its shard's index."""

    address: Address
    key: str
    members: dict[str, tuple[int, int]]
    """Suffix (`jpg`, `00.jpg`, `json`) to offset in the shard and length, bytes."""


class _ShardIndex:
    """A sidecar in flat arrays: a tenth of its objects' size."""

    def __init__(self, sidecar: Sidecar) -> None:
        members = [member for sample in sidecar.samples for member in sample.members]
        suffixes = list(dict.fromkeys(member.suffix for member in members))
        codes = {suffix: code for code, suffix in enumerate(suffixes)}
        self._suffixes = suffixes
        self._codes = np.array([codes[member.suffix] for member in members], dtype=np.int32)
        self._spans = np.array([(member.offset, member.bytes) for member in members], dtype=np.int64)
        self._ends = np.cumsum([len(sample.members) for sample in sidecar.samples], dtype=np.int64)
        self._keys = [sample.key for sample in sidecar.samples]

    def sample(self, address: Address) -> StoredSample:
        end = int(self._ends[address.place])
        start = int(self._ends[address.place - 1]) if address.place else 0
        codes, spans = self._codes[start:end].tolist(), self._spans[start:end].tolist()
        members = {self._suffixes[code]: (offset, length) for code, (offset, length) in zip(codes, spans, strict=True)}
        return StoredSample(address, self._keys[address.place], members)


class ShardReader:
    """Reads samples in one process; not to be shared between threads or carried over a fork."""

    def __init__(self, catalogue: Catalogue) -> None:
        """Open nothing yet; every dataset's store is opened when it is first read."""
        self._catalogue = catalogue
        self._stores: dict[int, Store] = {}
        self._indexes: OrderedDict[tuple[int, int], _ShardIndex] = OrderedDict()
        self._files: OrderedDict[tuple[int, int], int] = OrderedDict()

    def find(self, index: int) -> StoredSample:
        """The entry of sample `index` of the catalogue.

        Raises:
            DataError: the shard's sidecar is missing, damaged or of another dataset.
        """
        address = self._catalogue.locate(index)
        return self._shard_index(address).sample(address)

    def read(self, sample: StoredSample, suffixes: Sequence[str]) -> list[bytes]:
        """Bytes of some members of a sample, in the order of `suffixes`, by one ranged read.

        Raises:
            DataError: a member is not there, or the shard ends before it.
        """
        missing = [suffix for suffix in suffixes if suffix not in sample.members]
        if missing:
            raise DataError(
                f"{self.name(sample)} has members {sorted(sample.members)}, expected {missing} too; "
                "make the dataset again with `mcjepa prep run`"
            )
        spans = [sample.members[suffix] for suffix in suffixes]
        start = min(offset for offset, _ in spans)
        length = max(offset + size for offset, size in spans) - start
        data = self._read_range(sample.address, start, length)
        if len(data) != length:
            raise DataError(
                f"{self.name(sample)}: {len(data)} bytes at offset {start}, expected {length}: the shard was "
                "cut short; run `mcjepa prep audit` and make the dataset again"
            )
        return [data[offset - start : offset - start + size] for offset, size in spans]

    def name(self, sample: StoredSample) -> str:
        """Shard and key of a sample, for messages."""
        dataset = self._catalogue.datasets[sample.address.dataset]
        return f"shard {dataset.shards[sample.address.shard]} of {dataset.location}, sample {sample.key}"

    def close(self) -> None:
        """Close the open shards."""
        while self._files:
            os.close(self._files.popitem()[1])

    def _shard_index(self, address: Address) -> _ShardIndex:
        place = (address.dataset, address.shard)
        if place in self._indexes:
            self._indexes.move_to_end(place)
            return self._indexes[place]
        dataset = self._catalogue.datasets[address.dataset]
        name = dataset.shards[address.shard]
        sidecar = read_sidecar(self._store(address.dataset), name)
        found = (sidecar.sha256, len(sidecar.samples))
        expected = (dataset.sha256[address.shard], dataset.samples[address.shard])
        if found != expected:
            raise DataError(
                f"shard {name} of {dataset.location}: its sidecar has sha256 {found[0][:12]} and {found[1]} "
                f"samples, expected {expected[0][:12]} and {expected[1]} as in the manifest; "
                "run `mcjepa prep audit`"
            )
        index = _ShardIndex(sidecar)
        self._indexes[place] = index
        if len(self._indexes) > _KEPT_INDEXES:
            self._indexes.popitem(last=False)
        return index

    def _read_range(self, address: Address, start: int, length: int) -> bytes:
        store = self._store(address.dataset)
        key = shard_key(self._catalogue.datasets[address.dataset].shards[address.shard])
        if isinstance(store, FolderStore):
            return os.pread(self._file(address, Path(store.path(key))), length, start)
        return store.read_range(key, start, length)

    def _file(self, address: Address, path: Path) -> int:
        place = (address.dataset, address.shard)
        if place in self._files:
            self._files.move_to_end(place)
            return self._files[place]
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise DataError(
                f"cannot open {path}: {error.strerror}, expected a shard of the manifest; run `mcjepa prep audit`"
            ) from error
        self._files[place] = descriptor
        if len(self._files) > _KEPT_FILES:
            os.close(self._files.popitem(last=False)[1])
        return descriptor

    def _store(self, dataset: int) -> Store:
        if dataset not in self._stores:
            self._stores[dataset] = open_store(self._catalogue.datasets[dataset].location)
        return self._stores[dataset]
