"""Single samples out of published shards: by the sidecar's offsets, in any order, with the length checked.

The members wanted of a sample lie side by side in the tar, so one ranged read fetches them:

    a folder    pread of the shard's open file
    a bucket    pread of the shard in the node's cache (`stream.store.cache_dir`), where it is;
                else a ranged get, several samples at a time, while the whole shard comes into the cache
"""

from __future__ import annotations

import os
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np

from mcjepa.data_prep.dataset.manifest import read_sidecar
from mcjepa.data_prep.errors import DataError
from mcjepa.data_prep.layout import shard_key
from mcjepa.data_prep.storage import FolderStore, Store, open_store
from mcjepa.pipeline.settings.stream import ShardStoreConfig
from mcjepa.pipeline.stream.catalogue import Address, Catalogue, ShardIndex, StoredSample
from mcjepa.pipeline.stream.shard_cache import RemoteShard, ShardCache, ShardFetcher

_KEPT_INDEXES = 1024
"""Sidecars kept in memory, in their compact form (about 100 bytes a sample)."""
_KEPT_FILES = 128
"""Open shards, below the usual limit of 1,024 open files of a process."""
_TOUCH_S = 10.0
"""How often an open shard of the cache is marked as used, and those that have left it are looked for."""

Place = tuple[int, int]
"""Dataset and shard."""
Reading = Callable[[], list[bytes]]
"""Gives the bytes that were asked for, or raises what went wrong."""


class CorruptSample(ValueError):
    """One sample is damaged; others of its shard may be fine."""


class ShardReader:
    """Reads samples in one process; not to be shared between threads or carried over a fork."""

    def __init__(self, catalogue: Catalogue, config: ShardStoreConfig) -> None:
        """Open nothing yet; every dataset's store is opened when it is first read."""
        self._catalogue, self._config = catalogue, config
        self._stores: dict[int, Store] = {}
        self._indexes: OrderedDict[Place, ShardIndex] = OrderedDict()
        self._files: OrderedDict[Place, tuple[int, float]] = OrderedDict()
        self._pool: ThreadPoolExecutor | None = None
        self._fetcher: ShardFetcher | None = None
        self._swept = time.monotonic()

    @property
    def remote(self) -> bool:
        """Whether a dataset lies elsewhere than in a folder."""
        return not all(isinstance(self._store(number), FolderStore) for number in range(len(self._catalogue.datasets)))

    def find(self, index: int) -> StoredSample:
        """The entry of sample `index` of the catalogue; raises as `find_all` does."""
        return self.find_all(np.array([index]))[0]

    def find_all(self, indexes: np.ndarray) -> list[StoredSample]:
        """The entries of some samples of the catalogue.

        Raises:
            DataError: a shard's sidecar is missing, damaged or of another dataset.
        """
        addresses = self._catalogue.locate(indexes)
        places = dict.fromkeys((each.dataset, each.shard) for each in addresses)
        absent = [place for place in places if place not in self._indexes]
        together = [place for place in absent if not isinstance(self._store(place[0]), FolderStore)]
        if len(together) > 1:
            self._indexes.update(zip(together, self._threads().map(self._load_index, together), strict=True))
        samples = [self._shard_index((each.dataset, each.shard)).sample(each) for each in addresses]
        while len(self._indexes) > _KEPT_INDEXES:
            self._indexes.popitem(last=False)
        return samples

    def read(self, sample: StoredSample, suffixes: Sequence[str]) -> list[bytes]:
        """Bytes of some members of a sample, in the order of `suffixes`, by one ranged read.

        Raises:
            CorruptSample: the shard ends before them.
            DataError: a member is not there, or the shard or its store cannot be read.
        """
        return self.request(sample, suffixes)()

    def request(self, sample: StoredSample, suffixes: Sequence[str]) -> Reading:
        """Begin to read; at once where a bucket has to answer, else when the bytes are taken."""
        missing = [suffix for suffix in suffixes if suffix not in sample.members]
        if missing:
            raise DataError(
                f"{self.name(sample)} has members {sorted(sample.members)}, expected {missing} too; "
                "make the dataset again with `mcjepa prep run`"
            )
        spans = [sample.members[suffix] for suffix in suffixes]
        start = min(offset for offset, _ in spans)
        length = max(offset + size for offset, size in spans) - start
        if self._file(sample.address) is not None:
            return partial(self._take, sample.address, spans, start, length, None)
        store, key = self._store(sample.address.dataset), self._key(sample.address)
        begun = self._threads().submit(store.read_range, key, start, length)
        return partial(self._take, sample.address, spans, start, length, begun)

    def _take(
        self, address: Address, spans: Sequence[tuple[int, int]], start: int, length: int, begun: Future[bytes] | None
    ) -> list[bytes]:
        """The bytes at `spans` (offset, length) of a shard, all of which lie in `length` bytes from `start`."""
        data = begun.result() if begun else self._read_range(address, start, length)
        if len(data) != length:
            raise CorruptSample(f"{len(data)} bytes at offset {start}, expected {length}: the shard was cut short")
        if len(spans) == 1:
            return [data]
        return [data[offset - start : offset - start + size] for offset, size in spans]

    def name(self, sample: StoredSample) -> str:
        """Shard and key of a sample, for messages."""
        dataset = self._catalogue.datasets[sample.address.dataset]
        return f"shard {dataset.shards[sample.address.shard]} of {dataset.location}, sample {sample.key}"

    def close(self) -> None:
        """Close the open shards and end the threads."""
        while self._files:
            os.close(self._files.popitem()[1][0])
        if self._pool:
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._pool = None
        if self._fetcher:
            self._fetcher.close()
            self._fetcher = None

    def _shard_index(self, place: Place) -> ShardIndex:
        if place not in self._indexes:
            self._indexes[place] = self._load_index(place)
        self._indexes.move_to_end(place)
        return self._indexes[place]

    def _load_index(self, place: Place) -> ShardIndex:
        dataset, shard = self._catalogue.datasets[place[0]], place[1]
        name = dataset.shards[shard]
        sidecar = read_sidecar(self._store(place[0]), name)
        found = (sidecar.sha256, len(sidecar.samples))
        expected = (dataset.sha256[shard], int(dataset.samples[shard]))
        if found != expected:
            raise DataError(
                f"shard {name} of {dataset.location}: its sidecar has sha256 {found[0][:12]} and {found[1]} "
                f"samples, expected {expected[0][:12]} and {expected[1]} as in the manifest; "
                "run `mcjepa prep audit`"
            )
        return ShardIndex(sidecar)

    def _read_range(self, address: Address, start: int, length: int) -> bytes:
        descriptor = self._file(address)
        if descriptor is None:
            return self._store(address.dataset).read_range(self._key(address), start, length)
        return os.pread(descriptor, length, start)

    def _file(self, address: Address) -> int | None:
        """The shard's open file, where one is on this machine."""
        place, now = (address.dataset, address.shard), time.monotonic()
        if place in self._files:
            self._files.move_to_end(place)
            descriptor, touched = self._files[place]
            if now - touched < _TOUCH_S or self._still_there(place, descriptor):
                return descriptor
            os.close(self._files.pop(place)[0])
        store = self._store(address.dataset)
        opened = self._open_local(store, address) if isinstance(store, FolderStore) else self._open_cached(address)
        if opened is None:
            return None
        self._files[place] = (opened, now)
        self._close_some()
        return opened

    def _still_there(self, place: Place, descriptor: int) -> bool:
        """Marks an open shard as used; False when it has left the cache since."""
        self._files[place] = (descriptor, time.monotonic())
        return isinstance(self._store(place[0]), FolderStore) or ShardCache.touch(descriptor)

    def _close_some(self) -> None:
        """Close the least recently used of too many, and at times what has left the cache: it frees its bytes."""
        if len(self._files) > _KEPT_FILES:
            os.close(self._files.popitem(last=False)[1][0])
        if self._fetcher and time.monotonic() - self._swept >= _TOUCH_S:
            self._swept = time.monotonic()
            left = [place for place, (descriptor, _) in self._files.items() if os.fstat(descriptor).st_nlink == 0]
            for place in left:
                os.close(self._files.pop(place)[0])

    def _open_local(self, store: FolderStore, address: Address) -> int:
        path = Path(store.path(self._key(address)))
        try:
            return os.open(path, os.O_RDONLY)
        except OSError as error:
            raise DataError(
                f"cannot open {path}: {error.strerror}, expected a shard of the manifest; run `mcjepa prep audit`"
            ) from error

    def _open_cached(self, address: Address) -> int | None:
        if not self._config.cache_dir:
            return None
        if self._fetcher is None:
            cache = ShardCache(self._config.cache_dir, self._config.cache_bytes)
            self._fetcher = ShardFetcher(cache, self._config.verify)
        dataset, shard = self._catalogue.datasets[address.dataset], address.shard
        store = self._store(address.dataset)
        length = int(dataset.bytes[shard])
        return self._fetcher.open(RemoteShard(store, self._key(address), dataset.sha256[shard], length))

    def _key(self, address: Address) -> str:
        return shard_key(self._catalogue.datasets[address.dataset].shards[address.shard])

    def _store(self, dataset: int) -> Store:
        if dataset not in self._stores:
            self._stores[dataset] = open_store(self._catalogue.datasets[dataset].location)
        return self._stores[dataset]

    def _threads(self) -> ThreadPoolExecutor:
        self._pool = self._pool or ThreadPoolExecutor(self._config.readers, "sample-reader")
        return self._pool
