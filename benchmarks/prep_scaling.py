"""Two workers beside one: samples a second of the same shards through the same Ray.

    python -m benchmarks.prep_scaling [--full]

The packaged clips, cut into shards of a temporary folder; both sides in one Ray that is already running, in
alternation. The last line is JSON; `ratio` is two workers over one, of medians. The bar is 1.7; decoding is
bound by the processor, so the machine must have two free cores for it to mean anything.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

from benchmarks.prep_corpus import clip_dataset, plan_into
from data_prep.ray_job import run_tasks, running_ray
from data_prep.shard_maker import ShardResult
from data_prep.shard_tasks import make_shard


def samples_per_second(root: Path, shards: int, workers: int) -> float:
    """One run into an empty folder."""
    work, plans, _ = plan_into(root, clip_dataset(shards))
    results: list[ShardResult] = []
    started = time.perf_counter()
    run_tasks(make_shard, work, plans, workers=workers, on_result=results.append)
    return sum(r.samples for r in results) / (time.perf_counter() - started)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="longer runs, more rounds")
    full = parser.parse_args().full
    rounds, shards = (5, 16) if full else (3, 6)
    speeds: dict[int, list[float]] = {1: [], 2: []}
    with tempfile.TemporaryDirectory() as folder, running_ray("", 2):
        for workers in speeds:
            samples_per_second(Path(folder) / f"warm-{workers}", 2, workers)
        for number in range(rounds):
            for workers, found in speeds.items():
                found.append(samples_per_second(Path(folder) / f"{number}-{workers}", shards, workers))
    one, two = (statistics.median(speeds[workers]) for workers in (1, 2))
    print(f"one worker {one:.0f} samples/s, two {two:.0f}")
    figures = {"one_samples_s": round(one, 1), "two_samples_s": round(two, 1)}
    print(json.dumps({"benchmark": "prep_scaling", "ratio": round(two / one, 3), **figures}))


if __name__ == "__main__":
    main()
