"""Depthwise convolution under bf16 autocast on CPUs, where oneDNN's gradient of the weight takes far too long.

    out[b, c, y, x] = bias[c] + sum_{i, j} weight[c, i, j] in[b, c, y + i - r, x + j - s],   zeros outside the map

The forward pass and the input's gradient are oneDNN's, which are quick. The weight's gradient is

    grad_weight[c, i, j] = sum_x sum_{b, y} grad[b, c, y, x] in[b, c, y + i - r, x + j - s]

For one channel the inner sum is a product of matrices, the gradient's rows (w, B h) with all that they meet of the
padded input (B h, (2 r + 1)(w + 2 s)); the wanted values lie on the diagonals x, x + j. In bf16 that takes a half to an
eighth of oneDNN's time, although it computes (w + 2 s) / (2 s + 1) times what is wanted.
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
        x_BChw: the input, of the same shape and type, in which the products are computed.
        reach: r and s, how far the kernel reaches over rows and columns.

    Returns:
        (C, 1, 2 r + 1, 2 s + 1), summed and returned in fp32 (fp64 of fp64).
    """
    batch, channels, height, width = x_BChw.shape
    r, s = reach
    rows, seen = 2 * r + 1, width + 2 * s
    grad = grad_BChw.permute(1, 3, 0, 2).reshape(channels, width, batch * height)
    padded = F.pad(x_BChw, (s, s, r, r)).permute(1, 0, 2, 3).contiguous()  # (C, B, h + 2 r, w + 2 s)
    channel, image, row, cell = padded.stride()
    # The 2 r + 1 padded rows that an output row meets follow each other in memory: one row of the matrix.
    met = padded.as_strided((channels, batch, height, rows * seen), (channel, image, row, cell))
    product = torch.bmm(grad, met.reshape(channels, batch * height, rows * seen))
    strides = (width * rows * seen, rows * seen + 1, seen, 1)  # from x to x + 1 the diagonal moves one to the right
    diagonals = product.as_strided((channels, width, rows, 2 * s + 1), strides)
    return diagonals.sum(1, dtype=torch.promote_types(product.dtype, torch.float32)).unsqueeze(1)


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
        x_BChw: the input, of any floating type; autocast's is computed in.
        weight_C1ij: the weight, i and j odd.
        bias_C: the bias.

    Returns:
        (B, C, h, w), of autocast's type.
    """
    x, weight, bias = (tensor.to(torch.get_autocast_dtype("cpu")) for tensor in (x_BChw, weight_C1ij, bias_C))
    out: Tensor = _DepthwiseOnCpu.apply(x, weight, bias)
    return out
