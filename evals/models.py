"""What an evaluation needs of a model: features of an image and flow of a pair; and our weights behind it.

Any other model is scored by giving it these two methods. Legend: B batch, 3 RGB in [0, 1], H W image, C
channel, h w feature map.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from mcjepa.data_prep.errors import DataError
from mcjepa.model.mcjepa import MCJEPA
from mcjepa.model.numerics import set_numerics
from mcjepa.model.pretrained import (
    CONFIG_NAME,
    WeightsError,
    file_digest,
    is_encoder_alone,
    load,
    load_encoder,
    read_config,
    weights_digest,
    weights_folder,
)

COARSEST_STRIDE = 64


class EvalModel(Protocol):
    """The two methods that every evaluation works with."""

    def features(self, image_B3HW: Tensor) -> list[Tensor]:
        """Feature maps (B, C, h, w), finest first, of images whose sides are multiples of 64 px."""
        ...

    def flow(self, frame0_B3HW: Tensor, frame1_B3HW: Tensor) -> Tensor:
        """Flow (B, 2, H, W) from frame0 to frame1, px, (right, down), for frames of any size."""
        ...


@dataclass(frozen=True, kw_only=True)
class Weights:
    """A folder of weights and what its own record says of where they come from."""

    folder: Path
    """Folder that `model.pretrained.save` wrote."""

    digest: str
    """sha256 of the weights file."""

    identity: str
    """sha256 over the weights file and its config.json: what the same input gives the same results for."""

    lineage: Mapping[str, Any]
    """Run, step, dataset ids, …: whatever the training wrote beside them."""


def read_weights(folder: Path | str) -> Weights:
    """Digest and lineage of a weights folder, without building the model.

    Raises:
        DataError: the folder is absent or damaged.
    """
    folder = weights_folder(folder)
    try:
        _, lineage = read_config(folder)
        digest, configured = weights_digest(folder), file_digest(folder / CONFIG_NAME)
        identity = hashlib.sha256(f"{digest} {configured}".encode()).hexdigest()
        return Weights(folder=folder, digest=digest, identity=identity, lineage=lineage)
    except WeightsError as error:
        raise DataError(str(error)) from error
    except FileNotFoundError as error:
        raise DataError(f"{error.filename} is not there, expected it beside its config; export again") from error


class McJepaEvalModel:
    """Our model in evaluation mode behind the two methods; frames are moved to its device and results
    back."""

    def __init__(self, model: MCJEPA, device: torch.device, has_flow: bool = True) -> None:
        """Takes the model over: it is moved to `device` and set to evaluation mode.

        Args:
            model: our model.
            device: where it runs.
            has_flow: False if only its encoder has weights: it is then asked for no flow.
        """
        self.model = model.to(device).eval()
        self.device, self.has_flow = device, has_flow

    @torch.inference_mode()
    def features(self, image_B3HW: Tensor) -> list[Tensor]:
        """See `EvalModel.features`; maps are float32 on the CPU."""
        maps = self.model.forward_pyramid(image_B3HW.to(self.device))
        return [map_BChw.float().cpu() for map_BChw in maps]

    @torch.inference_mode()
    def flow(self, frame0_B3HW: Tensor, frame1_B3HW: Tensor) -> Tensor:
        """See `EvalModel.flow`; float32 on the CPU.

        Raises:
            DataError: the weights are those of an encoder alone.
        """
        if not self.has_flow:
            raise DataError("the weights are of an encoder alone, expected a whole model to estimate flow; export that")
        return self.model.estimate_flow(frame0_B3HW.to(self.device), frame1_B3HW.to(self.device)).float().cpu()


def choose_device(name: str) -> torch.device:
    """The device of that name; `auto` is the GPU if there is one. A score's fp32 is not TF32 from then on.

    Raises:
        DataError: `cuda` is asked for where there is none.
    """
    set_numerics()
    if name == "cuda" and not torch.cuda.is_available():
        raise DataError("device is cuda but no GPU was found; expected one that torch sees; pass device=auto or cpu")
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(name)


def device_of(model: EvalModel) -> torch.device:
    """Where what is computed of its features is computed: beside the encoder; the CPU where it does not say."""
    found = getattr(model, "device", None)
    return found if isinstance(found, torch.device) else torch.device("cpu")


def load_model(folder: Path, device: torch.device) -> McJepaEvalModel:
    """The model of that folder (safetensors and config), whole or its encoder alone, ready to be scored.

    Raises:
        DataError: a file is absent or damaged.
    """
    try:
        if not is_encoder_alone(folder):
            return McJepaEvalModel(load(folder), device)
        model = MCJEPA(read_config(folder)[0])
        model.encoder = load_encoder(folder)
        return McJepaEvalModel(model, device, has_flow=False)
    except WeightsError as error:
        raise DataError(str(error)) from error


def random_twin(model: McJepaEvalModel, seed: int) -> McJepaEvalModel:
    """A model of the same configuration with fresh random weights: what training has to beat."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return McJepaEvalModel(MCJEPA(model.model.config), model.device)


def image_tensor(image_HW3: NDArray[np.uint8]) -> Tensor:
    """An RGB picture (H, W, 3) uint8 as (1, 3, H, W) float32 in [0, 1]."""
    return torch.from_numpy(np.ascontiguousarray(image_HW3)).permute(2, 0, 1).float().div(255.0)[None]


def features_by_stride(model: EvalModel, image_B3HW: Tensor) -> dict[int, Tensor]:
    """Feature maps of images of any size, by stride.

    Images are padded at the right and at the bottom to multiples of 64 px by repeating the edge, so that cell
    (i, j) of the map of stride s covers the pixels from (i s, j s) on; cells that lie wholly in the padding
    are kept: the caller crops them after resizing, which keeps all levels aligned.

    Returns:
        Stride in px to the map (B, C, h, w) with h = padded height / stride.

    Raises:
        ValueError: a map is not a whole fraction of the padded image.
    """
    height, width = image_B3HW.shape[-2:]
    pad = (0, -width % COARSEST_STRIDE, 0, -height % COARSEST_STRIDE)
    padded = F.pad(image_B3HW, pad, mode="replicate") if any(pad) else image_B3HW
    maps: dict[int, Tensor] = {}
    for map_BChw in model.features(padded):
        stride, rest = divmod(padded.shape[-2], map_BChw.shape[-2])
        if rest or map_BChw.shape[-1] * stride != padded.shape[-1]:
            raise ValueError(
                f"a feature map has {tuple(map_BChw.shape[-2:])} cells for an image of "
                f"{tuple(padded.shape[-2:])} px; expected a whole stride, equal on both axes; "
                f"return one map a pyramid level without cropping"
            )
        maps[stride] = map_BChw
    return maps


def map_of_stride(maps: dict[int, Tensor], stride: int) -> Tensor:
    """The map of that stride.

    Raises:
        ValueError: the model has no such level.
    """
    if stride not in maps:
        raise ValueError(f"the model has no level of stride {stride}; expected one of {sorted(maps)}; choose another")
    return maps[stride]


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """The model that is scored and what its cards say of it."""

    model: EvalModel
    """Its two methods."""

    name: str
    """Model and size, for people."""

    digest: str = ""
    """sha256 of its weights; empty if they are no file."""

    identity: str = ""
    """See `Weights.identity`; empty if they are no file."""

    lineage: Mapping[str, Any] = field(default_factory=dict)
    """Where the weights come from: run, step, dataset ids."""

    random_model: EvalModel | None = None
    """A randomly initialised twin, the probe's baseline; None = there is none."""

    @property
    def kept_as(self) -> str:
        """What features and networks that are stored of this model are known by; empty: none are."""
        return self.identity or self.digest


def load_for_scoring(weights: Weights | Path | str, device: str, seed: int) -> LoadedModel:
    """Our model of a weights folder with its name, digest, lineage and random twin.

    Args:
        weights: a folder that `model.pretrained.save` wrote, or what `read_weights` says of it.
        device: auto, cpu or cuda.
        seed: of the random twin.

    Raises:
        DataError: the folder is absent or damaged, or there is no such device.
    """
    known = weights if isinstance(weights, Weights) else read_weights(weights)
    model = load_model(known.folder, choose_device(device))
    parameters = sum(parameter.numel() for parameter in model.model.parameters())
    return LoadedModel(
        model=model,
        name=f"{type(model.model).__name__}, {parameters / 1e6:.2f} M parameters",
        digest=known.digest,
        identity=known.identity,
        lineage=known.lineage,
        random_model=random_twin(model, seed),
    )
