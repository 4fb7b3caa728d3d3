"""The stream from S3 beside the stream from a folder: samples a second of one loading process.

    python -m benchmarks.stream_store [--full]

Two views of 224 px of images 256 px high, 64 a step. The S3 server is a real one (SeaweedFS, of the test extra), begun
here on the loopback interface and sharing the processor's cores with the stream: its own work counts against S3.
The stream has the node's disk cache, as a recipe has it (`stream.store.cache_dir`): `ratio` is that of a pass that
begins with an empty cache and fills it, `ratio_cached` that of a pass after it; `--full` adds `ratio_uncached`, without
a cache, every sample by a ranged get. Ratios are of samples a second by the clock; beside them, `cpu_ratio` and its
like are of samples a second of processor time, all of the loader's, its worker's and the server's: what is left of the
speed where no core is free for the server, and which other programs disturb less. The passes take turns; figures are
medians. The bar is 0.9, for the first.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from dataclasses import dataclass, replace

import cv2
import torch

from benchmarks.loader_speed import processor_seconds
from benchmarks.stream_corpus import packaged_samples, publish_copies, stream_of
from mcjepa.pipeline.settings.stream import ShardStoreConfig, StreamConfig
from mcjepa.pipeline.stream.loader import build_loader
from mcjepa.pipeline.world import disable_malloc_trim
from tests.servers.seaweed import BUCKET, running_seaweed

BATCH, SHARDS, SAMPLES_PER_SHARD = 64, 4, 200


@dataclass(frozen=True)
class Speed:
    """Of one pass."""

    per_second: float
    """Samples a second."""
    per_cpu_second: float
    """Samples a second of processor time of the loader, its worker and the server."""


def pass_speed(config: StreamConfig, seed: int) -> Speed:
    """Reads one epoch; its first step, in which the S3 client is made, is not counted."""
    with build_loader(config, rank=0, world_size=1, start_step=0, seed=seed) as loader:
        steps = loader.describe()["views"].steps_per_epoch
        next(loader)
        started, used = time.perf_counter(), processor_seconds()
        for _ in range(steps - 1):
            next(loader)
        samples = (steps - 1) * BATCH
        return Speed(samples / (time.perf_counter() - started), samples / (processor_seconds() - used))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="more rounds")
    full = parser.parse_args().full
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    disable_malloc_trim()  # as a training process does
    samples = packaged_samples("image")
    with tempfile.TemporaryDirectory() as folder, running_seaweed() as server:
        os.environ.update(server.variables)
        here = publish_copies(f"{folder}/images", "image", samples, SHARDS, SAMPLES_PER_SHARD)
        there = publish_copies(f"s3://{BUCKET}/images", "image", samples, SHARDS, SAMPLES_PER_SHARD)
        speeds = measure(here, there, folder, full=full)
    print(json.dumps({"benchmark": "stream_store", **summary(speeds)}))


def summary(speeds: dict[str, list[Speed]]) -> dict[str, float]:
    """The figures of the last line."""
    figures: dict[str, float] = {}
    for side in list(speeds)[1:]:
        both = list(zip(speeds[side], speeds["local"], strict=True))
        suffix = "" if side == "s3" else f"_{side}"
        figures[f"ratio{suffix}"] = round(statistics.median(s3.per_second / own.per_second for s3, own in both), 3)
        figures[f"cpu_ratio{suffix}"] = round(
            statistics.median(s3.per_cpu_second / own.per_cpu_second for s3, own in both), 3
        )
    for side, each in speeds.items():
        figures[f"{side}_samples_s"] = round(statistics.median(speed.per_second for speed in each))
    return figures


def measure(here: str, there: str, folder: str, *, full: bool) -> dict[str, list[Speed]]:
    """Samples a second of every side and round; the cache of a round is filled by its first pass."""
    local, remote = (replace(stream_of(where, view_batch=BATCH), workers=1) for where in (here, there))
    speeds: dict[str, list[Speed]] = {side: [] for side in ("local", "s3", "cached", *(["uncached"] if full else []))}
    for number in range(9 if full else 3):
        cached = replace(remote, store=ShardStoreConfig(cache_dir=f"{folder}/cache-{number}"))
        sides = {"local": local, "s3": cached, "cached": cached, "uncached": remote}
        order = ["s3", "local", "cached"] if number % 2 else ["local", "s3", "cached"]
        for side in order + list(speeds)[3:]:
            speeds[side].append(pass_speed(sides[side], number))
        print(
            f"round {number}, samples a second: "
            + ", ".join(f"{side} {each[-1].per_second:.0f}" for side, each in speeds.items())
        )
    return speeds


if __name__ == "__main__":
    main()
