"""What the measurements of loaders share, whichever loader it is: its speed and memory, and what its steps hold.

Peers in environments of their own import it too, so it needs no more than torch, OpenCV, simplejpeg, psutil and our
augmentations.
"""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import psutil
import simplejpeg
import torch

from mcjepa.pipeline.settings.stream import ViewAugmentConfig
from mcjepa.pipeline.stream.augment.views import make_views
from tests.pipeline.decoded_frame import DecodedFrame

BATCH, RUN_IN_STEPS, TIMED_STEPS = 64, 4, 10
Views = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Speed:
    """One round of one side."""

    wall: float
    """Samples a second of the clock."""
    processor: float
    """Samples a second of the processors."""
    memory_mib: float


def jpeg_views(data: bytes, config: ViewAugmentConfig) -> Views:
    """Our augmentation of what simplejpeg decodes, as uint8 that are as they lie, (H, W, 3) each."""
    picture: np.ndarray = simplejpeg.decode_jpeg(data, colorspace="RGB")
    first, second = map(torch.from_numpy, make_views(DecodedFrame(picture), config, random.Random()))
    return first, second


def widened(batch: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """Channels-last floats in [0, 1], as the stream gives them."""
    return tuple(
        images.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.channels_last).div_(255) for images in batch
    )


def processor_seconds() -> float:
    """Processor time so far of this process and of all that it started and that still run, servers among them."""
    total = 0.0
    for process in (own := psutil.Process(), *own.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            used = process.cpu_times()
            total += used.user + used.system
    return total


def memory_mib() -> float:
    """Of this process and all below it; pages that several share are counted once."""
    own = psutil.Process()
    return sum(p.memory_full_info().pss for p in (own, *own.children(recursive=True))) / 2**20


def speed_of(steps: Iterator[Any]) -> Speed:
    """Of the steps after the first."""
    for _ in range(RUN_IN_STEPS):
        next(steps)
    started, used = time.perf_counter(), processor_seconds()
    for _ in range(TIMED_STEPS):
        batch = next(steps)
    wall, used = time.perf_counter() - started, processor_seconds() - used
    memory = memory_mib()
    del batch
    return Speed(TIMED_STEPS * BATCH / wall, TIMED_STEPS * BATCH / used, memory)
