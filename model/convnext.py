"""Published ConvNeXt weights as weights of our encoder's stages: names, shapes and LayerScale.

The layouts that people have as safetensors (Liu et al. 2022, "A ConvNet for the 2020s"), i and j counting from 0:

    original      downsample_layers.i.{0,1}            stages.i.j.{dwconv,norm,pwconv1,pwconv2,gamma}
    timm          stages.i.downsample.{0,1}            stages.i.blocks.j.{conv_dw,norm,mlp.fc1,mlp.fc2,gamma}
    transformers  encoder.stages.i.downsampling_layer  encoder.stages.i.layers.j.{dwconv,layernorm,pwconv1,pwconv2,
                  .{0,1}                               layer_scale_parameter}

Their stem is one 4x4 convolution of stride 4, ours two convolutions and a downsampler in front of the first stage, so
stem and first downsampler keep their values; the other three downsamplers and all blocks are mapped one to one.
A block without LayerScale takes gamma into its last layer, which is exact:
gamma * (W h + b) = (diag(gamma) W) h + gamma * b.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mcjepa.model.pretrained import WeightsError

_LAYERS = {
    "dwconv": "depthwise", "conv_dw": "depthwise",
    "norm": "norm", "layernorm": "norm",
    "pwconv1": "expand", "mlp.fc1": "expand",
    "pwconv2": "contract", "mlp.fc2": "contract",
}  # fmt: skip
_IN_BLOCK = {f"{theirs}.{kind}": f"{ours}.{kind}" for theirs, ours in _LAYERS.items() for kind in ("weight", "bias")}
_IN_BLOCK |= {"gamma": "scale", "layer_scale_parameter": "scale"}
_DEPTHWISE = ("dwconv.weight", "conv_dw.weight")  # no other model, nor ours, calls a layer so
_BLOCK = re.compile(r"(?P<prefix>(?:.*\.)?)stages\.(?P<i>\d+)\.(?:(?:blocks|layers)\.)?(?P<j>\d+)\.(?P<rest>.+)")
_DOWNSAMPLER = re.compile(
    r"(?P<prefix>(?:.*\.)?)(?:downsample_layers\.(?P<a>\d+)|stages\.(?P<b>\d+)\.downsampl(?:e|ing_layer))"
    r"\.(?P<rest>[01]\.(?:weight|bias))"
)


@dataclass(frozen=True)
class StageWeights:
    """What a published file holds for an encoder: tensors under the encoder's names, and the names that were left."""

    state: dict[str, Tensor]
    left: tuple[str, ...]


def is_published(names: Iterable[str]) -> bool:
    """Whether these tensor names are of one of the layouts above."""
    return any((found := _BLOCK.fullmatch(name)) and found["rest"] in _DEPTHWISE for name in names)


def stage_weights(tensors: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> StageWeights:
    """Translates a published ConvNeXt.

    Args:
        tensors: the file's content, any floating type.
        own: state dict of the encoder that they are for; it is not changed.

    Returns:
        fp32 tensors for all stages and the downsamplers between them, and the file's names without a place (stem,
        classifier, final norm).

    Raises:
        WeightsError: another depth or width, a block of another kind, or two models in one file.
    """
    state, left = _translate(tensors)
    wanted = {n: t for n, t in own.items() if n.startswith("stages.") or re.match(r"downsamplers\.[1-9]", n)}
    for name in [n for n in state if n.endswith(".scale") and n not in wanted]:
        _fold_scale(state, name)
    for name in [n for n in wanted if n.endswith(".scale") and n not in state]:
        state[name] = torch.ones_like(wanted[name])
    for name, tensor in state.items():  # 1x1 convolutions are linear layers; some files store them as such
        if name in wanted and tensor.ndim == 4 and wanted[name].ndim == 2:
            state[name] = tensor.flatten(1)
    _check_fit(state, wanted)
    return StageWeights(state, left)


def _translate(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Tensors under our names, in fp32, and the names that have none."""
    state: dict[str, Tensor] = {}
    left: list[str] = []
    for name, tensor in sorted(tensors.items()):
        block, between = _BLOCK.fullmatch(name), _DOWNSAMPLER.fullmatch(name)
        stage = int((between["a"] or between["b"]) if between else 0)
        if between and stage:
            ours = f"downsamplers.{stage}.{between['rest']}"
        elif block and block["rest"] in _IN_BLOCK:
            ours = f"stages.{int(block['i'])}.{int(block['j'])}.{_IN_BLOCK[block['rest']]}"
        elif block:
            raise WeightsError(
                f"{name} is no part of a ConvNeXt block, expected depthwise, norm, two linear layers and LayerScale; "
                "use weights of the first ConvNeXt (V2 has another block)"
            )
        else:
            left.append(name)
            continue
        if ours in state:
            raise WeightsError(f"{name} is there under two prefixes, expected one model in a file; keep one of them")
        state[ours] = tensor.float()
    return state, tuple(left)


def _fold_scale(state: dict[str, Tensor], name: str) -> None:
    """Takes a block's LayerScale into its last layer."""
    scale, block = state.pop(name).flatten(), name.removesuffix("scale")
    layers = [layer for layer in (f"{block}contract.weight", f"{block}contract.bias") if layer in state]
    for layer in layers:
        if state[layer].shape[0] != scale.shape[0]:
            raise WeightsError(
                f"LayerScale of {block.rstrip('.')} has {scale.shape[0]} values, expected {state[layer].shape[0]} as "
                "the layer it scales; fetch the weights again"
            )
        state[layer] = state[layer] * scale.view(-1, *(1,) * (state[layer].ndim - 1))


def _check_fit(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    odd = [n for n in wanted if n not in state or state[n].shape != wanted[n].shape]
    odd += [n for n in state if n not in wanted]
    if not odd:
        return
    first = min(odd)
    found, expected = (tuple(s[first].shape) if first in s else "nothing" for s in (state, wanted))
    depths, channels = _sizes(state)
    raise WeightsError(
        f"{len(odd)} tensors of the ConvNeXt do not fit the encoder: {first} is {found}, expected {expected}; "
        f"the file has depths {depths} and channels {channels}: set model.encoder.depths and stage_channels to them"
    )


def _sizes(state: Mapping[str, Tensor]) -> tuple[list[int], list[int]]:
    """Depths and channels of the stages in a translated file."""
    norms = [name.split(".")[:3] for name in state if name.endswith("norm.weight")]
    stages = sorted({int(stage) for _, stage, _ in norms})
    depths = [sum(int(stage) == i for _, stage, _ in norms) for i in stages]
    widest = [max(state[f"{'.'.join(n)}.norm.weight"].shape[0] for n in norms if int(n[1]) == i) for i in stages]
    return depths, widest
