"""What a step of the two streams looks like, between processes and in front of the model."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.utils.data

ALIGNMENT = 16
"""Floats between places at which a vector may begin, 64 bytes, as torch's own."""
MOST_PLACES = 8
"""The four stacks of a step, while the one before is still in use."""
UNUSED = 3
"""References to memory in which no tensor lies: the list's, the loop's and that of the question."""


@dataclass(frozen=True)
class CorruptRecord:
    """A sample that could not be decoded, and what took its place."""

    sample: str
    """Shard, location and key."""
    reason: str
    replaced_by: str
    """Key of the sample that was drawn from the stream instead."""


@dataclass(frozen=True)
class RawBatch:
    """Two aligned stacks of images as they travel between processes: uint8, a quarter of floats."""

    first: torch.Tensor
    """(B, H, W, 3) uint8 RGB, as pictures are decoded."""
    second: torch.Tensor
    """Same shape; its image i belongs to image i of `first`."""
    keys: tuple[str, ...]
    """Keys of the B samples."""
    corrupt: tuple[CorruptRecord, ...] = ()
    """The samples among them that were replaced."""

    def pin_memory(self) -> RawBatch:
        """The same in page-locked memory, from which a GPU copies at full speed."""
        return RawBatch(self.first.pin_memory(), self.second.pin_memory(), self.keys, self.corrupt)

    def to_floats(
        self, device: torch.device, memory_format: torch.memory_format, memory: FloatMemory | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Both stacks on `device` as (B, 3, H, W) float32 in [0, 1]; the bytes are moved before they are widened.

        Args:
            device: where to.
            memory_format: `channels_last` leaves the pictures as they lie, which is how an encoder takes them;
                `contiguous_format` is what arithmetic on the three colours wants.
            memory: where the floats of a CPU are put; newly allocated without it.
        """
        if memory and device.type == "cpu":
            return memory.widen(self.first, memory_format), memory.widen(self.second, memory_format)
        first, second = (
            images.to(device, non_blocking=True).permute(0, 3, 1, 2).to(torch.float32, memory_format=memory_format)
            for images in (self.first, self.second)
        )
        return first.div_(255), second.div_(255)


class FloatMemory:
    """Memory of widened stacks, which is given again when no tensor lies in it any more.

    A stack is tens of MB. The allocator, which keeps what is freed (`world.disable_malloc_trim`), finds the place of an
    earlier one again by luck: the loading process grew to 240 or to 640 MiB at the same work.
    """

    def __init__(self) -> None:
        self._places: list[np.ndarray] = []

    def widen(self, images: torch.Tensor, memory_format: torch.memory_format) -> torch.Tensor:
        """(B, H, W, 3) uint8 as (B, 3, H, W) float32 in [0, 1]."""
        flat = torch.from_numpy(self._place(images.numel()))
        if memory_format is torch.channels_last:
            return flat.view(images.shape).copy_(images).div_(255).permute(0, 3, 1, 2)
        by_colour = images.permute(0, 3, 1, 2)
        return flat.view(by_colour.shape).copy_(by_colour).div_(255)

    def _place(self, count: int) -> np.ndarray:
        for place in self._places:
            if place.size == count and sys.getrefcount(place) == UNUSED:
                return place
        memory = np.empty(count + ALIGNMENT, np.float32)
        start = -memory.ctypes.data // memory.itemsize % ALIGNMENT
        place = memory[start : start + count]
        if len(self._places) < MOST_PLACES:
            self._places.append(place)
        return place


@dataclass(frozen=True)
class PairBatch:
    """Frame pairs of the motion branch."""

    frame0: torch.Tensor
    """(B, 3, H, W) float32 RGB in [0, 1]."""
    frame1: torch.Tensor
    """The next frames (the ones before in swapped pairs), same shape."""
    keys: tuple[str, ...]
    """Keys of the samples, in the batch's order."""

    def as_dict(self) -> dict[str, torch.Tensor]:
        """`frame0` and `frame1`."""
        return {"frame0": self.frame0, "frame1": self.frame1}


@dataclass(frozen=True)
class ViewBatch:
    """Two views of each image of the content branch."""

    view0: torch.Tensor
    """(B, 3, S, S) float32 RGB in [0, 1], in channels-last memory."""
    view1: torch.Tensor
    """Other views of the same images, same shape."""
    keys: tuple[str, ...]
    """Keys of the samples, in the batch's order."""

    def as_dict(self) -> dict[str, torch.Tensor]:
        """`view0` and `view1`."""
        return {"view0": self.view0, "view1": self.view1}


@dataclass(frozen=True)
class StepBatch:
    """All that one rank reads for one step."""

    step: int
    """Number of the step, counted from 0 over the whole run."""
    pairs: PairBatch | None
    """None where the motion branch is left out or it is not its turn."""
    views: ViewBatch | None
    """None where the content branch is left out or it is not its turn."""
    corrupt: tuple[CorruptRecord, ...] = ()
    """Samples of this step that could not be decoded and were replaced, of both streams."""


class ImageStack:
    """Images of one size, each of which is written to its place as the last step of its making.

    Attributes:
        tensor: (B, H, W, 3) uint8, uninitialised at first.
        places: the same memory, an HxWx3 array by image.
    """

    def __init__(self, count: int, size: tuple[int, int]) -> None:
        """Make room for `count` images of a height and width, px."""
        self.tensor = _empty_bytes((count, *size, 3))
        self.places: Sequence[np.ndarray] = list(self.tensor.numpy())


def _empty_bytes(shape: tuple[int, ...]) -> torch.Tensor:
    """An uninitialised uint8 tensor; in a loading process in shared memory, where it would be copied to otherwise.

    That memory has no name: torch's own has one in /dev/shm while it is allocated, and a worker ended at that moment
    leaves it there for good. Nor does it count against the size of /dev/shm, which containers keep small.
    """
    count = math.prod(shape)
    if torch.utils.data.get_worker_info() is None or not count:
        return torch.empty(shape, dtype=torch.uint8)
    if not hasattr(os, "memfd_create"):  # Linux has it
        return torch.empty(0, dtype=torch.uint8).set_(torch.UntypedStorage._new_shared(count)).view(shape)
    descriptor = os.memfd_create("mcjepa-batch")
    try:
        os.truncate(descriptor, count)
        # It keeps a copy of the descriptor; torch's stubs lack it.
        storage = torch.UntypedStorage._new_shared_fd_cpu(descriptor, count)  # type: ignore[attr-defined]
    finally:
        os.close(descriptor)
    return torch.empty(0, dtype=torch.uint8).set_(storage).view(shape)
