"""A ConvNeXt written down again from its paper as plain functions, and its weights in the layouts that people have."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

WIDTHS, DEPTHS = (8, 8, 12, 16), (1, 2, 1, 1)
TIMM = {"dwconv": "conv_dw", "pwconv1": "mlp.fc1", "pwconv2": "mlp.fc2"}
TRANSFORMERS = {"norm": "layernorm", "gamma": "layer_scale_parameter"}


def original_weights(gamma: bool = True) -> dict[str, Tensor]:
    """Random weights under the names of the authors' code, stem and classifier with them."""
    shapes: dict[str, tuple[int, ...]] = {
        "downsample_layers.0.0.weight": (WIDTHS[0], 3, 4, 4), "downsample_layers.0.0.bias": (WIDTHS[0],),
        "downsample_layers.0.1.weight": (WIDTHS[0],), "downsample_layers.0.1.bias": (WIDTHS[0],),
        "norm.weight": (WIDTHS[3],), "norm.bias": (WIDTHS[3],), "head.weight": (10, WIDTHS[3]), "head.bias": (10,),
    }  # fmt: skip
    for i, (width, depth) in enumerate(zip(WIDTHS, DEPTHS, strict=True)):
        if i:
            before, layer = WIDTHS[i - 1], f"downsample_layers.{i}"
            shapes |= {f"{layer}.0.weight": (before,), f"{layer}.0.bias": (before,)}
            shapes |= {f"{layer}.1.weight": (width, before, 2, 2), f"{layer}.1.bias": (width,)}
        for j in range(depth):
            block = f"stages.{i}.{j}"
            shapes |= {f"{block}.dwconv.weight": (width, 1, 7, 7), f"{block}.dwconv.bias": (width,)}
            shapes |= {f"{block}.norm.weight": (width,), f"{block}.norm.bias": (width,)}
            shapes |= {f"{block}.pwconv1.weight": (4 * width, width), f"{block}.pwconv1.bias": (4 * width,)}
            shapes |= {f"{block}.pwconv2.weight": (width, 4 * width), f"{block}.pwconv2.bias": (width,)}
            shapes |= {f"{block}.gamma": (width,)} if gamma else {}
    return {name: torch.randn(shape) * 0.3 for name, shape in shapes.items()}


def in_timm_layout(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same under timm's names."""
    renamed = {}
    for name, tensor in weights.items():
        words = name.split(".")
        if words[0] == "stages":
            inner = ".".join(TIMM.get(word, word) for word in words[3:])
            name = f"stages.{words[1]}.blocks.{words[2]}.{inner}"
        elif words[0] == "downsample_layers":
            tail = ".".join(words[2:])
            name = f"stem.{tail}" if words[1] == "0" else f"stages.{words[1]}.downsample.{tail}"
        elif words[0] in ("norm", "head"):
            name = f"head.{'norm' if words[0] == 'norm' else 'fc'}.{words[1]}"
        renamed[name] = tensor
    return renamed


def in_transformers_layout(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same under the names of transformers' ConvNextForImageClassification."""
    renamed = {}
    for name, tensor in weights.items():
        words = name.split(".")
        if words[0] == "stages":
            inner = ".".join(TRANSFORMERS.get(word, word) for word in words[3:])
            name = f"convnext.encoder.stages.{words[1]}.layers.{words[2]}.{inner}"
        elif words[:2] == ["downsample_layers", "0"]:
            name = f"convnext.embeddings.{'patch_embeddings' if words[2] == '0' else 'layernorm'}.{words[3]}"
        elif words[0] == "downsample_layers":
            name = f"convnext.encoder.stages.{words[1]}.downsampling_layer.{words[2]}.{words[3]}"
        else:
            name = f"convnext.layernorm.{words[1]}" if words[0] == "norm" else f"classifier.{words[1]}"
        renamed[name] = tensor
    return renamed


def _norm(x_BChw: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    centred = x_BChw - x_BChw.mean(1, keepdim=True)
    normal = centred / (centred.square().mean(1, keepdim=True) + 1e-6).sqrt()
    return normal * weight[:, None, None] + bias[:, None, None]


def stage_output(weights: dict[str, Tensor], i: int, x_BChw: Tensor) -> Tensor:
    """What the published stage i makes of its input, the downsampling before it included (but stage 0's stem)."""
    if i:
        w = {tail: weights[f"downsample_layers.{i}.{tail}"] for tail in ("0.weight", "0.bias", "1.weight", "1.bias")}
        x_BChw = F.conv2d(_norm(x_BChw, w["0.weight"], w["0.bias"]), w["1.weight"], w["1.bias"], stride=2)
    for j in range(DEPTHS[i]):
        start = f"stages.{i}.{j}."
        w = {name.removeprefix(start): tensor for name, tensor in weights.items() if name.startswith(start)}
        y = F.conv2d(x_BChw, w["dwconv.weight"], w["dwconv.bias"], padding=3, groups=WIDTHS[i])
        y = _norm(y, w["norm.weight"], w["norm.bias"])
        y = torch.einsum("oc,bchw->bohw", w["pwconv1.weight"], y) + w["pwconv1.bias"][:, None, None]
        y = 0.5 * y * (1 + torch.erf(y / 2**0.5))
        y = torch.einsum("oc,bchw->bohw", w["pwconv2.weight"], y) + w["pwconv2.bias"][:, None, None]
        x_BChw = x_BChw + y * w.get("gamma", torch.ones(WIDTHS[i]))[:, None, None]
    return x_BChw
