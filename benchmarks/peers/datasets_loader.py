# /// script
# dependencies = ["datasets==5.2.0", "torch==2.13.0", "simplejpeg==1.9.0", "opencv-python-headless==5.0.0.93",
#   "pillow==13.0.0", "psutil==7.2.2"]
# ///
"""Hugging Face datasets: the very tars, streamed by its webdataset reader undecoded, shuffled, in torch's loader."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import datasets
import torch
from torch.utils.data import DataLoader, default_collate

from benchmarks.loader_speed import BATCH, widened
from benchmarks.peer_side import serve, shards_in, views_of


def write(shards: list[str], folder: str) -> None:
    """It reads the tars themselves."""


def collate(samples: Sequence[dict[str, Any]]) -> list[torch.Tensor]:
    """Decodes and augments in the loading process."""
    stacked: list[torch.Tensor] = default_collate([views_of(sample["jpg"]["bytes"]) for sample in samples])
    return stacked


@contextlib.contextmanager
def steps(shards: str, folder: str, workers: int, number: int) -> Iterator[Iterator[Any]]:
    """One epoch is more than a round takes."""
    tars = shards_in(shards)
    data = datasets.load_dataset("webdataset", data_files={"train": tars}, split="train", streaming=True)
    data = data.select_columns(["jpg"]).cast_column("jpg", datasets.Image(decode=False))
    data = data.shuffle(seed=number, buffer_size=1000)
    yield map(widened, iter(DataLoader(data, batch_size=BATCH, num_workers=workers, collate_fn=collate)))


if __name__ == "__main__":
    serve(write, steps)
