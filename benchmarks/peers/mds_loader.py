# /// script
# dependencies = ["mosaicml-streaming==0.13.0", "torch==2.13.0", "simplejpeg==1.9.0",
#   "opencv-python-headless==5.0.0.93", "psutil==7.2.2"]
# ///
"""mosaicml-streaming: raw JPEGs in MDS shards of 64 MB, read by its shuffled StreamingDataset in torch's loader."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import library
from torch.utils.data import DataLoader

from benchmarks.loader_speed import BATCH, widened
from benchmarks.peer_side import jpegs_of, serve, views_of

# PyPI's torchvision is built for CUDA; beside torch's CPU build its operators are missing, and its import stops at two
# of them. The package imports it, and nothing of it is used here.
try:
    import torchvision  # noqa: F401
except RuntimeError:
    for name in ("nms", "qnms"):
        library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

import streaming
from streaming.base.util import clean_stale_shared_memory


class Views(streaming.StreamingDataset):
    """Pictures as two views."""

    def __getitem__(self, at: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Decoded and augmented in the loading process."""
        return views_of(super().__getitem__(at)["jpg"])


def write(shards: list[str], folder: str) -> None:
    """One column of bytes."""
    with streaming.MDSWriter(out=folder, columns={"jpg": "bytes"}, size_limit="64mb") as out:
        for shard in shards:
            for data in jpegs_of(shard):
                out.write({"jpg": data})


@contextlib.contextmanager
def steps(shards: str, folder: str, workers: int, number: int) -> Iterator[Iterator[Any]]:
    """One epoch is more than a round takes."""
    clean_stale_shared_memory()
    data = Views(local=folder, shuffle=True, shuffle_seed=number, batch_size=BATCH)
    loader: DataLoader[Any] = DataLoader(data, batch_size=BATCH, num_workers=workers, drop_last=True)
    yield map(widened, iter(loader))


if __name__ == "__main__":
    serve(write, steps)
