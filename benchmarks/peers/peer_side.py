"""One loader as a side of `peer_table.py`: told a number a line, it runs a round and prints what it took.

    python -m benchmarks.NAME SHARDS FOLDER WORKERS

NAME is the side's file; SHARDS holds the tars of the common input; in FOLDER the side keeps its own form of them, which
is written before the rounds and is not timed.
"""

from __future__ import annotations

import json
import sys
import tarfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import cv2
import torch

from benchmarks.loader_speed import BATCH, jpeg_views, speed_of
from mcjepa.pipeline.settings.stream import ViewAugmentConfig

CONFIG = ViewAugmentConfig()


def shards_in(folder: str) -> list[str]:
    """The tars, in order."""
    return sorted(map(str, Path(folder).glob("*.tar")))


def jpegs_of(shard: str) -> Iterator[bytes]:
    """Every picture of a tar."""
    with tarfile.open(shard) as tar:
        for member in tar:
            if member.name.endswith(".jpg") and (file := tar.extractfile(member)):
                yield file.read()


def views_of(data: bytes) -> tuple[torch.Tensor, torch.Tensor]:
    """Two views of 224 px of a JPEG, uint8, by simplejpeg and our augmentations: the same on every side."""
    return jpeg_views(data, CONFIG)


def serve(
    write: Callable[[list[str], str], None],
    steps: Callable[[str, str, int, int], AbstractContextManager[Iterator[Any]]],
) -> None:
    """Writes the side's own form of the shards, then runs a round a line until there are no more.

    Args:
        write: `fn(shards, folder)`.
        steps: `fn(shards folder, folder, workers, number of the round)`: endless steps of `BATCH` samples, floats.
    """
    shards, folder, workers = sys.argv[1], sys.argv[2], int(sys.argv[3])
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    write(shards_in(shards), folder)
    print(json.dumps({"ready": BATCH}), flush=True)
    for line in sys.stdin:
        with steps(shards, folder, workers, int(line)) as batches:
            speed = speed_of(batches)
        print(json.dumps(asdict(speed)), flush=True)
