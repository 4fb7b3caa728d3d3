"""The shared encoder: a ConvNeXt whose 4x4 stem is split into two convolutions, so that six levels exist.

Levels, finest first, have strides 2, 4, 8, 16, 32, 64 (method section 1.1; Liu et al. 2022 for the block).
A side that a level cannot halve is padded by one replicated row or column there, so any input size works and a
level of stride s has ceil(H / s) x ceil(W / s) cells, cell (i, j) covering pixels (s i .. s i + s - 1, ...).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mcjepa.model.config import EncoderConfig
from mcjepa.model.layers.depthwise import convolve_depthwise_on_cpu
from mcjepa.model.layers.layer_norm import ChannelLayerNorm, LastLayerNorm

STRIDES = (2, 4, 8, 16, 32, 64)
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class DropPath(nn.Module):
    """Drops a sample's residual branch with probability `rate` in training and rescales the rest."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """(B, ...) to (B, ...)."""
        if self.rate == 0.0 or not self.training:
            return x
        keep = x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(1.0 - self.rate)
        return x * keep / (1.0 - self.rate)


def _convolve_depthwise(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """The block's depthwise convolution, the same numbers in less time on small maps and on CPUs.

    Taps that reach beyond a small map from everywhere on it only ever meet the padding: they are left out (a 2x2 map
    meets 3x3 of 7x7).
    """
    radius = conv.kernel_size[0] // 2
    up, left = min(radius, x.shape[-2] - 1), min(radius, x.shape[-1] - 1)
    weight = conv.weight[..., radius - up : radius + up + 1, radius - left : radius + left + 1]
    if x.device.type == "cpu" and conv.bias is not None:
        return convolve_depthwise_on_cpu(x, weight, conv.bias)
    return F.conv2d(x, weight, conv.bias, padding=(up, left), groups=conv.groups)


class DepthwiseConvolution(nn.Conv2d):
    """7x7 depthwise convolution; a module that computes itself, as ZeRO-3 fetches parameters by module calls."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 7, padding=3, groups=channels)

    def forward(self, x_BChw: Tensor) -> Tensor:
        """(B, C, h, w) to the same."""
        return _convolve_depthwise(x_BChw, self)


class Block(nn.Module):
    """ConvNeXt block: 7x7 depthwise, LayerNorm, 4x wide perceptron with GELU, residual."""

    def __init__(self, channels: int, drop_path: float, layer_scale: float) -> None:
        super().__init__()
        self.depthwise = DepthwiseConvolution(channels)
        self.norm = LastLayerNorm(channels)
        self.expand = nn.Linear(channels, 4 * channels)
        self.contract = nn.Linear(4 * channels, channels)
        self.scale = nn.Parameter(torch.full((channels,), layer_scale)) if layer_scale > 0 else None
        self.drop_path = DropPath(drop_path)

    def forward(self, x_BChw: Tensor) -> Tensor:
        """(B, C, h, w) to the same."""
        y = self.depthwise(x_BChw).permute(0, 2, 3, 1)
        y = self.contract(F.gelu(self.expand(self.norm(y))))
        if self.scale is not None:
            y = y * self.scale
        return x_BChw + self.drop_path(y.permute(0, 3, 1, 2))


class Stage(nn.Sequential):
    """The blocks of one level.

    Args:
        blocks: the blocks, in order.
        recompute: in training, keep only each block's input and compute the block again in the backward pass, with
            the random state that it had, so that drop-path drops the same samples.
    """

    def __init__(self, blocks: Sequence[Block], recompute: bool) -> None:
        super().__init__(*blocks)
        self.recompute = recompute

    def forward(self, x_BChw: Tensor) -> Tensor:
        """(B, C, h, w) to the same."""
        x = x_BChw
        for block in self:
            if self.recompute and self.training and torch.is_grad_enabled():
                x = checkpoint(block, x, use_reentrant=False, preserve_rng_state=True)
            else:
                x = block(x)
        return x


def _pad_to_even(x: Tensor) -> Tensor:
    bottom, right = x.shape[-2] % 2, x.shape[-1] % 2
    return F.pad(x, (0, right, 0, bottom), mode="replicate") if bottom or right else x


class Encoder(nn.Module):
    """Images to a pyramid of six maps.

    Attributes:
        strides: strides of the levels, finest first.
        channels: channels of the levels, finest first.
    """

    strides = STRIDES
    mean: Tensor
    std: Tensor

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        fine, stem = config.stem_channels
        self.channels: tuple[int, ...] = (fine, stem, *config.stage_channels)
        self.stem_fine = nn.Conv2d(3, fine, 3, stride=2, padding=1)
        self.stem_coarse = nn.Conv2d(fine, stem, 4, stride=2, padding=1)
        self.stem_norm = ChannelLayerNorm(stem)
        self.activation: nn.Module = nn.GELU() if config.stem_activation == "gelu" else nn.Identity()
        blocks_in_all = sum(config.depths)
        rates = [config.drop_path * k / max(blocks_in_all - 1, 1) for k in range(blocks_in_all)]
        self.downsamplers, self.stages = nn.ModuleList(), nn.ModuleList()
        before = stem
        for channels, depth in zip(config.stage_channels, config.depths, strict=True):
            self.downsamplers.append(nn.Sequential(ChannelLayerNorm(before), nn.Conv2d(before, channels, 2, stride=2)))
            blocks = [Block(channels, rates.pop(0), config.layer_scale) for _ in range(depth)]
            self.stages.append(Stage(blocks, config.activation_checkpointing))
            before = channels
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1), persistent=False)
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                _initialize(module, config.init_std)

    def forward(self, image_B3HW: Tensor) -> list[Tensor]:
        """Encodes RGB images.

        Args:
            image_B3HW: float, RGB in [0, 1], shape (B, 3, H, W); the ImageNet normalisation is done here.

        Returns:
            Six maps, finest first, shapes (B, channels[l], ceil(H / strides[l]), ceil(W / strides[l])).
        """
        x = ((image_B3HW - self.mean) / self.std).to(self.stem_fine.weight.dtype)  # half weights of an fp16 engine
        x = x.contiguous(memory_format=torch.channels_last)
        fine = self.activation(self.stem_fine(_pad_to_even(x)))
        x = self.activation(self.stem_norm(self.stem_coarse(_pad_to_even(fine))))
        levels = [fine, x]
        for downsample, stage in zip(self.downsamplers, self.stages, strict=True):
            x = stage(downsample(_pad_to_even(x)))
            levels.append(x)
        return levels


def encode_streams(encoder: Encoder, images: Mapping[str, Tensor]) -> dict[str, list[Tensor]]:
    """The pyramids of several batches of images, each (B, 3, H, W), by name.

    Those of one size are encoded in one pass: fewer and larger products, and ZeRO-3 fetches the weights once.
    """
    if len(images) > 1 and len({(x.shape[1:], x.dtype) for x in images.values()}) == 1:
        levels = encoder(torch.cat(list(images.values())))
        parts = zip(*(level.split([len(x) for x in images.values()]) for level in levels), strict=True)
        return dict(zip(images, map(list, parts), strict=True))
    return {name: encoder(x) for name, x in images.items()}


def _initialize(module: nn.Conv2d | nn.Linear, std: float) -> None:
    fan_in = module.weight[0].numel()
    nn.init.trunc_normal_(module.weight, std=std or fan_in**-0.5)
    if module.bias is not None:
        nn.init.zeros_(module.bias)
