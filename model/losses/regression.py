"""Regression term (method section 2.1): features of one frame predicted by warping those of the other.

sum over levels of  mean over visible p of ( X_a(p) - X_b(p + flow_ab(p)) )^2
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from mcjepa.model.reduction import masked_means


def regression_loss(maps: Sequence[Tensor], predicted: Sequence[Tensor], masks: Sequence[Tensor]) -> Tensor:
    """Masked mean squared difference, summed over levels.

    Args:
        maps: the true features of every level, each (B, C, h, w).
        predicted: the warped ones, same shapes.
        masks: visible share of every cell, (B, 1, h, w) in [0, 1].

    Returns:
        Scalar, fp32.
    """
    errors = [(true.float() - guess.float()).square() for true, guess in zip(maps, predicted, strict=True)]
    return masked_means(errors, masks).sum()
