"""The stream beside a plain webdataset pipeline: the same shards, augmentations, batch and worker processes.

    python -m benchmarks.stream_webdataset [--full]

Two views of 224 px of images 256 px high, 64 a step, by two loading processes. The other side is what webdataset's
documentation writes: WebDataset(shards).shuffle(1000).decode("pil").to_tuple("jpg").map_tuple(...).batched(64) in a
WebLoader, the views as ToTensor gives them. Both give float tensors to the process that asks. Every round starts both
loaders anew, in turn, lets them run in, and times the steps after that; there are as many rounds as the time allows, at
least three. The last line is JSON; `ratio` is the median of the rounds' stream over webdataset in samples a second by
the clock, `cpu_ratio` that in samples a second of processor time, all of the loader's and its workers': the speed of a
machine whose cores are busy, which other programs disturb less. The bar is 1.3.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import webdataset

from benchmarks.stream_corpus import packaged_samples, processor_seconds, publish_copies, stream_of
from mcjepa.pipeline.settings.stream import StreamConfig, ViewAugmentConfig
from mcjepa.pipeline.stream.augment.views import make_views
from mcjepa.pipeline.stream.loader import build_loader
from mcjepa.pipeline.world import disable_malloc_trim
from tests.pipeline.decoded_frame import DecodedFrame

BATCH, WORKERS, RUN_IN_STEPS, TIMED_STEPS = 64, 2, 4, 10
LIMIT_S, LEAST_ROUNDS = 30.0, 3


def views_of(picture: Any, *, config: ViewAugmentConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """Our augmentation of a PIL image, as tensors in [0, 1]."""
    views = make_views(DecodedFrame(np.asarray(picture.convert("RGB"))), config, random.Random())
    first, second = (torch.from_numpy(view).permute(2, 0, 1).contiguous().float().div(255) for view in views)
    return first, second


def webdataset_steps(paths: list[str], config: StreamConfig) -> Iterator[Any]:
    """The plain pipeline; it begins again at the end of its shards."""
    dataset = (
        webdataset.WebDataset(paths, shardshuffle=100)
        .shuffle(1000)
        .decode("pil")
        .to_tuple("jpg")
        .map_tuple(partial(views_of, config=config.augment.view))
        .batched(BATCH)
    )
    return iter(webdataset.WebLoader(dataset, batch_size=None, num_workers=WORKERS).repeat())


def speed_of(steps: Iterator[Any]) -> tuple[float, float]:
    """Samples a second of the clock and of the processors, of the steps after the first."""
    for _ in range(RUN_IN_STEPS):
        next(steps)
    started, used = time.perf_counter(), processor_seconds()
    for _ in range(TIMED_STEPS):
        next(steps)
    samples = TIMED_STEPS * BATCH
    return samples / (time.perf_counter() - started), samples / (processor_seconds() - used)


def measure(images: str, limit_s: float) -> dict[str, list[tuple[float, float]]]:
    """Samples a second of both sides in every round."""
    config = replace(stream_of(images, view_batch=BATCH), workers=WORKERS)
    paths = sorted(map(str, Path(images, "shards").glob("*.tar")))
    speeds: dict[str, list[tuple[float, float]]] = {"stream": [], "webdataset": []}
    started, number = time.monotonic(), 0
    while number < LEAST_ROUNDS or time.monotonic() - started < limit_s:
        for side in sorted(speeds, reverse=bool(number % 2)):
            if side == "stream":
                with build_loader(config, rank=0, world_size=1, start_step=0, seed=number) as loader:
                    speeds[side].append(speed_of(loader))
            else:
                steps = webdataset_steps(paths, config)
                speeds[side].append(speed_of(steps))
                del steps  # ends its processes
        print(f"round {number}: " + ", ".join(f"{side} {each[-1][0]:.0f}/s" for side, each in speeds.items()))
        number += 1
    return speeds


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="many more rounds")
    limit_s = LIMIT_S * (6 if parser.parse_args().full else 1)
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    disable_malloc_trim()  # as a training process does
    with tempfile.TemporaryDirectory() as folder:
        images = publish_copies(f"{folder}/images", "image", packaged_samples("image"), 8, 500)
        speeds = measure(images, limit_s)
    wall, used = (
        statistics.median(ours[which] / theirs[which] for ours, theirs in zip(*speeds.values(), strict=True))
        for which in (0, 1)
    )
    figures = {f"{side}_samples_s": round(statistics.median(each[0] for each in them)) for side, them in speeds.items()}
    ratios = {"ratio": round(wall, 2), "cpu_ratio": round(used, 2), "bar": 1.3}
    print(json.dumps({"benchmark": "stream_webdataset", **ratios, **figures, "rounds": len(speeds["stream"])}))


if __name__ == "__main__":
    main()
