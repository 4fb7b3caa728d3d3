"""UperNet: pyramid pooling on the coarsest map, a feature pyramid over all maps, and an auxiliary FCN head.

Xiao et al. 2018, "Unified Perceptual Parsing for Scene Understanding", with the layers of mmsegmentation's UPerHead
and FCNHead: every convolution but a classifier is followed by batch normalisation and ReLU and has no bias.
Legend: B batch, C channel, K classes, h w feature map.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mcjepa.model.reduction import global_sum, world_size

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
        mean = global_sum(x.sum((0, 2, 3))) / pixels
        centred = x - mean[:, None, None]
        var = global_sum(centred.square().sum((0, 2, 3))) / pixels
        if self.running_mean is not None and self.running_var is not None:
            momentum = self.momentum or 0.0
            with torch.no_grad():
                self.running_mean.lerp_(mean.detach(), momentum)
                self.running_var.lerp_(var.detach() * pixels / max(pixels - 1, 1), momentum)
        scale = self.weight * torch.rsqrt(var + self.eps)
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(x_BChw.dtype)


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
