"""What fine-tuning needs of a model, our encoder behind it, and the network of encoder and heads.

The heads are UperNet's (Xiao et al. 2018, "Unified Perceptual Parsing for Scene Understanding"): pyramid pooling on the
coarsest map, a feature pyramid over all maps, and an auxiliary FCN head, with the layers of mmsegmentation's UPerHead
and FCNHead: every convolution but a classifier is followed by batch normalisation and ReLU and has no bias.

Legend: B batch, 3 RGB in [0, 1], C channel, K classes, h w feature map, H W pixels.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Literal, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mcjepa.evals.finetune.settings import FinetuneConfig
from mcjepa.evals.models import McJepaEvalModel
from mcjepa.model.encoder import Block, Encoder
from mcjepa.model.layers.layer_norm import ChannelLayerNorm
from mcjepa.model.reduction import global_moments, world_size

STAGE_LAYERS, LAYER_LAYERS = 7, 13
BLOCKS_A_LAYER = 3


@runtime_checkable
class Trainable(Protocol):
    """An encoder whose parameters may be trained; any other model is fine-tuned by giving it these."""

    @property
    def module(self) -> nn.Module:
        """Images (B, 3, H, W) in [0, 1] to maps (B, C, ceil(H / stride), ceil(W / stride)), finest first."""

    @property
    def strides(self) -> tuple[int, ...]:
        """Strides of the maps, px, finest first."""

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of the maps."""

    def layer_of(self, name: str, by: Literal["stage", "layer"]) -> int:
        """Depth of the parameter `name` of `module`: 0 at the pixels, below `head_layer(by)` everywhere."""
        ...

    def head_layer(self, by: Literal["stage", "layer"]) -> int:
        """Depth of what is put on top, whose learning rate is not reduced."""
        ...

    def set_drop_path(self, rate: float) -> None:
        """Sets stochastic depth to rise linearly from 0 at the first block to `rate` at the last."""
        ...


class TrainableEncoder:
    """Our encoder as a `Trainable`."""

    strides = Encoder.strides

    def __init__(self, encoder: Encoder) -> None:
        """Takes a copy: the encoder itself keeps its stochastic depth."""
        self.module = copy.deepcopy(encoder)
        self.channels = self.module.channels

    def layer_of(self, name: str, by: Literal["stage", "layer"]) -> int:
        """ConvNeXt's assignment; our split stem and the downsampler before the first stage are its stem."""
        return convnext_layer(name, by)

    def head_layer(self, by: Literal["stage", "layer"]) -> int:
        """See `Trainable.head_layer`."""
        return STAGE_LAYERS if by == "stage" else LAYER_LAYERS

    def set_drop_path(self, rate: float) -> None:
        """See `Trainable.set_drop_path`."""
        blocks = [module for module in self.module.modules() if isinstance(module, Block)]
        for index, block in enumerate(blocks):
            block.drop_path.rate = rate * index / max(len(blocks) - 1, 1)


def convnext_layer(name: str, by: Literal["stage", "layer"]) -> int:
    """Layer of a parameter of our encoder, as ConvNeXt's segmentation recipes count them.

    >>> [convnext_layer(f"stages.2.{j}.norm.weight", "layer") for j in (0, 2, 3, 8)]
    [3, 3, 4, 5]
    >>> convnext_layer("stages.3.0.norm.weight", "layer"), convnext_layer("stages.3.0.norm.weight", "stage")
    (12, 4)
    """
    kind, *place = name.split(".")
    stage = int(place[0]) if kind in ("downsamplers", "stages") else 0
    if kind != "stages" and (by == "stage" or stage == 0):
        return 0
    if by == "stage":
        return stage + 1
    if stage == 2:
        return 3 + (int(place[1]) // BLOCKS_A_LAYER if kind == "stages" else 0)
    return (1, 2, 3, LAYER_LAYERS - 1)[stage]


def trainable_of(model: object) -> Trainable:
    """The trainable encoder of a model under test.

    Raises:
        ValueError: the model has none.
    """
    if isinstance(model, McJepaEvalModel):
        return TrainableEncoder(model.model.encoder)
    if isinstance(model, Trainable):
        return model
    raise ValueError(
        f"{type(model).__name__} cannot be fine-tuned; expected our model or one with the members of "
        "mcjepa.evals.finetune.model.Trainable; leave finetune out"
    )


class Segmenter(nn.Module):
    """Encoder, a LayerNorm on each map that is used (as ConvNeXt's), UperNet, and the auxiliary head."""

    def __init__(self, encoder: Trainable, classes: int, config: FinetuneConfig) -> None:
        """Takes a copy of the encoder's module: what is evaluated after it must not be the trained one.

        Raises:
            ValueError: the encoder lacks a level that the settings name.
        """
        super().__init__()
        strides = [2**level for level in config.levels]
        absent = [stride for stride in strides if stride not in encoder.strides]
        if absent:
            raise ValueError(
                f"the model has no level of stride {absent[0]}; expected one of {encoder.strides}; change levels"
            )
        encoder.set_drop_path(config.drop_path)
        self.encoder = copy.deepcopy(encoder.module)
        self.chosen = tuple(encoder.strides.index(stride) for stride in strides)
        channels = [encoder.channels[index] for index in self.chosen]
        self.norms = nn.ModuleList(ChannelLayerNorm(count) for count in channels)
        self.head = UperNetHead(channels, classes, config.channels, config.pool_scales)
        self.auxiliary = FcnHead(channels[-2], classes) if config.auxiliary_weight > 0 else None

    def maps(self, image_B3HW: Tensor) -> list[Tensor]:
        """The chosen maps (B, C, h, w), normalised, finest first."""
        levels = self.encoder(image_B3HW)
        return [norm(levels[index]) for norm, index in zip(self.norms, self.chosen, strict=True)]

    def forward(self, image_B3HW: Tensor) -> tuple[Tensor, Tensor | None]:
        """Logits (B, K, h, w) of head and auxiliary head (None in evaluation), each on its own grid."""
        maps = self.maps(image_B3HW)
        auxiliary = self.auxiliary(maps[-2]) if self.auxiliary is not None and self.training else None
        return self.head(maps), auxiliary

    def label_logits(self, image_B3HW: Tensor) -> Tensor:
        """Logits (B, K, H, W) float32 at the image's size."""
        return resize_to(self(image_B3HW)[0].float(), image_B3HW.shape[-2:])


def parameter_groups(network: Segmenter, encoder: Trainable, config: FinetuneConfig) -> list[dict[str, Any]]:
    """AdamW's groups: the learning rate of layer l is lr * lr_decay**(head layer - l); norms and biases do not decay.

    Returns:
        Groups with `lr`, `peak_lr`, `weight_decay`, `params` and a `name` such as layer3 or layer3-no-decay, the
        head's last.
    """
    head = encoder.head_layer(config.lr_decay_by)
    groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        inside = name.removeprefix("encoder.")
        layer = encoder.layer_of(inside, config.lr_decay_by) if name.startswith("encoder.") else head
        if parameter.requires_grad:
            groups.setdefault((layer, parameter.ndim > 1), []).append(parameter)
    ordered = sorted(groups.items(), key=lambda item: item[0])
    return [_group(head - layer, layer, decays, members, config) for (layer, decays), members in ordered]


def _group(below: int, layer: int, decays: bool, members: list[nn.Parameter], config: FinetuneConfig) -> dict[str, Any]:
    rate = config.lr * config.lr_decay**below
    return {
        "params": members,
        "name": f"layer{layer}{'' if decays else '-no-decay'}",
        "lr": rate,
        "peak_lr": rate,
        "weight_decay": config.weight_decay if decays else 0.0,
    }


CLASSIFIER_STD = 0.01
DROPOUT = 0.1
FCN_CHANNELS = 256


def resize_to(x_BChw: Tensor, size: Sequence[int]) -> Tensor:
    """Bilinear resize to (h, w), cells keep their place (align_corners=False)."""
    if tuple(x_BChw.shape[-2:]) == tuple(size):
        return x_BChw
    return F.interpolate(x_BChw, size=tuple(size), mode="bilinear", align_corners=False)


class RankBatchNorm(nn.BatchNorm2d):
    """Batch normalisation over the pixels of all ranks, on any device (torch's SyncBatchNorm refuses CPUs).

    Where nothing is distributed, and in evaluation, it is torch's BatchNorm2d.
    """

    def forward(self, x_BChw: Tensor) -> Tensor:
        """(B, C, h, w) to the same; every rank must hold as many pixels."""
        if not self.training or world_size() == 1:
            normal: Tensor = super().forward(x_BChw)
            return normal
        x = x_BChw.float()
        pixels = x.numel() // x.shape[1] * world_size()
        mean, var = global_moments(x)
        if self.running_mean is not None and self.running_var is not None:
            momentum = self.momentum or 0.0
            with torch.no_grad():
                self.running_mean.lerp_(mean.detach(), momentum)
                self.running_var.lerp_(var.detach() * pixels / max(pixels - 1, 1), momentum)
        scale = self.weight * torch.rsqrt(var + self.eps)
        return ((x - mean[:, None, None]) * scale[:, None, None] + self.bias[:, None, None]).to(x_BChw.dtype)


class ConvNormAct(nn.Sequential):
    """Convolution without bias, batch normalisation, ReLU; (B, C_in, h, w) to (B, C_out, h, w)."""

    def __init__(self, inputs: int, outputs: int, kernel: int) -> None:
        """Weights are Kaiming-normal over the outputs, as mmcv's ConvModule."""
        conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
        super().__init__(conv, RankBatchNorm(outputs), nn.ReLU())


class PyramidPooling(nn.Module):
    """Averages over s x s equal parts of the map, each brought to `channels`, beside the map itself."""

    def __init__(self, inputs: int, channels: int, scales: Sequence[int]) -> None:
        super().__init__()
        self.scales = tuple(scales)
        self.branches = nn.ModuleList(ConvNormAct(inputs, channels, 1) for _ in scales)
        self.bottleneck = ConvNormAct(inputs + len(self.scales) * channels, channels, 3)

    def forward(self, x_BChw: Tensor) -> Tensor:
        """(B, C_in, h, w) to (B, channels, h, w)."""
        parts = [x_BChw]
        for scale, branch in zip(self.scales, self.branches, strict=True):
            parts.append(resize_to(branch(F.adaptive_avg_pool2d(x_BChw, scale)), x_BChw.shape[-2:]))
        pooled: Tensor = self.bottleneck(torch.cat(parts, dim=1))
        return pooled


def classifier(channels: int, classes: int) -> nn.Sequential:
    """Channel dropout and a 1x1 convolution to logits, normal with standard deviation 0.01, bias 0."""
    conv = nn.Conv2d(channels, classes, 1)
    nn.init.normal_(conv.weight, std=CLASSIFIER_STD)
    nn.init.zeros_(conv.bias)  # type: ignore[arg-type]  # this convolution has one
    return nn.Sequential(nn.Dropout2d(DROPOUT), conv)


class UperNetHead(nn.Module):
    """Logits on the finest map's grid from maps of falling resolution.

    Args:
        inputs: channels of the maps, finest first.
        classes: number of classes K.
        channels: width of every layer.
        pool_scales: parts a side of the pyramid pooling.
    """

    def __init__(self, inputs: Sequence[int], classes: int, channels: int, pool_scales: Sequence[int]) -> None:
        super().__init__()
        self.pooling = PyramidPooling(inputs[-1], channels, pool_scales)
        self.laterals = nn.ModuleList(ConvNormAct(count, channels, 1) for count in inputs[:-1])
        self.smoothers = nn.ModuleList(ConvNormAct(channels, channels, 3) for _ in inputs[:-1])
        self.fusion = ConvNormAct(len(inputs) * channels, channels, 3)
        self.classifier = classifier(channels, classes)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps (B, C, h, w), finest first, to logits (B, K, h, w) of the finest grid."""
        top_down = [lateral(map_BChw) for lateral, map_BChw in zip(self.laterals, maps[:-1], strict=True)]
        top_down.append(self.pooling(maps[-1]))
        for level in range(len(top_down) - 1, 0, -1):
            finer = top_down[level - 1]
            top_down[level - 1] = finer + resize_to(top_down[level], finer.shape[-2:])
        smooth = [smoother(x) for smoother, x in zip(self.smoothers, top_down[:-1], strict=True)]
        finest = maps[0].shape[-2:]
        fused = self.fusion(torch.cat([resize_to(x, finest) for x in (*smooth, top_down[-1])], dim=1))
        logits: Tensor = self.classifier(fused)
        return logits


class FcnHead(nn.Sequential):
    """The auxiliary head: one 3x3 convolution and a classifier; (B, C, h, w) to logits (B, K, h, w)."""

    def __init__(self, inputs: int, classes: int, channels: int = FCN_CHANNELS) -> None:
        super().__init__(ConvNormAct(inputs, channels, 3), classifier(channels, classes))
