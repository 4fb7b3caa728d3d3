"""Two workers beside one: samples a second of the same shards through the same Ray.

    python -m benchmarks.prep_scaling [--full]

The packaged clips, cut into shards of a temporary folder; each run in a fresh Ray whose workers have made a shard
already, the sides in alternation. The last line is JSON; `ratio` is two workers over one, of medians, as a user
runs them; the bar is 1.7. Decoders work ahead in a thread, so one worker uses about 1.4 cores where they are free;
--full adds `held_ratio`, with every worker and its decode child held on one processor, which is what Ray reserves
for a task. The machine must have two free cores for either to mean anything.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

from benchmarks.prep_corpus import clip_dataset, plan_into
from data_prep.plan import ShardPlan
from data_prep.ray_job import run_tasks, running_ray
from data_prep.shard_maker import ShardResult, ShardWork
from data_prep.shard_tasks import make_shard

CORES = sorted(os.sched_getaffinity(0))


def make_shard_held(work: ShardWork, plan: ShardPlan) -> ShardResult:
    """Make a shard on the processor of this worker, which its first task takes by a file of the dataset."""
    if len(os.sched_getaffinity(0)) > 1:
        for core in CORES:
            try:
                os.close(os.open(f"{work.location}/held-{core}", os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                continue
            os.sched_setaffinity(0, {core})
            break
    return make_shard(work, plan)


def samples_per_second(root: Path, shards: int, workers: int, *, held: bool) -> float:
    """One run into an empty folder, by fresh workers."""
    work, plans, _ = plan_into(root, clip_dataset(workers + shards))
    make = make_shard_held if held else make_shard
    results: list[ShardResult] = []
    with running_ray("", workers):
        run_tasks(make, work, plans[:workers], workers=workers, on_result=_ignore)
        started = time.perf_counter()
        run_tasks(make, work, plans[workers:], workers=workers, on_result=results.append)
        return sum(r.samples for r in results) / (time.perf_counter() - started)


def _ignore(result: ShardResult) -> None:
    """The first shard of each worker, with which it starts its decoder, does not count."""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="longer runs, more rounds")
    full = parser.parse_args().full
    rounds, shards = (5, 12) if full else (2, 4)
    sides = [(workers, held) for held in ((False, True) if full else (False,)) for workers in (1, 2)]
    speeds: dict[tuple[int, bool], list[float]] = {side: [] for side in sides}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(rounds):
            for (workers, held), found in speeds.items():
                root = Path(folder) / f"{number}-{workers}-{held}"
                found.append(samples_per_second(root, shards, workers, held=held))
    middle = {side: statistics.median(found) for side, found in speeds.items()}
    figures = {f"{w}_{'held' if held else 'free'}_samples_s": round(v, 1) for (w, held), v in middle.items()}
    if full:
        figures["held_ratio"] = round(middle[2, True] / middle[1, True], 3)
    ratio = round(middle[2, False] / middle[1, False], 3)
    print(json.dumps({"benchmark": "prep_scaling", "ratio": ratio, **figures}))


if __name__ == "__main__":
    main()
