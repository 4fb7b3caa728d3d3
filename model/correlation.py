"""Correlation of two feature maps over a window of displacements, as banded matrix products.

    out[b, (dy + r) * (2r + 1) + (dx + r), y, x] = mean_c left[b, c, y, x] * right[b, c, y + dy, x + dx]

with zeros outside the map. For one displacement row dy, all dx at once are the product of an image row of `left`
(w, C) with the padded row of `right` (C, w + 2r): the wanted values are its diagonal band, read out as a strided
view. The backward pass writes the gradient into the same band and multiplies again. Measured in
`benchmarks/correlation.py` against the loop over displacements.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def correlate_loop(left_BChw: Tensor, right_BChw: Tensor, search_range: int) -> Tensor:
    """The definition, one displacement after the other: the reference in tests and measurements."""
    height, width = left_BChw.shape[-2:]
    padded = F.pad(right_BChw, (search_range,) * 4)
    rows = [
        (left_BChw * padded[..., dy : dy + height, dx : dx + width]).mean(1)
        for dy in range(2 * search_range + 1)
        for dx in range(2 * search_range + 1)
    ]
    return torch.stack(rows, dim=1)


def _band(product: Tensor, window: int) -> Tensor:
    """The diagonal band of contiguous (rows, w, w + window - 1): a view of shape (rows, w, window)."""
    rows, width, padded = product.shape
    return product.as_strided((rows, width, window), (width * padded, padded + 1, 1))


class _BandedCorrelation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, left: Tensor, right: Tensor, search_range: int) -> Tensor:
        batch, channels, height, width = left.shape
        window = 2 * search_range + 1
        left_rows = left.permute(0, 2, 3, 1).contiguous()
        padded = F.pad(right, (search_range,) * 4).permute(0, 2, 3, 1).contiguous()
        out = left.new_empty(batch, height, width, window, window)
        for dy in range(window):
            right_rows = padded[:, dy : dy + height].reshape(batch * height, width + window - 1, channels)
            product = torch.bmm(left_rows.view(batch * height, width, channels), right_rows.transpose(1, 2))
            out[:, :, :, dy] = _band(product, window).view(batch, height, width, window)
        ctx.save_for_backward(left_rows, padded)
        return out.view(batch, height, width, window * window).permute(0, 3, 1, 2) / channels

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        left_rows, padded = ctx.saved_tensors
        batch, height, width, channels = left_rows.shape
        window = padded.shape[2] - width + 1
        grad = grads[0].permute(0, 2, 3, 1).reshape(batch * height, width, window, window) / channels
        grad_left = torch.zeros_like(left_rows).view(batch * height, width, channels)
        grad_padded = torch.zeros_like(padded)
        spread = left_rows.new_zeros(batch * height, width, width + window - 1)
        for dy in range(window):
            _band(spread, window).copy_(grad[:, :, dy])
            right_rows = padded[:, dy : dy + height].reshape(batch * height, width + window - 1, channels)
            grad_left.baddbmm_(spread, right_rows)
            grad_right = torch.bmm(spread.transpose(1, 2), left_rows.view(batch * height, width, channels))
            grad_padded[:, dy : dy + height] += grad_right.view(batch, height, width + window - 1, channels)
        r = window // 2
        grad_right_map = grad_padded[:, r : r + height, r : r + width]
        return grad_left.view_as(left_rows).permute(0, 3, 1, 2), grad_right_map.permute(0, 3, 1, 2), None


def correlate(left_BChw: Tensor, right_BChw: Tensor, search_range: int) -> Tensor:
    """Correlation over a (2r + 1) x (2r + 1) window of displacements.

    Args:
        left_BChw: (B, C, h, w).
        right_BChw: (B, C, h, w), zeros are taken outside of it.
        search_range: r, in cells.

    Returns:
        (B, (2r + 1)^2, h, w): mean over channels of the products; channel (dy + r) (2r + 1) + dx + r.
    """
    if left_BChw.shape != right_BChw.shape:
        raise ValueError(f"correlate: shapes {tuple(left_BChw.shape)} and {tuple(right_BChw.shape)} differ")
    result: Tensor = _BandedCorrelation.apply(left_BChw, right_BChw, search_range)
    return result
