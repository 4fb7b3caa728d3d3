"""Requests that one loading process sends to a bucket, and what of it a node's cache would save; counted, not timed.

    python -m benchmarks.scale_requests [--full]

The real order, catalogue and shard reader run over a store that counts requests and answers with made-up sidecars and
bytes of the right length. A loading process (every second step of one of 64 ranks) reads ImageNet-1K (1,252 shards of
1,024) through a whole epoch of batch 384, and one of 4,096 ranks a piece of an epoch of a billion images (a million
shards of 1,000; 100,000 without `--full`) at batch 4,096 in 4,096 lanes, in the middle of epoch 1. Beside it, the
shards that the rank's whole lanes touch in an epoch: the gets of a node that caches whole shards.
The last line is JSON; `ratio` is the requests a sample of the worse case over 1.05: one ranged read a sample is what
random access costs, and sidecars may add 5 %. The bar is 1.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from mcjepa.data_prep.dataset.manifest import Member, SampleEntry, Sidecar
from mcjepa.data_prep.storage import Store
from mcjepa.data_prep.storage.json_files import encode_json
from mcjepa.pipeline.settings.stream import ShardStoreConfig
from mcjepa.pipeline.stream.catalogue import Catalogue
from mcjepa.pipeline.stream.dataset_shards import DatasetShards
from mcjepa.pipeline.stream.order import SampleOrder, SourceCounts
from mcjepa.pipeline.stream.shard_reader import ShardReader

WORKERS, WINDOW = 2, 4096
IMAGE_BYTES, RECORD_BYTES = 110_000, 300
MOST_REQUESTS = 1.05


@dataclass(frozen=True)
class Case:
    """A dataset on paper and how it is read."""

    name: str
    samples: int
    samples_per_shard: int
    batch: int
    ranks: int
    lanes: int
    first_step: int
    steps: int
    """Steps of the run that are looked at; the process has every second one."""


class CountingStore:
    """Answers as a bucket would, and counts."""

    location = "s3://bucket/paper"

    def __init__(self, catalogue: Catalogue) -> None:
        """Of the catalogue's only dataset."""
        self.counts: Counter[str] = Counter()
        (self._dataset,) = catalogue.datasets
        self._numbers = {name: number for number, name in enumerate(self._dataset.shards)}

    def read(self, key: str) -> bytes:
        """A sidecar."""
        self.counts["sidecar"] += 1
        name = key.split("/")[1].removesuffix(".json")
        number = self._numbers[name]
        step = IMAGE_BYTES + RECORD_BYTES + 2048
        members = (
            (Member("jpg", place * step, IMAGE_BYTES), Member("json", place * step + IMAGE_BYTES, RECORD_BYTES))
            for place in range(self._dataset.samples[number])
        )
        samples = tuple(SampleEntry(f"{number:07d}-{place:06d}", each) for place, each in enumerate(members))
        sha256, size = self._dataset.sha256[number], self._dataset.bytes[number]
        return encode_json(Sidecar(name, sha256, size, "plan", samples))

    def read_range(self, key: str, offset: int, length: int) -> bytes:
        """A stretch of a shard."""
        self.counts["range"] += 1
        return bytes(length)


def catalogue_of(case: Case) -> Catalogue:
    """The dataset on paper."""
    shards = -(-case.samples // case.samples_per_shard)
    counts = [case.samples_per_shard] * shards
    counts[-1] = case.samples - case.samples_per_shard * (shards - 1)
    dataset = DatasetShards(
        location=CountingStore.location,
        dataset_id="0" * 64,
        kind="image",
        shards=tuple(f"image-{number:07d}" for number in range(shards)),
        samples=tuple(counts),
        sha256=tuple(f"{number:064x}" for number in range(shards)),
        bytes=(case.samples_per_shard * IMAGE_BYTES,) * shards,
    )
    return Catalogue([dataset], [SourceCounts(dataset.samples)])


def count(case: Case) -> dict[str, Any]:
    """Requests of one loading process of rank 0."""
    started = time.perf_counter()
    catalogue = catalogue_of(case)
    order = SampleOrder(catalogue.counts, batch=case.batch, window=WINDOW, seed=3, lanes=case.lanes)
    store, samples = CountingStore(catalogue), 0
    reader = ShardReader(catalogue, ShardStoreConfig())
    reader._stores[0] = cast(Store, store)
    for step in range(case.first_step, case.first_step + case.steps, WORKERS):
        epoch, ids = order.step_samples(step, rank=0, world_size=case.ranks)
        found = reader.find_all(order.sample_indexes(epoch, ids))
        for sample in found:
            assert len(reader.read(sample, ["jpg"])[0]) == IMAGE_BYTES
        samples += len(found)
    reader.close()
    requests = sum(store.counts.values())
    lanes = order.lanes // case.ranks
    ends = np.cumsum(catalogue.counts[0].shard_samples)
    touched = 0
    for lane in range(lanes):
        low, high = order.lane_start(lane * case.ranks), order.lane_start(lane * case.ranks + 1)
        touched += int(np.searchsorted(ends, high - 1, side="right") - np.searchsorted(ends, low, side="right")) + 1
    return {
        "samples": samples,
        "requests": requests,
        "sidecars": store.counts["sidecar"],
        "requests_a_sample": round(requests / samples, 4),
        "shards_a_rank_and_epoch": touched,
        "samples_a_rank_and_epoch": order.epoch_samples // case.ranks,
        "seconds": round(time.perf_counter() - started, 1),
    }


def main() -> None:
    """Count and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="a million shards")
    shards = 1_000_000 if parser.parse_args().full else 100_000
    imagenet = Case("imagenet-1k", 1_281_167, 1024, 384, 64, 64, 0, 3336)
    billion = Case("billion", 1000 * shards, 1000, 4096, 4096, 4096, int(1.5 * 1000 * shards / 4096), 12_000)
    found = {case.name: count(case) for case in (imagenet, billion)}
    for name, figures in found.items():
        print(name, figures)
    worst = max(figures["requests_a_sample"] for figures in found.values())
    print(json.dumps({"benchmark": "scale_requests", "ratio": round(worst / MOST_REQUESTS, 3), **found}))


if __name__ == "__main__":
    main()
