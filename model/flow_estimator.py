"""Coarse-to-fine optical flow from two pyramids, one set of weights for all levels (method section 1.2).

At each level, from the coarsest on: upsample the flow, warp the target's features by it, correlate them with the
source's, and let a densely connected network and a dilated context network predict a residual.
Family: PWC-Net (Sun et al. 2018), weights shared over levels as in ARFlow (Liu et al. 2020), with the paper's
LayerNorm behind every convolution but the last and its clipping.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mcjepa.model.config import FlowConfig
from mcjepa.model.correlation import correlate
from mcjepa.model.layers.convolution import Convolution3x3, weights_kept
from mcjepa.model.layers.layer_norm import ChannelLayerNorm
from mcjepa.model.warp import upsample_flow, warp


def _activation(channels: int, normalize: bool) -> nn.Sequential:
    norm: nn.Module = ChannelLayerNorm(channels) if normalize else nn.Identity()
    return nn.Sequential(norm, nn.LeakyReLU(0.1))


class _ChannelsLastGradient(torch.autograd.Function):
    """The map itself; its gradient comes back in channels-last memory, as convolutions want it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0].contiguous(memory_format=torch.channels_last)


def _standardized(x: Tensor, axes: tuple[int, ...]) -> Tensor:
    """Zero mean and unit variance over some axes; in half the time of `torch.var_mean` on CPUs."""
    centred = x - x.mean(axes, keepdim=True)
    return centred * torch.rsqrt(centred.square().mean(axes, keepdim=True) + 1e-6)


def _matchable(a: Tensor, b: Tensor, match: str) -> tuple[Tensor, Tensor]:
    """Brings both maps (B, C, h, w) of a level into the form in which they are correlated (`FlowConfig.match`)."""
    if match == "raw" or not len(a):
        return a, b
    both = torch.stack((a, b), dim=1).float()  # (B, 2, C, h, w)
    both = _standardized(both, (1, 2, 3, 4) if match == "standardized" else (1, 3, 4))
    if match == "cosine":
        both = both * torch.rsqrt(both.square().mean(2, keepdim=True) + 1e-6)
    left, right = both.unbind(1)
    return left.to(a.dtype), right.to(a.dtype)


def _standardize(cost_BKhw: Tensor) -> Tensor:
    """Zero mean and unit variance over the displacements and positions of each sample, computed in fp32.

    Cosines of neighbouring features are nearly alike: what tells displacements apart is a small part of each, an order
    below the features and the flow that the estimator reads beside them.
    """
    if not len(cost_BKhw):
        return cost_BKhw
    cost = cost_BKhw.to(torch.promote_types(cost_BKhw.dtype, torch.float32))
    return _standardized(cost, (1, 2, 3)).to(cost_BKhw.dtype)


class DenseConvolutions(nn.Module):
    """Densely connected 3x3 convolutions: layer k sees the input and the outputs of all layers before it.

    The weights are kept by source, not by layer: what has just been computed is convolved once for all layers that
    will see it, and their sums wait for the next part. That is the same map with the same number of parameters as
    concatenating all parts before each layer, without the concatenations and with fewer, larger products (half the
    time of a training step on CPUs).

    Args:
        inputs: channels of the input.
        widths: channels of the layers.
        outputs: channels of a last linear map of everything.
        normalize: LayerNorm before each activation.
    """

    def __init__(self, inputs: int, widths: Sequence[int], outputs: int, normalize: bool) -> None:
        super().__init__()
        self.widths = tuple(widths)
        targets, sources = (*widths, outputs), (inputs, *widths)
        self._convs = [Convolution3x3(channels, sum(targets[k:]), bias=k == 0) for k, channels in enumerate(sources)]
        self.spread = nn.ModuleList(self._convs)
        self.activations = nn.ModuleList(_activation(width, normalize) for width in widths)
        for k, conv in enumerate(self._convs):  # torch's default for a convolution over all parts of a target
            bounds = [(9 * sum(sources[: t + 1])) ** -0.5 for t in range(k, len(targets)) for _ in range(targets[t])]
            scale = torch.tensor(bounds)
            with torch.no_grad():
                conv.weight.uniform_(-1, 1).mul_(scale.view(-1, 1, 1, 1))
                if conv.bias is not None:
                    conv.bias.uniform_(-1, 1).mul_(scale)

    def forward(self, x_BChw: Tensor) -> Tensor:
        """(B, inputs, h, w) to (B, outputs, h, w)."""
        pending: Tensor = self.spread[0](x_BChw)
        for width, activation, spread in zip(self.widths, self.activations, self.spread[1:], strict=True):
            done, pending = pending.split((width, pending.shape[1] - width), dim=1)
            pending = pending + spread(activation(done))
        return pending

    @torch.no_grad()
    def zero_outputs(self, count: int) -> None:
        """Starts the first `count` outputs at zero."""
        outputs = self._convs[-1].out_channels
        for conv in self._convs:
            conv.weight[-outputs:][:count].zero_()
        bias = self._convs[0].bias
        if bias is not None:
            bias[-outputs:][:count].zero_()


class ResidualFlow(nn.Module):
    """F: (correlation, projected features, flow) to a residual flow; counts 2.30 M at factor 1, 7.96 M at 2.

    Both predictions start at zero: training begins at zero flow, where every pixel counts as visible. A random
    start is scaled by 64 at the coarsest level; two such flows contradict each other everywhere, the two-way test
    calls all pixels occluded, and nothing is left to learn from.
    """

    def __init__(self, config: FlowConfig) -> None:
        super().__init__()
        widths = [max(1, round(width * config.width_factor)) for width in config.widths]
        context = [max(1, round(width * config.width_factor)) for width in config.context_widths]
        channels = (2 * config.search_range + 1) ** 2 + config.projected_channels + 2
        self.dense = DenseConvolutions(channels, widths, 2 + context[0], config.normalize)
        self.dense.zero_outputs(2)
        self.context = nn.Sequential(_activation(context[0], config.normalize))
        for before, width, dilation in zip(context, context[1:], config.context_dilations[1:], strict=False):
            self.context.append(Convolution3x3(before, width, dilation))
            self.context.append(_activation(width, config.normalize))
        last = Convolution3x3(context[-1], 2)
        nn.init.zeros_(last.weight)
        if last.bias is not None:
            nn.init.zeros_(last.bias)
        self.context.append(last)

    def forward(self, inputs_BChw: Tensor) -> Tensor:
        """(B, C, h, w) to the residual flow (B, 2, h, w), in cells of the level."""
        both = self.dense(inputs_BChw.contiguous(memory_format=torch.channels_last))
        both = _ChannelsLastGradient.apply(both)  # else every split behind it gives the other layout, to be copied
        residual: Tensor = both[:, :2] + self.context(both[:, 2:])
        return residual.float()


class FlowEstimator(nn.Module):
    """Flow between two pyramids.

    Args:
        config: its settings.
        channels: channels of the encoder's levels, finest first.
        strides: their strides.
    """

    def __init__(self, config: FlowConfig, channels: Sequence[int], strides: Sequence[int]) -> None:
        super().__init__()
        self.config = config
        self.strides = tuple(strides)
        self.first = self.strides.index(config.finest_stride)
        self.last = self.strides.index(config.coarsest_stride)
        decoded = channels[self.first : self.last + 1]
        self.project = nn.ModuleList(nn.Conv2d(c, config.projected_channels, 1) for c in decoded)
        self.residual = ResidualFlow(config)

    def forward(self, pyramid_a: Sequence[Tensor], pyramid_b: Sequence[Tensor]) -> list[Tensor]:
        """Estimates the flow a -> b (the convention of `model.warp`).

        The last level is decoded `finest_passes` times where the model does not train.

        Args:
            pyramid_a: six maps (B, C, h, w) of `a`, finest first.
            pyramid_b: the same of `b`.

        Returns:
            The flow at every decoded level (strides `finest_stride` to `coarsest_stride`), finest first, each
            (B, 2, h, w) fp32, in cells of that level.
        """
        if torch.compiler.is_compiling():
            return self._decode(pyramid_a, pyramid_b)
        with weights_kept():
            return self._decode(pyramid_a, pyramid_b)

    def _decode(self, pyramid_a: Sequence[Tensor], pyramid_b: Sequence[Tensor]) -> list[Tensor]:
        """What `forward` gives."""
        flows: list[Tensor] = []
        for level in reversed(range(self.first, self.last + 1)):
            a, b = pyramid_a[level], pyramid_b[level]
            size = (a.shape[-2], a.shape[-1])
            if flows:
                flow = upsample_flow(flows[-1], size, self.strides[level + 1] // self.strides[level])
                flow = self._step(level, a, warp(b, flow), flow)
            else:
                flow = self._step(level, a, b, torch.zeros((a.shape[0], 2, *size), device=a.device))
            flows.append(flow)
        for _ in range(1, 1 if self.training else self.config.finest_passes):
            flows[-1] = self.decode_finest(pyramid_a, pyramid_b, flows[-1])
        return flows[::-1]

    def decode_finest(self, pyramid_a: Sequence[Tensor], pyramid_b: Sequence[Tensor], flow_B2hw: Tensor) -> Tensor:
        """The flow of the finest decoded level, decoded once more from a flow that is there.

        Args:
            pyramid_a: six maps (B, C, h, w) of `a`, finest first.
            pyramid_b: the same of `b`.
            flow_B2hw: flow a -> b in cells of stride `finest_stride`.

        Returns:
            The same, mended.
        """
        a, b = pyramid_a[self.first], pyramid_b[self.first]
        return self._step(self.first, a, warp(b, flow_B2hw), flow_B2hw)

    def _step(self, level: int, a_BChw: Tensor, warped_BChw: Tensor, flow_B2hw: Tensor) -> Tensor:
        """The flow of a level, mended by what is left to match between `a` and `b` warped by it."""
        left, right = _matchable(a_BChw, warped_BChw.to(a_BChw.dtype), self.config.match)
        cost = correlate(left, right, self.config.search_range)
        cost = _standardize(cost) if self.config.cost_norm == "sample" else nn.functional.leaky_relu(cost, 0.1)
        parts = (cost, self.project[level - self.first](a_BChw), flow_B2hw.to(a_BChw.dtype))
        limit = self.config.max_flow_px / self.strides[level]
        residual: Tensor = self.residual(torch.cat(parts, dim=1))
        if self.training and self.config.level_dropout:
            kept = torch.rand((residual.shape[0], 1, 1, 1), device=residual.device) >= self.config.level_dropout
            residual = residual * kept
        return (flow_B2hw + residual).clamp(-limit, limit)
