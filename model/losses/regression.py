"""Regression term (method section 2.1): features of one frame predicted by warping those of the other.

sum over levels of  c_l / s_l  mean over visible p of ( X_a(p) - X_b(p + flow_ab(p)) )^2

c_l is 1 by default. s_l is 1, or `channel_variances`: the term is then the same for features of any scale, where the
plain one is least for features that shrink to nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mcjepa.model.reduction import counted_sums, global_sum, masked_means


def regression_loss(
    maps: Sequence[Tensor],
    predicted: Sequence[Tensor],
    masks: Sequence[Tensor],
    coefficients: Tensor | None = None,
) -> Tensor:
    """Masked mean squared difference, summed over levels.

    Args:
        maps: the true features of every level, each (B, C, h, w).
        predicted: the warped ones, same shapes.
        masks: visible share of every cell, (B, 1, h, w) in [0, 1].
        coefficients: c_l / s_l of each level, (K,); ones by default.

    Returns:
        Scalar, fp32.
    """
    errors = [(true.float() - guess.float()).square() for true, guess in zip(maps, predicted, strict=True)]
    means = masked_means(errors, masks)
    return means.sum() if coefficients is None else (coefficients * means).sum()


def channel_variances(maps: Sequence[Tensor]) -> Tensor:
    """Mean over channels of the variance over all positions of all ranks, of each map (B, C, h, w): shape (K,), fp32.

    >>> channel_variances([torch.tensor([[[[1.0, 3.0]], [[0.0, 4.0]]]])])  # 1 and 4
    tensor([2.5000])
    """
    counts = [x.numel() // x.shape[1] for x in maps]
    sums, numbers = counted_sums([x.float().sum((0, 2, 3)) for x in maps], counts)
    centred = [x - (s / n).view(1, -1, 1, 1) for x, s, n in zip(maps, sums, numbers, strict=True)]
    squares = torch.stack([x.float().square().sum() / x.shape[1] for x in centred])
    return global_sum(squares) / numbers
