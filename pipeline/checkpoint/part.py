"""One rank's part in one save, and the copy of it that is written while the training goes on."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mcjepa.model import pretrained
from mcjepa.model.config import ModelConfig
from mcjepa.pipeline.checkpoint.manifest import step_name
from mcjepa.pipeline.checkpoint.state_file import write_state
from mcjepa.pipeline.engine.engine import gathered_parameters
from mcjepa.pipeline.engine.state import Piece
from mcjepa.pipeline.run.folder import CHECKPOINTS, WEIGHTS
from mcjepa.pipeline.world import World

MOST_TRIES = 10


@dataclass
class Part:
    """What a rank writes of a save below the run's local folder."""

    run: Path
    """The local folder."""
    step: int
    save: str
    """Random name of this save, which no earlier attempt at the same step shares."""
    name: str
    """Of this rank's state file."""
    pieces: Sequence[Piece]
    weights: Mapping[str, Tensor]
    """The model's state dict on rank 0, empty on the others."""
    config: ModelConfig
    lineage: Mapping[str, Any]
    manifest: dict[str, Any]
    """On rank 0: all of it but the files."""
    entry: dict[str, Any] = field(default_factory=dict)
    """sha256 and bytes of the state file, once it is written."""

    @property
    def key(self) -> str:
        """The checkpoint's folder below the run."""
        return f"{CHECKPOINTS}/{step_name(self.step)}"

    @property
    def path(self) -> Path:
        """The state file."""
        return self.run / self.key / self.name

    def write(self) -> None:
        """Writes the state file, on rank 0 the weights too.

        Raises:
            OSError, SafetensorError: the disk is full or cannot be written.
        """
        digest, size = self._write_state()
        self.entry = {"sha256": digest, "bytes": size}
        if self.weights:
            folder = self.run / WEIGHTS / step_name(self.step)
            self.manifest["weights_sha256"] = pretrained.save(self.weights, self.config, folder, self.lineage)

    def _write_state(self) -> tuple[str, int]:
        """Another rank of the node that has uploaded its file removes the folder if it is empty: it is made again."""
        for _ in range(MOST_TRIES - 1):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileNotFoundError):
                return write_state(self.path, self.pieces)
        return write_state(self.path, self.pieces)

    def remove(self) -> None:
        """Removes what was written of it, to make room."""
        with contextlib.suppress(OSError):
            self.path.unlink(missing_ok=True)
        if self.weights:
            shutil.rmtree(self.run / WEIGHTS / step_name(self.step), ignore_errors=True)


@contextlib.contextmanager
def whole_weights(engine: Any, world: World) -> Iterator[dict[str, Tensor]]:
    """The model's state dict in fp32 on rank 0, nothing on the others; all ranks enter it (ZeRO-3 gathers)."""
    with gathered_parameters(engine):
        state = {} if world.rank else engine.module.state_dict()
        yield {name: each.float() if each.is_floating_point() else each for name, each in state.items()}


class Snapshot:
    """Copies of tensors in this machine's memory; copies of the same shapes use the same memory again.

    Ordinary memory, also for a GPU's tensors: pinned memory would halve a wait that is a second between saves of many
    minutes, and could not be lent to anybody else.
    """

    def __init__(self) -> None:
        self._held: list[Tensor] = []

    def copy(self, part: Part) -> Part:
        """The part with copies of its tensors, which hold until the next call."""
        sources = [piece.values for piece in part.pieces] + list(part.weights.values())
        if [each.shape for each in self._held] != [each.shape for each in sources]:
            self._held = [torch.empty_like(each, device="cpu") for each in sources]
        for target, source in zip(self._held, sources, strict=True):
            target.copy_(source.detach())
        count = len(part.pieces)
        pieces = [replace(piece, values=values) for piece, values in zip(part.pieces, self._held, strict=False)]
        return replace(part, pieces=pieces, weights=dict(zip(part.weights, self._held[count:], strict=True)))
