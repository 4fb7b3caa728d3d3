"""LayerNorm over channels, in fp32 whatever the autocast.

Legend of shape suffixes in this room: B batch, C channel, H W image, h w feature map, D embedding, N samples.

torch's kernel for bf16 maps and fp32 weights on CPUs is exact forward and for the input's gradient, but it sums the
gradients of weight and bias in bf16: 6 % wrong over 6,000 positions, and a sum that has grown to 256 times its addends
stands still. There the two are summed from fp32 copies instead.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class _HalfLayerNorm(torch.autograd.Function):
    """LayerNorm of bf16 or fp16 (..., C) with fp32 weights on CPUs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        out, mean, rstd = torch.native_layer_norm(x, weight.shape, weight, bias, eps)
        ctx.save_for_backward(x, weight, bias, mean, rstd)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        x, weight, bias, mean, rstd = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad[:3]
        backward, grad, fixed = torch.ops.aten.native_layer_norm_backward, grads[0], (weight.shape, mean, rstd)
        to_x, to_weight, to_bias = None, None, None
        if of_x:
            to_x = backward(grad, x, *fixed, weight, bias, [True, False, False])[0]
        if of_weight or of_bias:
            exact = (weight.shape, mean.float(), rstd.float(), weight, bias, [False, of_weight, of_bias])
            _, to_weight, to_bias = backward(grad.float(), x.float(), *exact)
        return to_x, to_weight, to_bias, None


def layer_norm(x: Tensor, weight_C: Tensor, bias_C: Tensor, eps: float) -> Tensor:
    """LayerNorm over the last dimension, computed in fp32 (fp64 of fp64).

    Args:
        x: (..., C), of any floating type.
        weight_C: factor of every channel.
        bias_C: summand of every channel.
        eps: added to the variance.

    Returns:
        The normalised `x`, of its shape and type.
    """
    with torch.autocast(x.device.type, enabled=False):
        if x.device.type == "cpu" and x.dtype in (torch.bfloat16, torch.float16) and weight_C.dtype == torch.float32:
            out: Tensor = _HalfLayerNorm.apply(x, weight_C, bias_C, eps)
            return out
        exact = torch.promote_types(x.dtype, torch.float32)
        return F.layer_norm(x.to(exact), weight_C.shape, weight_C.to(exact), bias_C.to(exact), eps).to(x.dtype)


class LastLayerNorm(nn.LayerNorm):
    """LayerNorm of (..., C), eps 1e-6 as ConvNeXt's."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        """Normalises over the last dimension."""
        return layer_norm(x, self.weight, self.bias, self.eps)


class ChannelLayerNorm(LastLayerNorm):
    """LayerNorm of each position's channel vector, (B, C, h, w) to (B, C, h, w).

    In channels-last memory the permuted view is contiguous and one fused kernel does it.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalises over dimension 1."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
