"""Regression term (method section 2.1): features of one frame predicted by warping those of the other.

sum over levels of  c_l / s_l  mean over visible p of ( X_a(p) - X_b(p + flow_ab(p)) )^2

c_l is 1 by default. s_l is 1, or `channel_variances`: the term is then the same for features of any scale, where the
plain one is least for features that shrink to nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mcjepa.model.reduction import Summing, counted, masked_means, over_ranks


@over_ranks
def regression_errors(maps: Sequence[Tensor], predicted: Sequence[Tensor], masks: Sequence[Tensor]) -> Summing[Tensor]:
    """Masked mean squared difference of every level, which the term adds up with c_l / s_l.

    Args:
        maps: the true features of every level, each (B, C, h, w).
        predicted: the warped ones, same shapes.
        masks: visible share of every cell, (B, 1, h, w) in [0, 1].

    Returns:
        Means, (K,), fp32.
    """
    errors = [(true.float() - guess.float()).square() for true, guess in zip(maps, predicted, strict=True)]
    return masked_means.begin(errors, masks)


@over_ranks
def channel_variances(maps: Sequence[Tensor]) -> Summing[Tensor]:
    """Mean over channels of the variance over all positions of all ranks, of each map (B, C, h, w): shape (K,), fp32.

    >>> channel_variances([torch.tensor([[[[1.0, 3.0]], [[0.0, 4.0]]]])])  # 1 and 4
    tensor([2.5000])
    """
    counts = [x.numel() // x.shape[1] for x in maps]

    def squares(sums: list[Tensor], numbers: Tensor) -> Summing[Tensor]:
        # The mean is a constant: it does not change the gradient, because what is centred by it adds up to 0.
        centred = [x.float() - (s / n).view(1, -1, 1, 1) for x, s, n in zip(maps, sums, numbers, strict=True)]
        own = torch.stack([x.square().sum() / x.shape[1] for x in centred])
        return Summing([own], lambda found: found[0] / numbers)

    return counted([x.detach().float().sum((0, 2, 3)) for x in maps], counts, squares)
