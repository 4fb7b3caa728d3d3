"""Our stream, in our own environment, beside which `peer_table.py` sets the others."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.loader_speed import BATCH
from benchmarks.peer_side import serve
from benchmarks.stream_corpus import stream_of
from mcjepa.pipeline.stream.loader import build_loader
from mcjepa.pipeline.world import disable_malloc_trim


def write(shards: list[str], folder: str) -> None:
    """It reads the tars themselves."""
    disable_malloc_trim()  # as a training process does


@contextlib.contextmanager
def steps(shards: str, folder: str, workers: int, number: int) -> Iterator[Iterator[Any]]:
    """A loader of its own every round."""
    config = replace(stream_of(str(Path(shards).parent), view_batch=BATCH), workers=workers)
    with build_loader(config, rank=0, world_size=1, start_step=0, seed=number) as loader:
        yield loader


if __name__ == "__main__":
    serve(write, steps)
