"""Variance-covariance term on the maps of every level (method section 2.5 and 2.8).

    v/d sum_j max(0, 1 - sqrt(Var_j + 1e-4))  +  c/d sum_{i != j} Cov_ij^2

with every position of every map of every rank as one sample of a d-channel vector. It is what keeps the features
from collapsing under the regression term.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from model.reduction import global_sum, world_size


def channel_covariance(map_BChw: Tensor) -> Tensor:
    """Unbiased covariance (C, C) of a map's channel vectors over all positions of all ranks, fp32."""
    samples = map_BChw.float().permute(1, 0, 2, 3).flatten(1)
    count = samples.shape[1] * world_size()
    mean = global_sum(samples.sum(1)) / count
    centred = samples - mean.unsqueeze(1)
    return global_sum(centred @ centred.T) / max(count - 1, 1)


def variance_covariance_loss(
    maps: Sequence[Tensor], variance_weights: Sequence[float], covariance_weights: Sequence[float]
) -> tuple[Tensor, Tensor]:
    """The two parts, each weighted by level and summed.

    Args:
        maps: features of every level, (B, C, h, w).
        variance_weights: v of each level, in the order of the maps.
        covariance_weights: c of each level.

    Returns:
        The variance part and the covariance part, scalars, fp32.
    """
    variance_part = maps[0].new_zeros((), dtype=torch.float32)
    covariance_part = torch.zeros_like(variance_part)
    for x, v, c in zip(maps, variance_weights, covariance_weights, strict=True):
        if v == 0 and c == 0:
            continue
        covariance = channel_covariance(x)
        diagonal = covariance.diagonal()
        variance_part = variance_part + v * torch.relu(1 - torch.sqrt(diagonal + 1e-4)).mean()
        off_diagonal = covariance.square().sum() - diagonal.square().sum()
        covariance_part = covariance_part + c * off_diagonal / x.shape[1]
    return variance_part, covariance_part
