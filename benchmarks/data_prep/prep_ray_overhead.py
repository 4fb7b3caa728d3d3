"""What Ray costs: the same shards by Ray's tasks and by two bare processes, start and end included.

    python -m benchmarks.prep_ray_overhead [--full]

Bare: a pool of two spawned processes that take the same shards from the same plan, each on a processor of its own
as Ray's workers are. The sides alternate. Start
and end of Ray are paid once a run and the rest by the shard, so from a short run the cost of a run of one
minute is computed as (start + end + shards' time x 60 / bare time) / 60; --full runs the minute. The last line
is JSON; `ratio` is a run of one minute by Ray over the bare one. The bar is 1.05.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import tempfile
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from benchmarks.prep_corpus import clip_dataset, plan_into
from mcjepa.data_prep.process import one_processor
from mcjepa.data_prep.workers.ray_job import run_tasks
from mcjepa.data_prep.workers.ray_session import running_ray
from mcjepa.data_prep.workers.shard_maker import make_shard

MINUTE_S = 60.0
WORKERS = 2


def by_ray(root: Path, shards: int) -> tuple[float, float]:
    """Seconds of start and end together, and of the shards."""
    work, plans, _ = plan_into(root, clip_dataset(shards))
    started = time.perf_counter()
    with running_ray("", WORKERS):
        begun = time.perf_counter()
        run_tasks(make_shard, work, plans, workers=WORKERS, on_result=lambda result: None)
        made = time.perf_counter()
    return begun - started + time.perf_counter() - made, made - begun


def by_processes(root: Path, shards: int) -> tuple[float, float]:
    """The same by a pool of bare processes."""
    work, plans, _ = plan_into(root, clip_dataset(shards))
    started = time.perf_counter()
    with multiprocessing.get_context("spawn").Pool(WORKERS, _keep_to_one_processor) as pool:
        begun = time.perf_counter()
        for _ in pool.imap_unordered(partial(make_shard, work), plans):
            pass
        made = time.perf_counter()
    return begun - started + time.perf_counter() - made, made - begun


_PROCESSOR = ExitStack()


def _keep_to_one_processor() -> None:
    _PROCESSOR.enter_context(one_processor())


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="runs of about one minute")
    full = parser.parse_args().full
    rounds, shards = (2, 64) if full else (2, 7)
    found: dict[str, list[tuple[float, float]]] = {"ray": [], "bare": []}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(rounds):
            found["ray"].append(by_ray(Path(folder) / f"{number}-ray", shards))
            found["bare"].append(by_processes(Path(folder) / f"{number}-bare", shards))
    fixed = {side: statistics.median(f for f, _ in times) for side, times in found.items()}
    loop = {side: statistics.median(t for _, t in times) for side, times in found.items()}
    bare_loop_of_a_minute = MINUTE_S - fixed["bare"]
    ratio = (fixed["ray"] + loop["ray"] * bare_loop_of_a_minute / loop["bare"]) / MINUTE_S
    figures = {f"{side}_{name}_s": round(v[side], 2) for name, v in (("fixed", fixed), ("shards", loop)) for side in v}
    print(json.dumps({"benchmark": "prep_ray_overhead", "ratio": round(ratio, 3), **figures}))


if __name__ == "__main__":
    main()
