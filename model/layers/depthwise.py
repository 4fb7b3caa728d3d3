"""Depthwise convolution on CPUs, where oneDNN's gradient of the weight takes far too long.

    out[b, c, y, x] = bias[c] + sum_{i, j} weight[c, i, j] in[b, c, y + i - r, x + j - s],   zeros outside the map

The forward pass and the input's gradient are oneDNN's, which are quick. The weight's gradient is

    grad_weight[c, i, j] = sum_b sum_{y, x} grad[b, c, y, x] in[b, c, y + i - r, x + j - s]

For one channel of one sample the inner sums are again a convolution: of the padded input with the output's gradient as
its kernel. All samples' channels together are one depthwise convolution forward, which oneDNN does in half to a sixth
of the time of its own gradient (fp32; in bf16, whose gradient it has no quick kernel for, in far less).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def depthwise_weight_gradient(grad_BChw: Tensor, x_BChw: Tensor, reach: tuple[int, int]) -> Tensor:
    """Gradient of a depthwise convolution's weight.

    Args:
        grad_BChw: gradient of the output.
        x_BChw: the input, of the same shape and type; products of it are summed in fp32 and rounded to it by sample.
        reach: r and s, how far the kernel reaches over rows and columns.

    Returns:
        (C, 1, 2 r + 1, 2 s + 1), summed and returned in fp32 (fp64 of fp64).
    """
    batch, channels, height, width = x_BChw.shape
    r, s = reach
    if not batch:
        return x_BChw.new_zeros(
            channels, 1, 2 * r + 1, 2 * s + 1, dtype=torch.promote_types(x_BChw.dtype, torch.float32)
        )
    if not r and not s:  # one cell a map: a grouped convolution would run as one slow product a channel and sample
        exact = torch.promote_types(x_BChw.dtype, torch.float32)
        return (grad_BChw * x_BChw).sum((2, 3)).sum(0, dtype=exact).view(channels, 1, 1, 1)
    kernels = grad_BChw.reshape(batch * channels, 1, height, width)
    padded = F.pad(x_BChw, (s, s, r, r)).permute(2, 3, 0, 1)
    # Samples beside channels, in channels-last memory.
    padded = padded.reshape(1, height + 2 * r, width + 2 * s, batch * channels).permute(0, 3, 1, 2)
    products = F.conv2d(padded, kernels, groups=batch * channels)
    exact = torch.promote_types(products.dtype, torch.float32)
    return products.view(batch, channels, 1, 2 * r + 1, 2 * s + 1).sum(0, dtype=exact)


def _reach(weight: Tensor) -> tuple[int, int]:
    return weight.shape[-2] // 2, weight.shape[-1] // 2


class _DepthwiseOnCpu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return F.conv2d(x, weight, bias, padding=_reach(weight), groups=len(weight))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        grad = grads[0]
        to_x = to_weight = to_bias = None
        if ctx.needs_input_grad[0]:
            to_x = F.conv2d(grad, weight.flip(-2, -1), padding=_reach(weight), groups=len(weight))
        if ctx.needs_input_grad[1]:
            to_weight = depthwise_weight_gradient(grad, x, _reach(weight)).to(weight.dtype)
        if ctx.needs_input_grad[2]:
            to_bias = grad.sum((0, 2, 3))
        return to_x, to_weight, to_bias


def convolve_depthwise_on_cpu(x_BChw: Tensor, weight_C1ij: Tensor, bias_C: Tensor) -> Tensor:
    """Depthwise convolution with zeros around the map: (B, C, h, w) to the same.

    Args:
        x_BChw: the input, of any floating type; under autocast its type is computed in.
        weight_C1ij: the weight, i and j odd.
        bias_C: the bias.

    Returns:
        (B, C, h, w), of the type that is computed in.
    """
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x_BChw.dtype
    x, weight, bias = (tensor.to(dtype) for tensor in (x_BChw, weight_C1ij, bias_C))
    out: Tensor = _DepthwiseOnCpu.apply(x, weight, bias)
    return out
