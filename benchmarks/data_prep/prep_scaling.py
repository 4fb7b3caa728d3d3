"""Two workers beside one: samples a second of the same shards through the same Ray.

    python -m benchmarks.prep_scaling [--full]

The packaged clips, cut into shards of a temporary folder; each run in a fresh Ray whose workers have made a shard
already, the sides in alternation. The last line is JSON; `ratio` is two workers over one, of medians, as a user
runs them; the bar is 1.7. The machine must have two free cores for it to mean anything.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

from benchmarks.prep_corpus import clip_dataset, plan_into
from mcjepa.data_prep.workers.ray_job import run_tasks
from mcjepa.data_prep.workers.ray_session import running_ray
from mcjepa.data_prep.workers.shard_maker import ShardResult, make_shard


def samples_per_second(root: Path, shards: int, workers: int) -> float:
    """One run into an empty folder, by fresh workers."""
    work, plans, _ = plan_into(root, clip_dataset(workers + shards))
    results: list[ShardResult] = []
    with running_ray("", workers):
        run_tasks(make_shard, work, plans[:workers], workers=workers, on_result=_ignore)
        started = time.perf_counter()
        run_tasks(make_shard, work, plans[workers:], workers=workers, on_result=results.append)
        return sum(r.samples for r in results) / (time.perf_counter() - started)


def _ignore(result: ShardResult) -> None:
    """The first shard of each worker, with which it starts its decoder, does not count."""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="longer runs, more rounds")
    full = parser.parse_args().full
    rounds, shards = (5, 12) if full else (2, 6)
    speeds: dict[int, list[float]] = {1: [], 2: []}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(rounds):
            for workers, found in speeds.items():
                found.append(samples_per_second(Path(folder) / f"{number}-{workers}", shards, workers))
    one, two = (statistics.median(found) for found in speeds.values())
    figures = {"one_samples_s": round(one, 1), "two_samples_s": round(two, 1)}
    print(json.dumps({"benchmark": "prep_scaling", "ratio": round(two / one, 3), **figures}))


if __name__ == "__main__":
    main()
