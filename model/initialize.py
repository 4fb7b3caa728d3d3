"""Starts a model from weights that exist: a weights folder of mcjepa, or a published ConvNeXt for the encoder's stages.

safetensors only: other formats of weights are pickles, which can run code while they are read.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from mcjepa.model.convnext import is_published, stage_weights
from mcjepa.model.mcjepa import MCJEPA
from mcjepa.model.pretrained import WEIGHTS_NAME, WeightsError, file_digest, weights_folder


@dataclass(frozen=True)
class Initialization:
    """What was loaded from where."""

    file: Path
    digest: str
    """sha256 of the file."""
    layout: str
    """`mcjepa` or `convnext`."""
    loaded: tuple[str, ...]
    """The model's tensors that now hold the file's values."""
    left: tuple[str, ...]
    """The file's tensors that have no place in the model."""
    kept: tuple[str, ...]
    """The model's tensors that keep their values."""

    def __str__(self) -> str:
        left = f"; left in the file: {_heads(self.left)}" if self.left else ""
        kept = f"; not in it: {_heads(self.kept)}" if self.kept else ""
        return f"{len(self.loaded)} tensors from {self.file} ({self.layout}, sha256 {self.digest[:12]}){left}{kept}"


def initialize(model: MCJEPA, path: str | Path) -> Initialization:
    """Loads weights into a model, in place.

    Args:
        model: its configuration decides; the file must fit it.
        path: a safetensors file, a shipped name (`nano`), or a folder that holds one: a weights folder (whole or the
            encoder alone), or a ConvNeXt in the layout of its authors, of timm or of transformers.

    Returns:
        What was loaded, left and kept.

    Raises:
        WeightsError: no such file, not safetensors, of an unknown layout, or of other shapes than the model.
    """
    file = _find(weights_folder(path).expanduser())
    try:
        tensors = load_file(str(file))
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{file} is no readable safetensors file ({error}); fetch or export it again") from error
    own = model.state_dict()
    if is_published(tensors):
        layout = "convnext"
        published = stage_weights(tensors, model.encoder.state_dict())
        state, left = {f"encoder.{name}": tensor for name, tensor in published.state.items()}, published.left
    else:
        layout, state, left = "mcjepa", dict(tensors), ()
        _check_own(file, state, own)
    with torch.no_grad():
        for name, tensor in state.items():
            own[name].copy_(tensor)  # a state dict shares memory with its model
    kept = tuple(name for name in own if name not in state)
    return Initialization(file, file_digest(file), layout, tuple(sorted(state)), left, kept)


def _find(path: Path) -> Path:
    if path.is_dir():
        files = [path / WEIGHTS_NAME] if (path / WEIGHTS_NAME).is_file() else sorted(path.glob("*.safetensors"))
        if len(files) != 1:
            raise WeightsError(f"{path} holds {len(files)} safetensors files, expected one; name the file itself")
        return files[0]
    if not path.is_file():
        raise WeightsError(f"no weights at {path}, expected a safetensors file or a folder with one; correct the path")
    if path.suffix != ".safetensors":
        raise WeightsError(f"{path} is no .safetensors file, expected one; convert it where you trust its content")
    return path


def _check_own(file: Path, state: dict[str, Tensor], own: dict[str, Tensor]) -> None:
    odd = sorted(name for name, tensor in state.items() if name not in own or own[name].shape != tensor.shape)
    if not state or not any(name in own for name in state):
        raise WeightsError(f"{file} holds no tensor of this model, nor a ConvNeXt; expected mcjepa's or a ConvNeXt's")
    if odd:
        expected = tuple(own[odd[0]].shape) if odd[0] in own else "nothing of that name"
        raise WeightsError(
            f"{len(odd)} tensors of {file} do not fit the model: {odd[0]} is {tuple(state[odd[0]].shape)}, expected "
            f"{expected}; use the configuration beside the file, or `mcjepa export --only encoder`"
        )


def _heads(names: tuple[str, ...]) -> str:
    """Names shortened to their modules, each once, in order."""
    return ", ".join(dict.fromkeys(".".join(name.split(".")[:2]) for name in names))
