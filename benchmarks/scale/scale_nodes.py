"""The start of 512 nodes with 8 ranks each: what all of them ask of the bucket, counted from the real code.

    python -m benchmarks.scale_nodes [--full]

Every rank of every node is opened, one after the other, each node with temporary files of its own: the real view stream
over a bucket on paper (`paper_store`: a real manifest of 2,000 shards of 100 images, 50,000 with `--full`), the
comparison of its share of the shards (`stream.store.check: sizes`; `sampled`, the default, reads four shards more), and
its share of the first step of 4,096 images. Opened one after the other, each rank looks for itself which manifest is
the present one; of ranks that open together one or two a node look (`scale_start`). What a million shards of 1,000
images would take is derived from the counts, and called so; that a node with a million shards reads its manifest once
is measured by `scale_start --full`.

The last line is JSON; `ratio` is readings of the manifest over nodes: the bar is 1. It was one a rank, 8.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any
from unittest import mock

from benchmarks.paper_store import LOCATION, PaperStore, write_manifest
from mcjepa.pipeline.settings.stream import AugmentConfig, SourceConfig, StreamConfig, ViewAugmentConfig
from mcjepa.pipeline.stream.samples import view_stream
from mcjepa.pipeline.stream.shard_check import LISTED, MOST_LISTS, find_shard_damage

NODES, RANKS, SAMPLES = 512, 8, 100
MILLION = 1_000_000
WORLD = NODES * RANKS
CONFIG = StreamConfig(
    views=(SourceConfig(location=LOCATION),), pair_batch=0, view_batch=WORLD, lanes=WORLD, window=256,
    augment=AugmentConfig(view=ViewAugmentConfig(size=32)),
)  # fmt: skip


def open_rank(rank: int, store: PaperStore, phases: dict[str, Counter[str]]) -> None:
    """One rank's start; its requests are added to those of each phase."""

    def into(phase: str) -> None:
        phases[phase].update(store.requests)
        phases[f"{phase} bytes"].update(store.bytes)
        store.requests.clear()
        store.bytes.clear()

    stream = view_stream(CONFIG, 1, shared=True)
    into("manifest")
    problem = find_shard_damage({"views": stream.catalogue}, "sizes", draw=1, rank=rank, world_size=WORLD)
    into("check")
    assert problem == ""
    read = stream.read(0, rank, WORLD, lambda: False)
    into("first step")
    assert len(read.keys) == 1
    stream.close()


def start(folder: Path) -> dict[str, Counter[str]]:
    """All nodes; counts of all ranks by phase."""
    store = PaperStore(folder, SAMPLES)
    names = ("manifest", "check", "first step")
    phases: dict[str, Counter[str]] = {name: Counter() for each in names for name in (each, f"{each} bytes")}
    with contextlib.ExitStack() as stack:
        for module in ("manifest_index", "shard_reader", "shard_check"):
            stack.enter_context(mock.patch(f"mcjepa.pipeline.stream.{module}.open_store", store.as_store))
        for node in range(NODES):
            with tempfile.TemporaryDirectory() as scratch, mock.patch.object(tempfile, "tempdir", scratch):
                for local in range(RANKS):
                    open_rank(node * RANKS + local, store, phases)
    return phases


def derived(manifest_bytes: int, shards: int, sidecar_bytes: float) -> dict[str, Any]:
    """What a million shards of 1,000 images would ask, by the counts of fewer."""
    size = manifest_bytes * MILLION / shards
    return {
        "manifest_gb_all_nodes": round(size * NODES / 1e9, 1),
        "manifest_gb_if_each_rank_read": round(size * WORLD / 1e9),
        "check_lists": min(-(-MILLION // LISTED), MOST_LISTS * WORLD),
        "first_step_sidecar_mb": round(sidecar_bytes * 1000 / SAMPLES * WORLD / 1e6),
    }


def main() -> None:
    """Count and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="50,000 shards")
    shards = 50_000 if parser.parse_args().full else 2_000
    started = time.process_time()
    with tempfile.TemporaryDirectory() as scratch:
        manifest_bytes = write_manifest(Path(scratch), shards, SAMPLES)
        phases = start(Path(scratch))
    for name, counts in phases.items():
        print(name, dict(counts))
    reads = phases["manifest"]["manifests"]
    figures = {
        "nodes": NODES,
        "ranks": WORLD,
        "shards": shards,
        "manifest_reads": reads,
        "manifest_mb": round(phases["manifest bytes"]["manifests"] / 1e6, 1),
        "manifest_heads_a_rank": phases["manifest"]["heads"] / WORLD,
        "check_lists": phases["check"]["lists"],
        "check_heads": phases["check"]["heads"],
        "first_step": dict(phases["first step"]),
        "first_step_mb": round(sum(phases["first step bytes"].values()) / 1e6, 1),
        "derived_for_a_million_shards": derived(
            manifest_bytes, shards, phases["first step bytes"]["sidecars"] / phases["first step"]["sidecars"]
        ),
        "cpu_s": round(time.process_time() - started, 1),
    }
    print(json.dumps({"benchmark": "scale_nodes", "ratio": round(reads / NODES, 3), **figures}))


if __name__ == "__main__":
    main()
