"""Entry points of `torch.hub`: the model or its encoder, of a named size or from a folder of weights.

    encoder = torch.hub.load(CHECKOUT, "mcjepa_encoder", path="FOLDER", source="local")     trained weights
    model = torch.hub.load(CHECKOUT, "mcjepa_tiny", source="local")                          random weights

FOLDER is what `mcjepa export` writes, or `RUN/weights/step-…`; `nano` comes with the package. Nothing is downloaded.
Models come on the CPU and in evaluation mode; images are RGB in [0, 1], shape (B, 3, H, W).
"""

from __future__ import annotations

import pathlib  # not `Path`: hubs offer every public callable of this file
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mcjepa.model.config import EncoderSize
    from mcjepa.model.encoder import Encoder
    from mcjepa.model.mcjepa import MCJEPA

dependencies = ["torch", "numpy", "safetensors"]


def mcjepa(path: str | pathlib.Path) -> MCJEPA:
    """The whole model of a folder of weights: pyramid, embedding and flow."""
    from mcjepa.model.pretrained import load

    return load(path)


def mcjepa_encoder(path: str | pathlib.Path) -> Encoder:
    """The encoder of a folder of weights, whole or exported with `--only encoder`: images to six maps."""
    from mcjepa.model.pretrained import load_encoder

    return load_encoder(path)


def mcjepa_nano(init_from: str | pathlib.Path = "") -> MCJEPA:
    """The size for CPUs. `init_from`: a safetensors file or folder of mcjepa's or of a published ConvNeXt."""
    return _of_size("nano", init_from)


def mcjepa_tiny(init_from: str | pathlib.Path = "") -> MCJEPA:
    """The paper's size, ConvNeXt-T. `init_from` as for `mcjepa_nano`."""
    return _of_size("tiny", init_from)


def mcjepa_small(init_from: str | pathlib.Path = "") -> MCJEPA:
    """The size of ConvNeXt-S. `init_from` as for `mcjepa_nano`."""
    return _of_size("small", init_from)


def mcjepa_base(init_from: str | pathlib.Path = "") -> MCJEPA:
    """The size of ConvNeXt-B. `init_from` as for `mcjepa_nano`."""
    return _of_size("base", init_from)


def _of_size(size: EncoderSize, init_from: str | pathlib.Path) -> MCJEPA:
    from mcjepa.model.config import EncoderConfig, ModelConfig
    from mcjepa.model.initialize import initialize
    from mcjepa.model.mcjepa import MCJEPA

    model = MCJEPA(ModelConfig(encoder=EncoderConfig(size=size)))
    if init_from:
        initialize(model, init_from)
    return model.eval()
