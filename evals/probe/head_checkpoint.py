"""Checkpoints of a head in training: `CACHE/heads/KEY.pt`, gone when the training is done.

A step's batch depends on the seed and the step alone, so head, optimiser and step are all that a continued training
needs to end with the same bits on the CPU.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import logging
from pathlib import Path

import torch

from mcjepa.data_prep.errors import DataError
from mcjepa.data_prep.storage import atomic_write
from mcjepa.evals.probe.head import LinearHead
from mcjepa.evals.probe.settings import ProbeConfig

SHAPES_NO_TRAINING = (
    *("root", "val_split", "window_px", "window_stride_px", "knn_k", "knn_temperature", "knn_cells", "max_val"),
    *("workers", "seeds", "cache", "cache_gib", "keep_features", "checkpoint_steps", "random_baseline", "pictures"),
)
"""Settings that change nothing in the training of a head."""
log = logging.getLogger(__name__)


def training_key(model: str, images: str, config: ProbeConfig, seed: int) -> str:
    """What a head's training depends on, as one digest: encoder, training images, settings and seed."""
    settings = {k: v for k, v in dataclasses.asdict(config).items() if k not in SHAPES_NO_TRAINING}
    parts = {"model": model, "images": images, "settings": settings, "seed": seed, "torch": torch.__version__}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


class HeadCheckpoint:
    """Where a training is saved, and how often."""

    def __init__(self, path: Path, every_steps: int) -> None:
        """A checkpoint file, written every so many steps."""
        self._path, self._every = path, every_steps

    def load(self, head: LinearHead, optimizer: torch.optim.Optimizer) -> int:
        """Brings head and optimiser to where an earlier process saved them; the step to go on with, 0 without one.

        Raises:
            DataError: the file is damaged.
        """
        if not self._path.is_file():
            return 0
        try:
            state = torch.load(self._path, map_location="cpu", weights_only=True)
            head.load_state_dict(state["head"])
            optimizer.load_state_dict(state["optimizer"])
        except Exception as error:  # damaged bytes fail in any way in the unpickler
            raise DataError(
                f"the head's checkpoint {self._path} cannot be read ({error}); expected one that this training wrote; "
                "remove it: the head is trained from its start"
            ) from error
        log.info("the head goes on at step %d from %s", state["step"], self._path)
        return int(state["step"])

    def after(self, step: int, steps: int, head: LinearHead, optimizer: torch.optim.Optimizer) -> None:
        """Saves after that many steps where it is time, and removes the file after the last."""
        if step == steps:
            self._path.unlink(missing_ok=True)
        elif step % self._every == 0:
            buffer = io.BytesIO()
            torch.save({"step": step, "head": head.state_dict(), "optimizer": optimizer.state_dict()}, buffer)
            atomic_write(self._path, buffer.getvalue())
