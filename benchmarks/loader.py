"""Reading samples by index, in the shuffled order of training, beside webdataset on the same shards.

    python -m benchmarks.loader [--rounds 7]

2,000 clips (two frames of 32 kB and a json) in 4 shards in a temporary folder, from the page cache, in one
process; neither side decodes. Ours opens the dataset anew in every round and parses its sidecars; webdataset
reads in the order of the shards, its fastest. The sides alternate; the figures are medians. The last line is
JSON; `ratio` is ours over webdataset's, samples/s.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import webdataset

from data_prep.manifest import (
    DatasetManifest,
    ShardEntry,
    Sidecar,
    Totals,
    compute_dataset_id,
    write_manifest,
    write_sidecar,
)
from data_prep.shards import ShardWriter
from pipeline.shard_reader import ShardReader, open_catalogue
from pipeline.stream import SampleOrder
from pipeline.stream_config import SourceConfig

SHARDS, SAMPLES_PER_SHARD, FRAME_BYTES = 4, 500, 32_000


def publish_random_clips(root: Path) -> list[str]:
    """Publish a dataset of random bytes; returns the paths of its shards."""
    rng, entries, paths = random.Random(0), [], []
    (root / "shards").mkdir(parents=True)
    for shard in range(SHARDS):
        name = f"clip-{shard:06d}"
        path = root / "shards" / f"{name}.tar"
        with path.open("w+b") as file:
            writer = ShardWriter(file)
            for place in range(SAMPLES_PER_SHARD):
                frames = {f"0{frame}.jpg": rng.randbytes(FRAME_BYTES) for frame in range(2)}
                writer.add(f"{shard:03d}{place:06d}", {**frames, "json": b"{}"})
            digest, size, samples = writer.finish()
        write_sidecar(str(root), Sidecar(name, digest, size, "plan", samples))
        entries.append(ShardEntry(name, digest, size, SAMPLES_PER_SHARD))
        paths.append(str(path))
    count = SHARDS * SAMPLES_PER_SHARD
    totals = Totals(SHARDS, count, sum(entry.bytes for entry in entries), count, count, 0, 0)
    dataset_id = compute_dataset_id(entries)
    write_manifest(str(root), DatasetManifest("clip", dataset_id, "plan", "inputs", "", "", {}, tuple(entries), totals))
    return paths


def read_by_index(root: Path) -> int:
    """Read an epoch as the loader does; returns the bytes of its members."""
    catalogue = open_catalogue((SourceConfig(location=str(root)),))
    order = SampleOrder(catalogue.shard_samples, batch=8, window=512, seed=0)
    reader, total = ShardReader(catalogue), 0
    for step in range(order.steps_per_epoch):
        for index in order.step_samples(step)[1].tolist():
            sample = reader.find(index)
            total += sum(map(len, reader.read(sample, tuple(sample.members))))
    reader.close()
    return total


def read_by_webdataset(paths: list[str]) -> int:
    """Read the same samples by webdataset; returns the bytes of their members."""
    dataset = webdataset.WebDataset(paths, shardshuffle=False)
    return sum(len(content) for sample in dataset for content in sample.values() if isinstance(content, bytes))


def measure(rounds: int) -> dict[str, object]:
    """Samples a second of both sides, medians over alternating rounds, after a warm-up of each."""
    with tempfile.TemporaryDirectory() as folder:
        paths = publish_random_clips(Path(folder))
        sides: dict[str, Callable[[], int]] = {
            "ours": lambda: read_by_index(Path(folder)),
            "webdataset": lambda: read_by_webdataset(paths),
        }
        read_bytes = {name: read() for name, read in sides.items()}
        if len(set(read_bytes.values())) != 1:
            raise RuntimeError(f"the sides read different bytes: {read_bytes}, expected the same samples")
        rates: dict[str, list[float]] = {name: [] for name in sides}
        for _ in range(rounds):
            for name, read in sides.items():
                start = time.perf_counter()
                read()
                rates[name].append(SHARDS * SAMPLES_PER_SHARD / (time.perf_counter() - start))
                print(f"{name:<11}{rates[name][-1]:>9.0f} samples/s")
    ours, theirs = (statistics.median(rates[name]) for name in sides)
    return {
        "benchmark": "loader",
        "ratio": round(ours / theirs, 2),
        "ours_samples_per_s": round(ours),
        "webdataset_samples_per_s": round(theirs),
        "rounds": rounds,
    }


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=7, help="rounds of both sides; default 7")
    print(json.dumps(measure(parser.parse_args().rounds)))


if __name__ == "__main__":
    main()
