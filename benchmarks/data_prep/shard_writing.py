"""Writing shards: ours (same bytes every time, digest and member offsets on the way) beside webdataset's.

    python -m benchmarks.shard_writing [--rounds 7]

2,000 clips (two frames of 32 kB and a json) into 4 shards in a temporary folder, to the page cache, in one
process; nobody encodes. Ours also hashes every byte and writes the sidecar. webdataset.ShardWriter is given
mtime=0 and encoder=False, its fastest and its only reproducible setting; its default is shown beside. The
sides alternate; the figures are medians. The last line is JSON; `ratio` is ours over webdataset's, MB/s.
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
from typing import Any

import webdataset

from mcjepa.data_prep.dataset.manifest import Sidecar
from mcjepa.data_prep.dataset.shards import ShardWriter
from mcjepa.data_prep.storage.json_files import encode_json

SHARDS, SAMPLES_PER_SHARD, FRAME_BYTES = 4, 500, 32_000


def clips() -> list[tuple[str, dict[str, bytes]]]:
    """Keys and members of the samples of one shard: random bytes."""
    rng = random.Random(0)
    meta = json.dumps({"fps_hz": 25, "frame_index": [0, 1], "input": "a.mp4", "pts_s": [0, 0.04]}).encode()
    return [
        (f"{n:016x}-000000", {"00.jpg": rng.randbytes(FRAME_BYTES), "01.jpg": rng.randbytes(FRAME_BYTES), "json": meta})
        for n in range(SAMPLES_PER_SHARD)
    ]


def write_ours(root: Path, samples: list[tuple[str, dict[str, bytes]]]) -> None:
    """Shards and sidecars by `data_prep.dataset.shards`."""
    for shard in range(SHARDS):
        name = f"clip-{shard:06d}"
        with (root / f"{name}.tar").open("w+b") as file:
            writer = ShardWriter(file)
            for key, members in samples:
                writer.add(key, members)
            digest, size, entries = writer.finish()
        (root / f"{name}.json").write_bytes(encode_json(Sidecar(name, digest, size, "plan", entries)))


def write_webdataset(root: Path, samples: list[tuple[str, dict[str, bytes]]], **options: Any) -> None:
    """The same shards by webdataset.ShardWriter."""
    pattern = str(root / "clip-%06d.tar")
    with webdataset.ShardWriter(pattern, maxcount=SAMPLES_PER_SHARD, verbose=0, **options) as writer:
        for shard in range(SHARDS):
            for key, members in samples:
                writer.write({"__key__": f"{shard}{key}", **members})


def timed(write: Callable[[Path], None]) -> float:
    """Seconds of one writing into an empty folder."""
    with tempfile.TemporaryDirectory() as root:
        started = time.perf_counter()
        write(Path(root))
        return time.perf_counter() - started


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    samples = clips()
    megabytes = SHARDS * sum(len(d) for _, members in samples for d in members.values()) / 1e6
    sides: dict[str, Callable[[Path], None]] = {
        "ours": lambda root: write_ours(root, samples),
        "webdataset_reproducible": lambda root: write_webdataset(root, samples, mtime=0, encoder=False),
        "webdataset_default": lambda root: write_webdataset(root, samples),
    }
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds + 1):
        for name, side in sides.items():
            took = timed(side)
            if number:  # the first round warms up
                seconds[name].append(took)
    speed = {name: megabytes / statistics.median(took) for name, took in seconds.items()}
    for name, value in speed.items():
        print(f"{name:<24} {value:8.0f} MB/s")
    ratio = speed["ours"] / speed["webdataset_reproducible"]
    figures = {f"{name}_mb_s": round(value, 1) for name, value in speed.items()}
    print(json.dumps({"benchmark": "shard_writing", "ratio": round(ratio, 3), **figures}))


if __name__ == "__main__":
    main()
