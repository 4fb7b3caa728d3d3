# /// script
# dependencies = ["litdata==0.2.76", "torch==2.13.0", "simplejpeg==1.9.0", "opencv-python-headless==5.0.0.93",
#   "psutil==7.2.2"]
# ///
"""LitData: chunks of raw JPEGs written by `optimize`, read by its shuffled StreamingDataset and its own loader."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import litdata
import torch

from benchmarks.loader_speed import BATCH, widened
from benchmarks.peer_side import jpegs_of, serve, views_of


class Views(litdata.StreamingDataset):
    """Pictures as two views."""

    def __getitem__(self, index: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Decoded and augmented in the loading process."""
        return views_of(super().__getitem__(index))


def write(shards: list[str], folder: str) -> None:
    """64 MB a chunk."""
    litdata.optimize(fn=jpegs_of, inputs=shards, output_dir=folder, chunk_bytes="64MB", num_workers=1)


@contextlib.contextmanager
def steps(shards: str, folder: str, workers: int, number: int) -> Iterator[Iterator[Any]]:
    """One epoch is more than a round takes."""
    data = Views(folder, shuffle=True, seed=number, drop_last=True)
    loader = litdata.StreamingDataLoader(data, batch_size=BATCH, num_workers=workers, drop_last=True)
    yield map(widened, iter(loader))


if __name__ == "__main__":
    serve(write, steps)
