"""The checks of `benchmarks.gpu_acceptance`, by subject; each is a function of a `Place` and returns its figures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch


class Skipped(Exception):
    """The check says nothing on this device; the message says why."""


@dataclass(frozen=True)
class Place:
    """Where a check runs, reads and writes."""

    out: Path
    """Folder of results."""
    prepared: Path
    """What `prepare` has put together."""
    device: torch.device

    @property
    def on_gpu(self) -> bool:
        """Whether it is an accelerator."""
        return self.device.type == "cuda"


def require(holds: bool, found: str) -> None:
    """Raises:
    AssertionError: the check has not passed; `found` says by what.
    """
    if not holds:
        raise AssertionError(found)


def need_gpu(place: Place, why: str) -> None:
    """Raises:
    Skipped: there is none.
    """
    if not place.on_gpu:
        raise Skipped(f"needs a GPU: {why}")


def synchronize(device: torch.device) -> None:
    """Waits until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize()
