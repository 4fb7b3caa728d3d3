"""A dataset of a million shards: planning it in a stream, and the manifest that every rank reads.

    python -m benchmarks.scale_plan [--full]

Two sides, each in a process of its own. *Planning*: inputs made up on the fly go through the real `PlanDigest` and
`split_into_shards`, in two sizes, one five times the other: the memory must be the same. *Manifest*: the real
`write_manifest` and `read_manifest` of 100,000 shards (`--full`: a million): bytes, seconds, memory.
The last line is JSON; `ratio` is the memory of reading the manifest of a million shards, scaled from what was measured,
over 1 GiB. Every rank and every loading process does it; the bar is 1.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

LIMIT_MIB, MILLION = 1024.0, 1_000_000
PLANNED = 60_000


def peak_mib() -> float:
    """The most memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def plan(inputs: int) -> None:
    """Plans so many inputs and prints what it took."""
    from mcjepa.data_prep.corpora.items import Input
    from mcjepa.data_prep.plan.plan import PlanDigest, PlannedInput, split_into_shards
    from mcjepa.data_prep.settings import CorpusConfig, DatasetConfig

    config = DatasetConfig(kind="image", corpora=(CorpusConfig(reader="images", path="x"),), inputs_per_shard=1000)
    before, digest = peak_mib(), PlanDigest(config, "decoder 1", "encoder 1")

    def stream() -> Iterator[PlannedInput]:
        for number in range(inputs):
            name = f"{number // 1000:06d}/{number:010d}.jpg"
            planned = PlannedInput(f"0-images/{name}", Input(name=name, uri=f"s3://b/{name}", kind="image"), 100_000)
            digest.add(planned)
            yield planned

    started = time.perf_counter()
    shards = sum(1 for _ in split_into_shards(stream(), config))
    seconds = time.perf_counter() - started
    assert shards == digest.summary().shards == -(-inputs // 1000)
    print(json.dumps({"inputs": inputs, "seconds": round(seconds, 2), "mib": round(peak_mib() - before, 1)}))


def write(folder: str, shards: int) -> None:
    """Publishes a manifest of so many shards."""
    from mcjepa.data_prep.dataset.manifest import (
        DatasetManifest,
        ShardEntry,
        Totals,
        compute_dataset_id,
        write_manifest,
    )

    entries = tuple(ShardEntry(f"image-{n:06d}", f"{n:064x}", 100 << 20, 1000) for n in range(shards))
    totals = Totals(shards, 1000 * shards, (100 << 20) * shards, 1000 * shards, 1000 * shards, 0, 0)
    manifest = DatasetManifest("image", compute_dataset_id(entries), "p", "i", "d", "e", {}, entries, totals)
    assert write_manifest(folder, manifest)


def read(folder: str) -> None:
    """Opens a stream's catalogue over it, as every rank does, and prints what it took."""
    from mcjepa.pipeline.settings.stream import SourceConfig
    from mcjepa.pipeline.stream.catalogue import open_catalogue

    before, started = peak_mib(), time.perf_counter()
    catalogue = open_catalogue([SourceConfig(location=folder)])
    seconds = time.perf_counter() - started
    found = {"shards": len(catalogue.datasets[0].shards), "seconds": round(seconds, 2)}
    print(json.dumps(found | {"mib": round(peak_mib() - before, 1)}))


def run(call: str) -> dict[str, Any]:
    """The figures of a process of its own."""
    code = f"from benchmarks import scale_plan; scale_plan.{call}"
    done = subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout) if done.stdout else {}
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="a million shards, five times the inputs")
    full = parser.parse_args().full
    shards, inputs = (MILLION, 5 * PLANNED) if full else (MILLION // 10, PLANNED)
    few, many = run(f"plan({inputs})"), run(f"plan({5 * inputs})")
    with tempfile.TemporaryDirectory() as folder:
        run(f"write({folder!r}, {shards})")
        size = (Path(folder) / "manifest.json").stat().st_size
        manifest = run(f"read({folder!r})")
    scale = MILLION / shards
    figures = {
        "plan": many,
        "plan_memory_ratio": round((many["mib"] + 1) / (few["mib"] + 1), 2),
        "manifest": manifest,
        "manifest_mib": round(size / 2**20, 1),
        "of_a_million": {
            "manifest_mib": round(size * scale / 2**20),
            "seconds": round(manifest["seconds"] * scale, 1),
            "mib": round(manifest["mib"] * scale),
        },
    }
    print(json.dumps({"benchmark": "scale_plan", "ratio": round(manifest["mib"] * scale / LIMIT_MIB, 2), **figures}))


if __name__ == "__main__":
    main()
