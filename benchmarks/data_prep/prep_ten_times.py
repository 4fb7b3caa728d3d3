"""Ten times the inputs: time and peak memory of the whole job beside one time.

    python -m benchmarks.prep_ten_times [--full]

The packaged clips, repeated, planned, made and published by one worker in a process of its own, without Ray,
whose start is the same for both. Memory is the greatest sum over the process and its decode child, looked at ten
times a second. The last line is JSON; `ratio` is the time of ten times the inputs over ten times the time of one,
the bar is 1.05; `memory_ratio` is peak over peak.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil

from benchmarks.prep_corpus import clip_dataset, plan_into


def make(root: str, shards: int) -> None:
    """Make and publish a dataset in this process, without Ray; prints seconds."""
    from mcjepa.data_prep.dataset.publish import publish_dataset
    from mcjepa.data_prep.storage import open_store
    from mcjepa.data_prep.workers.shard_maker import ShardMaker

    started = time.perf_counter()
    work, plans, plan = plan_into(root, clip_dataset(shards, samples_per_input=8))
    maker = ShardMaker(work)
    for shard in plans:
        maker.make(shard)
    maker.close()
    publish_dataset(open_store(root), plan)
    print(time.perf_counter() - started)


def measure(root: Path, shards: int) -> tuple[float, float]:
    """Seconds, and the greatest sum of the memory of the process and its children, MiB."""
    code = f"from benchmarks.prep_ten_times import make; make({str(root)!r}, {shards})"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    peak = 0.0
    over = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not over.wait(0.1):
            try:
                family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
                peak = max(peak, sum(p.memory_info().rss for p in family) / (1 << 20))
            except psutil.Error:
                continue

    watcher = threading.Thread(target=watch)
    watcher.start()
    out, _ = process.communicate()
    over.set()
    watcher.join()
    if process.returncode:
        raise SystemExit(process.returncode)
    return float(out), peak


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="more inputs, more rounds")
    full = parser.parse_args().full
    rounds, one = (3, 6) if full else (2, 2)
    found: dict[int, list[tuple[float, float]]] = {1: [], 10: []}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(rounds):
            for times, results in found.items():
                results.append(measure(Path(folder) / f"{number}-{times}", one * times))
    seconds = {times: statistics.median(s for s, _ in results) for times, results in found.items()}
    memory = {times: statistics.median(m for _, m in results) for times, results in found.items()}
    figures = {
        "memory_ratio": round(memory[10] / memory[1], 3),
        "one_s": round(seconds[1], 2),
        "ten_s": round(seconds[10], 2),
        "one_mib": round(memory[1]),
        "ten_mib": round(memory[10]),
    }
    print(json.dumps({"benchmark": "prep_ten_times", "ratio": round(seconds[10] / seconds[1] / 10, 3), **figures}))


if __name__ == "__main__":
    main()
