"""The order of a billion samples: what a rank needs to open the stream at any cursor, and whether it stays the same.

    python -m benchmarks.scale_order [--full]

A catalogue on paper of 250,000 shards of 1,000 samples (`--full`: a million shards, a billion samples), the real
`Catalogue` and `SampleOrder`. A process of its own opens it as one of 64 ranks, at step 0 and at a step within epoch
89, and takes its share of a step of 4,096 samples; then as one of 4,096 ranks, in the 64 lanes of a recipe that says
nothing and in 4,096 lanes.
The last line is JSON; `ratio` is the worst of all, of memory over 1 GiB (a rank has a few dozen GiB of host memory,
shared with its loading processes, which each hold a catalogue) and time over 10 s (a start is minutes); the bar is 1.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from typing import Any

SAMPLES_PER_SHARD, BATCH, WINDOW = 1000, 4096, 4096
LIMIT_MIB, LIMIT_S = 1024.0, 10.0


def peak_mib() -> float:
    """The most memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def open_order(shards: int, lanes: int, ranks: int) -> None:
    """Opens the stream as the last rank and prints what it took."""
    import numpy as np

    from mcjepa.pipeline.stream import order as stream
    from mcjepa.pipeline.stream.catalogue import Catalogue
    from mcjepa.pipeline.stream.dataset_shards import DatasetShards

    before = peak_mib()
    names = tuple(f"image-{number:06d}" for number in range(shards))
    dataset = DatasetShards(
        location="s3://bucket/images",
        dataset_id="0" * 64,
        kind="image",
        shards=names,
        samples=(SAMPLES_PER_SHARD,) * shards,
        sha256=tuple(f"{number:064x}" for number in range(shards)),
        bytes=(100 << 20,) * shards,
    )
    started = time.perf_counter()
    catalogue = Catalogue([dataset], [stream.SourceCounts(dataset.samples)])
    order = stream.SampleOrder(catalogue.counts, batch=BATCH, window=WINDOW, seed=1, lanes=lanes)
    catalogue_s = time.perf_counter() - started
    seconds = []
    for step in (0, 89 * order.steps_per_epoch + order.steps_per_epoch * 2 // 3):
        started = time.perf_counter()
        epoch, ids = order.step_samples(step, rank=ranks - 1, world_size=ranks)
        addresses = catalogue.locate(order.sample_indexes(epoch, ids))
        seconds.append(time.perf_counter() - started)
        assert len(addresses) == BATCH // ranks and len(np.unique(ids)) == len(ids)
    started = time.perf_counter()
    for step in range(1, 21):
        order.step_samples(step, rank=ranks - 1, world_size=ranks)
    each = (time.perf_counter() - started) / 20
    figures = {
        "catalogue_s": round(catalogue_s, 2),
        "first_s": round(seconds[0], 3),
        "late_s": round(seconds[1], 3),
        "step_ms": round(1e3 * each, 2),
        "mib": round(peak_mib() - before),
    }
    print(json.dumps(figures))


def measure(shards: int, lanes: int, ranks: int) -> dict[str, Any]:
    """The figures of a process of its own."""
    code = f"from benchmarks.scale_order import open_order; open_order({shards}, {lanes}, {ranks})"
    done = subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def main() -> None:
    """Measure both and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="a million shards")
    shards = 1_000_000 if parser.parse_args().full else 250_000
    cases = ((64, 64), (64, 4096), (4096, 4096))
    found = {f"lanes_{lanes}_ranks_{ranks}": measure(shards, lanes, ranks) for lanes, ranks in cases}
    whole = 1_000_000 / shards  # the catalogue grows with the shards
    memory = max(each["mib"] for each in found.values()) * whole / LIMIT_MIB
    seconds = max(each["catalogue_s"] + each["late_s"] for each in found.values()) * whole / LIMIT_S
    for name, figures in found.items():
        print(name, figures)
    record = {"benchmark": "scale_order", "ratio": round(max(memory, seconds), 3), "shards": shards, **found}
    print(json.dumps(record))


if __name__ == "__main__":
    main()
