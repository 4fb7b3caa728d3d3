"""Brings shards from a bucket into the node's cache while their first samples are read by ranges.

A stream reads most of a shard within one shuffle window, so the first sample asked of a shard is the sign that the
others will be. Nothing waits for a copy: until it is there, samples come from the bucket one by one.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from dataclasses import dataclass
from functools import partial

from mcjepa.data_prep.errors import DataError
from mcjepa.data_prep.storage import Store
from mcjepa.pipeline.stream.shard_cache import ShardCache, Verify

log = logging.getLogger(__name__)

THREADS = 2
"""Copies at a time, a process."""
RETRY_S = 5.0
"""Pause after a shard that another process was copying, or for which there was no room."""


@dataclass(frozen=True)
class RemoteShard:
    """A shard in a store."""

    store: Store
    key: str
    sha256: str
    bytes: int


class ShardFetcher:
    """The copying threads of one process; they start with the first wish and end with the process."""

    def __init__(self, cache: ShardCache, verify: Verify) -> None:
        """Fill `cache`, checking by `verify`."""
        self._cache, self._verify = cache, verify
        self._wishes: queue.SimpleQueue[RemoteShard | None] = queue.SimpleQueue()
        self._pause_until: dict[str, float] = {}
        self._threads: list[threading.Thread] = []
        self._fault: DataError | None = None
        self._off = False

    def open(self, shard: RemoteShard) -> int | None:
        """A descriptor of the cached shard, or None: then it is on its way.

        Raises:
            DataError: a shard that was to be cached is not the one of the manifest.
        """
        if self._fault:
            raise self._fault
        if self._off:
            return None
        try:
            found = self._cache.open(shard.sha256, shard.bytes)
        except OSError as error:
            self._switch_off(error)
            return None
        if found is None and time.monotonic() >= self._pause_until.get(shard.sha256, 0.0):
            self._pause_until[shard.sha256] = float("inf")  # until it has been tried
            self._wishes.put(shard)
            if len(self._threads) < THREADS:
                self._threads.append(threading.Thread(target=self._serve, name="shard-fetcher", daemon=True))
                self._threads[-1].start()
        return found

    def close(self) -> None:
        """Let the threads end after the copies in hand."""
        for _ in self._threads:
            self._wishes.put(None)

    def _serve(self) -> None:
        while (shard := self._wishes.get()) is not None:
            try:
                source = partial(shard.store.open, shard.key)
                self._cache.fill(shard.sha256, shard.bytes, source, self._verify)
            except DataError as error:
                self._fault = DataError(f"{shard.key} of {shard.store.location}: {error}")
            except OSError as error:
                self._switch_off(error)
            self._pause_until[shard.sha256] = time.monotonic() + RETRY_S

    def _switch_off(self, error: OSError) -> None:
        if not self._off:
            self._off = True
            log.warning(
                "shards are no longer cached by this process: %s; expected a writable folder with room for "
                "stream.store.cache_gib; mend it or name another stream.store.cache_dir; until then samples are read "
                "from the bucket one by one",
                error,
            )
