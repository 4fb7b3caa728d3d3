"""Memory of a node that opens a dataset of a million shards: 8 ranks with 16 loading processes, and one with two.

    python -m benchmarks.scale_start [--full]

Each side is a process that has imported all and forks its ranks, as the kernel would share their libraries. They open
the real loader at the same moment over a bucket on paper (`paper_store`: a real manifest of 200,000 shards of 1,000
images, a million with `--full`) and take their first step, so that the loading processes are forked and have looked.
What is counted is the growth since the fork, of all processes together, each page once (Pss of smaps_rollup), and the
peak of the one that reads. A third side is the same 24 processes over a dataset of a hundred shards: what they take
anyway. Readings of the manifest are counted in the store.

The last line is JSON; `ratio` is what 8 ranks take of memory more than one does, over 1 GiB (bar 1); without `--full`
what grows with the shards is scaled to a million. More than one reading of the manifest is a ratio of so many.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import psutil

LIMIT_MIB, MILLION, SAMPLES, WORKERS, WORLD = 1024.0, 1_000_000, 1000, 2, 8
WAIT_S = 300


def pss_mib(pids: list[int]) -> float:
    """Memory of processes, shared pages by their share."""
    return sum(_kib(pid, "smaps_rollup", "Pss:") for pid in pids) / 1024


def _kib(pid: int, file: str, field: str) -> int:
    lines = Path(f"/proc/{pid}/{file}").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


@contextlib.contextmanager
def paper_bucket(folder: Path, log: Path) -> Iterator[None]:
    """While it is held, the stream's stores are the bucket on paper."""
    from benchmarks.paper_store import PaperStore

    store = PaperStore(folder, SAMPLES, log)
    with contextlib.ExitStack() as stack:
        for module in ("manifest_index", "shard_reader"):
            stack.enter_context(mock.patch(f"mcjepa.pipeline.stream.{module}.open_store", store.as_store))
        yield


def rank(number: int, start: Any, told: Any, end: Any) -> None:
    """One rank: opens the loader, takes a step, tells what it took, and waits."""
    from benchmarks.paper_store import LOCATION
    from mcjepa.pipeline.settings.stream import (
        AugmentConfig,
        SourceConfig,
        StreamConfig,
        ViewAugmentConfig,
    )
    from mcjepa.pipeline.stream.loader import build_loader
    from mcjepa.pipeline.world import disable_malloc_trim

    disable_malloc_trim()
    config = StreamConfig(
        views=(SourceConfig(location=LOCATION),), pair_batch=0, view_batch=8 * WORLD,
        augment=AugmentConfig(view=ViewAugmentConfig(size=32)), workers=WORKERS,
    )  # fmt: skip
    start.wait(WAIT_S)
    before, started = _kib(os.getpid(), "status", "VmHWM:"), time.perf_counter()
    loader = build_loader(config, rank=number, world_size=WORLD, start_step=0, seed=1)
    seconds = time.perf_counter() - started
    peak = (_kib(os.getpid(), "status", "VmHWM:") - before) / 1024
    next(loader)
    told.put({"seconds": seconds, "peak_mib": peak, "samples": loader.describe()["views"].samples})
    end.wait(WAIT_S)
    loader.close()


def node(folder: str, ranks: int) -> None:
    """Starts the ranks and prints what they took."""
    import mcjepa.pipeline.stream.loader  # noqa: F401
    from benchmarks.paper_store import counted, image

    image()
    fork = multiprocessing.get_context("fork")
    start, told, end = fork.Event(), fork.Queue(), fork.Event()
    with tempfile.TemporaryDirectory() as scratch, paper_bucket(Path(folder), Path(scratch) / "log"):
        tempfile.tempdir = scratch
        processes = [fork.Process(target=rank, args=(number, start, told, end)) for number in range(ranks)]
        for process in processes:
            process.start()
        time.sleep(1)
        ours = [os.getpid(), *(process.pid or 0 for process in processes)]
        before = pss_mib(ours)
        start.set()
        found = [told.get(timeout=WAIT_S) for _ in processes]
        workers = [child.pid for child in psutil.Process().children(recursive=True) if child.pid not in ours]
        after = pss_mib(ours + workers)
        figures = {
            "processes": f"{ranks} + {len(workers)}",
            "mib": round(after - before),
            "whole_mib": round(after),
            "peak_mib": round(max(each["peak_mib"] for each in found)),
            "seconds": round(max(each["seconds"] for each in found), 1),
            "requests": counted(Path(scratch) / "log"),
        }
        end.set()
        for process in processes:
            process.join(WAIT_S)
    assert len({each["samples"] for each in found}) == 1 and len(workers) == WORKERS * ranks
    print(json.dumps(figures))


def measure(folder: Path, ranks: int) -> dict[str, Any]:
    """The figures of a node of its own."""
    code = f"from benchmarks import scale_start; scale_start.node({str(folder)!r}, {ranks})"
    done = subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="a million shards")
    shards = MILLION if parser.parse_args().full else MILLION // 5
    from benchmarks.paper_store import write_manifest

    with tempfile.TemporaryDirectory() as scratch:
        large, small = Path(scratch) / "large", Path(scratch) / "small"
        for folder, count in ((large, shards), (small, 100)):
            folder.mkdir()
            size = write_manifest(folder, count, SAMPLES)
            print(f"{count} shards: a manifest of {size / 1e6:.1f} MB", flush=True)
        found = {}
        for name, folder, ranks in (("one", large, 1), ("node", large, WORLD), ("node_small", small, WORLD)):
            found[name] = measure(folder, ranks)
            print(name, found[name], flush=True)
    scale = MILLION / shards
    by_shards = found["node"]["mib"] - found["node_small"]["mib"]
    more = (found["node"]["mib"] - found["one"]["mib"] - by_shards) + by_shards * scale
    figures = {"of_the_shards_mib": by_shards, "more_than_one_mib": round(more), "shards": shards, **found}
    readings = found["node"]["requests"].get("manifests", 0)
    figures["manifest_reads"] = readings
    ratio = more / LIMIT_MIB if readings == 1 else float(readings)
    print(json.dumps({"benchmark": "scale_start", "ratio": round(ratio, 2), **figures}))


if __name__ == "__main__":
    main()
