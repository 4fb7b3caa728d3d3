"""Regression term (method section 2.1): features of one frame predicted by warping those of the other.

sum over levels of  mean over visible p of ( X_a(p) - X_b(p + flow_ab(p)) )^2
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from model.reduction import masked_mean


def regression_loss(maps: Sequence[Tensor], predicted: Sequence[Tensor], masks: Sequence[Tensor]) -> Tensor:
    """Masked mean squared difference, summed over levels.

    Args:
        maps: the true features of every level, each (B, C, h, w).
        predicted: the warped ones, same shapes.
        masks: visible share of every cell, (B, 1, h, w) in [0, 1].

    Returns:
        Scalar, fp32.
    """
    terms = [
        masked_mean((true.float() - guess.float()).square(), mask)
        for true, guess, mask in zip(maps, predicted, masks, strict=True)
    ]
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total
