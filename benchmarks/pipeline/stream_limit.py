"""The stream beside a tight loop of its own decode and augment calls, in one process.

    python -m benchmarks.stream_limit [--full]

48 images (two views of 224 px) and a pair (256 x 384 px) a step, the share of each of the paper's 8 ranks, from shards
in a temporary folder. The stream gives whole steps as they leave a loading process: order, index, read, decode,
augment, stacks of bytes. The tight loop makes the same views and pairs of the same samples with the same seeds, their
bytes already in memory, and throws them away.
The sides take turns, step by step. Times are those of the processor, in which neither side waits for anything: the
machine is shared. The last line is JSON; `ratio` is the stream's speed over the loop's, the bar 0.95;
`ratio_with_floats` has the widening to floats too, which the training process does (on an accelerator, if it has one).
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time

import cv2
import torch

from benchmarks.stream_corpus import MemoryFrame, packaged_samples, publish_copies, stream_of
from mcjepa.pipeline.settings.stream import StreamConfig
from mcjepa.pipeline.stream.augment.pairs import choose_frames, make_pair
from mcjepa.pipeline.stream.augment.views import make_views
from mcjepa.pipeline.stream.samples import SampleStream, pair_stream, view_stream
from mcjepa.pipeline.stream.seeding import mix64, seeded_random
from mcjepa.pipeline.stream.shard_reader import ShardReader
from mcjepa.pipeline.world import disable_malloc_trim

SEED = 7


def fetch(stream: SampleStream, step: int) -> list[tuple[tuple[int, int], list[bytes]]]:
    """The samples of a step: what seeds each, and the bytes of its frames."""
    reader = ShardReader(stream.catalogue, StreamConfig().store)
    epoch, ids = stream.order.step_samples(step)
    fetched = []
    for sample_id, sample in zip(ids.tolist(), reader.find_all(stream.order.sample_indexes(epoch, ids)), strict=True):
        suffixes = sorted(name for name in sample.members if name.endswith("jpg"))
        fetched.append(((epoch, sample_id), reader.read(sample, suffixes)))
    reader.close()
    return fetched


def loop_seconds(config: StreamConfig, pairs: SampleStream, views: SampleStream, step: int) -> float:
    """Decode and augment a step's samples, nothing else."""
    fetched_pairs, fetched_views = fetch(pairs, step), fetch(views, step)
    augment = config.augment
    started = time.process_time()
    for drawn_for, contents in fetched_pairs:
        rng = seeded_random(mix64(SEED, "pairs"), "augment", *drawn_for)
        first, second = choose_frames(len(contents), rng, augment.pair)
        make_pair(MemoryFrame(contents[first]), MemoryFrame(contents[second]), augment.pair, rng)
    for drawn_for, contents in fetched_views:
        rng = seeded_random(mix64(SEED, "views"), "augment", *drawn_for)
        make_views(MemoryFrame(contents[0]), augment.view, rng)
    return time.process_time() - started


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="more steps")
    steps = 150 if parser.parse_args().full else 40
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    disable_malloc_trim()  # as a training process does
    with tempfile.TemporaryDirectory() as folder:
        images = publish_copies(f"{folder}/images", "image", packaged_samples("image"), 8, 500)
        clips = publish_copies(f"{folder}/clips", "clip", packaged_samples("clip"), 4, 250)
        times = measure(stream_of(images, clips, view_batch=48, pair_batch=1), steps)
    per_step = {name: statistics.median(each) for name, each in times.items()}
    ratios = {
        name: statistics.median(loop / ours for loop, ours in zip(times["loop"], times[name], strict=True))
        for name in ("stream", "with_floats")
    }
    figures = {f"{name}_ms_a_step": round(1e3 * seconds, 1) for name, seconds in per_step.items()}
    print(
        json.dumps(
            {
                "benchmark": "stream_limit",
                "ratio": round(ratios["stream"], 3),
                "bar": 0.95,
                "ratio_with_floats": round(ratios["with_floats"], 3),
                **figures,
                "steps": steps,
            }
        )
    )


def measure(config: StreamConfig, steps: int) -> dict[str, list[float]]:
    """Seconds of every step of each side, after two for warming up."""
    streams = pair_stream(config, SEED), view_stream(config, SEED)
    cpu = torch.device("cpu")
    times: dict[str, list[float]] = {"stream": [], "with_floats": [], "loop": []}
    for step in range(steps + 2):
        started = time.process_time()
        batches = [stream.read(step, 0, 1, lambda: False) for stream in streams]
        read = time.process_time()
        for batch, memory_format in zip(batches, (torch.contiguous_format, torch.channels_last), strict=True):
            batch.to_floats(cpu, memory_format)
        times["with_floats"].append(time.process_time() - started)
        times["stream"].append(read - started)
        times["loop"].append(loop_seconds(config, *streams, step))
    return {name: each[2:] for name, each in times.items()}


if __name__ == "__main__":
    main()
