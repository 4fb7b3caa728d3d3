"""The stream beside a webdataset pipeline: the same shards, augmentations, batch and worker processes.

    python -m benchmarks.stream_webdataset [--tuned] [--workers N] [--full]

Two views of 224 px of images 256 px high, 64 a step, by two loading processes. The other side is what webdataset's
documentation writes: WebDataset(shards).shuffle(1000).decode("pil").to_tuple("jpg").map(...).batched(64) in a
WebLoader, the views as ToTensor gives them. With `--tuned` it is what an expert makes of it: simplejpeg, pictures as
uint8 between the processes, widened by the process that asks. Both give float tensors to that process. Each side is a
process tree of its own, which starts its loader anew every round, in turn, lets it run in, and times the steps after
that; there are as many rounds as the time allows, at least three. The last line is JSON; `ratio` is the median of the
rounds' stream over webdataset in samples a second by the clock, `cpu_ratio` that in samples a second of processor time,
all of the loader's and its workers': the speed of a machine whose cores are busy, which other programs disturb less.
The bar is 1.3. `memory_ratio` is the stream's memory over webdataset's in the first round, as a training has one loader
(workers of a later one hold what their parent had): of the whole tree, shared pages counted once; its bar is 1.2.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import random
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import webdataset

from benchmarks.loader_speed import BATCH, Speed, jpeg_views, speed_of, widened
from benchmarks.stream_corpus import packaged_samples, publish_copies, stream_of
from mcjepa.pipeline.settings.stream import StreamConfig, ViewAugmentConfig
from mcjepa.pipeline.stream.augment.views import make_views
from mcjepa.pipeline.stream.loader import build_loader
from mcjepa.pipeline.world import disable_malloc_trim
from tests.pipeline.decoded_frame import DecodedFrame

LIMIT_S, LEAST_ROUNDS = 24.0, 3
SIDES = ("stream", "webdataset")


def views_of(sample: tuple[Any], *, config: ViewAugmentConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """Our augmentation of a PIL image, as tensors in [0, 1]."""
    views = make_views(DecodedFrame(np.asarray(sample[0].convert("RGB"))), config, random.Random())
    first, second = (torch.from_numpy(view).permute(2, 0, 1).contiguous().float().div(255) for view in views)
    return first, second


def bytes_of(sample: tuple[bytes], *, config: ViewAugmentConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """The same of a JPEG by simplejpeg, as uint8."""
    return jpeg_views(sample[0], config)


def webdataset_steps(paths: list[str], config: StreamConfig, tuned: bool) -> Iterator[Any]:
    """The pipeline; it begins again at the end of its shards."""
    read = webdataset.WebDataset(paths, shardshuffle=100).shuffle(1000)
    view = config.augment.view
    if tuned:
        made = read.to_tuple("jpg").map(partial(bytes_of, config=view))
    else:
        made = read.decode("pil").to_tuple("jpg").map(partial(views_of, config=view))
    loader = webdataset.WebLoader(made.batched(BATCH), batch_size=None, num_workers=config.workers).repeat()
    return map(widened, loader) if tuned else iter(loader)


def serve(side: str, images: str, workers: int, tuned: bool, pipe: Connection) -> None:
    """One side, in a process of its own: a round for every number that it is told."""
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    if side == "stream":
        disable_malloc_trim()  # as a training process does
    config = replace(stream_of(images, view_batch=BATCH), workers=workers)
    paths = sorted(map(str, Path(images, "shards").glob("*.tar")))
    for number in iter(pipe.recv, None):
        if side == "stream":
            with build_loader(config, rank=0, world_size=1, start_step=0, seed=number) as loader:
                speed = speed_of(loader)
        else:
            steps = webdataset_steps(paths, config, tuned)
            speed = speed_of(steps)
            del steps  # ends its processes
        pipe.send(speed)


def measure(images: str, limit_s: float, workers: int, tuned: bool) -> dict[str, list[Speed]]:
    """Both sides in every round."""
    context, pipes = multiprocessing.get_context("spawn"), {}
    for side in SIDES:
        pipes[side], theirs = context.Pipe()
        context.Process(target=serve, args=(side, images, workers, tuned, theirs)).start()
    speeds: dict[str, list[Speed]] = {side: [] for side in SIDES}
    started, number = time.monotonic(), 0
    try:
        while number < LEAST_ROUNDS or time.monotonic() - started < limit_s:
            for side in SIDES[:: -1 if number % 2 else 1]:
                pipes[side].send(number)
                speeds[side].append(pipes[side].recv())
            print(f"round {number}: " + ", ".join(f"{side} {each[-1].wall:.0f}/s" for side, each in speeds.items()))
            number += 1
    finally:
        for pipe in pipes.values():
            with contextlib.suppress(OSError):  # its process has failed
                pipe.send(None)
    return speeds


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tuned", action="store_true", help="webdataset as an expert would write it")
    parser.add_argument("--workers", type=int, default=2, help="loading processes of each side")
    parser.add_argument("--full", action="store_true", help="many more rounds")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        images = publish_copies(f"{folder}/images", "image", packaged_samples("image"), 8, 500)
        speeds = measure(images, LIMIT_S * (6 if asked.full else 1), asked.workers, asked.tuned)
    pairs = list(zip(*speeds.values(), strict=True))
    ratios = {
        "ratio": statistics.median(ours.wall / theirs.wall for ours, theirs in pairs),
        "cpu_ratio": statistics.median(ours.processor / theirs.processor for ours, theirs in pairs),
    }
    figures = {
        f"{side}_samples_s": round(statistics.median(each.wall for each in them)) for side, them in speeds.items()
    }
    memory = {f"{side}_mib": round(them[0].memory_mib) for side, them in speeds.items()}
    ratios["memory_ratio"] = memory["stream_mib"] / memory["webdataset_mib"]
    rounded = {name: round(value, 2) for name, value in ratios.items()} | {"bar": 1.3, "memory_bar": 1.2}
    how = {"tuned": asked.tuned, "workers": asked.workers, "rounds": len(pairs)}
    print(json.dumps({"benchmark": "stream_webdataset", **rounded, **figures, **memory, **how}))


if __name__ == "__main__":
    main()
