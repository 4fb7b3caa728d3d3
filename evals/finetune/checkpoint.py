"""Checkpoints of fine-tuning: a kill loses the steps since the last one, and a finished network is not trained again.

    FOLDER/checkpoint.pt              while training: network, optimizer, step, curve, and whose they are
    FOLDER/segmenter.safetensors      when it is done: the network; the rest in its metadata

Both hold the identity of the training (weights, data, settings, seed); files of another one are refused.
"""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from safetensors.torch import save as safetensors_bytes
from torch import Tensor

from mcjepa.data_prep.errors import DataError
from mcjepa.data_prep.storage import atomic_write
from mcjepa.evals.finetune.model import Segmenter

CHECKPOINT, FINISHED = "checkpoint.pt", "segmenter.safetensors"
MOST_DIFFERENCES = 4
DAMAGE = (KeyError, TypeError, ValueError, RuntimeError, EOFError, pickle.UnpicklingError, zipfile.BadZipFile)
"""What reading a damaged checkpoint may raise."""


@dataclass
class TrainingProgress:
    """How far a training is, beside network and optimizer."""

    step: int = 0
    """Steps done."""

    curve: list[tuple[int, float]] = field(default_factory=list)
    """(steps done, mean loss since the point before)."""

    failed: list[str] = field(default_factory=list)
    """ "name: reason" of training images that were replaced, each once."""

    def note_failures(self, failures: tuple[str, ...]) -> None:
        """Adds those that are not known yet."""
        self.failed.extend(sorted(set(failures) - set(self.failed)))


class Keeper:
    """Reads and writes the state of one training in its folder."""

    def __init__(self, folder: Path, identity: Mapping[str, Any]) -> None:
        self.folder = folder
        self.identity = json.loads(json.dumps(identity))

    def load_finished(self, network: Segmenter) -> TrainingProgress | None:
        """Loads a finished network; None if there is none.

        Raises:
            DataError: it is damaged, or of another training.
        """
        path = self.folder / FINISHED
        if not path.is_file():
            return None
        try:
            with safe_open(str(path), "pt") as file:
                record = json.loads((file.metadata() or {})["record"])
            self._check(path, record["identity"])
            tensors = load_file(str(path))
            if tensors_digest(tensors) != record["digest"]:
                raise ValueError("its tensors have another sha256 than when it was written")
            network.load_state_dict(tensors)
        except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
            raise _damaged(path, error) from error
        return _progress(record)

    def load_checkpoint(self, network: Segmenter, optimizer: torch.optim.Optimizer) -> TrainingProgress | None:
        """Loads an unfinished training into both; None if there is none.

        Raises:
            DataError: it is damaged, or of another training.
        """
        path = self.folder / CHECKPOINT
        if not path.is_file():
            return None
        try:
            _check_zip(path)
            state = torch.load(path, map_location="cpu", weights_only=True)
            record = json.loads(state["record"])
            self._check(path, record["identity"])
            network.load_state_dict(state["network"])
            optimizer.load_state_dict(state["optimizer"])
        except DAMAGE as error:
            raise _damaged(path, error) from error
        return _progress(record)

    def save_checkpoint(self, network: Segmenter, optimizer: torch.optim.Optimizer, progress: TrainingProgress) -> None:
        """Replaces the checkpoint, at once or not at all."""
        buffer = io.BytesIO()
        state = {"network": network.state_dict(), "optimizer": optimizer.state_dict(), "record": self._record(progress)}
        torch.save(state, buffer)
        atomic_write(self.folder / CHECKPOINT, buffer.getvalue())

    def finish(self, network: Segmenter, progress: TrainingProgress) -> None:
        """Writes the finished network and removes the checkpoint."""
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
        record = self._record(progress, digest=tensors_digest(tensors))
        atomic_write(self.folder / FINISHED, safetensors_bytes(tensors, metadata={"record": record}))
        (self.folder / CHECKPOINT).unlink(missing_ok=True)

    def _record(self, progress: TrainingProgress, **more: str) -> str:
        kept = {"step": progress.step, "curve": progress.curve, "failed": progress.failed}
        return json.dumps({"identity": self.identity, **kept, **more})

    def _check(self, path: Path, found: Mapping[str, Any]) -> None:
        names = sorted(set(found) | set(self.identity))
        wrong = [name for name in names if found.get(name) != self.identity.get(name)]
        if not wrong:
            return
        shown = ", ".join(f"{n} {found.get(n)!r} (now {self.identity.get(n)!r})" for n in wrong[:MOST_DIFFERENCES])
        more = f" and {len(wrong) - MOST_DIFFERENCES} more" if len(wrong) > MOST_DIFFERENCES else ""
        raise DataError(
            f"{path} is of another training: {shown}{more}; expected the same weights, data and settings; "
            "choose another --out, or remove the file to train anew"
        )


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """sha256 over names and bytes of tensors on the CPU, by name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def _check_zip(path: Path) -> None:
    """torch.load does not look at the checksums that torch.save wrote."""
    with zipfile.ZipFile(path) as archive:
        bad = archive.testzip()
    if bad:
        raise ValueError(f"{bad} in it has another checksum than when it was written")


def _progress(record: Mapping[str, Any]) -> TrainingProgress:
    curve = [(int(step), float(loss)) for step, loss in record["curve"]]
    return TrainingProgress(step=int(record["step"]), curve=curve, failed=[str(name) for name in record["failed"]])


def _damaged(path: Path, error: Exception) -> DataError:
    if isinstance(error, DataError):
        return error
    reason = (str(error).splitlines() or [type(error).__name__])[0].split(". ")[0]
    return DataError(f"{path} is damaged ({reason}); expected a file that mcjepa wrote; remove it to train anew")
