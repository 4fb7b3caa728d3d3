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


def channel_covariances(maps: Sequence[Tensor]) -> list[Tensor]:
    """Unbiased covariance (C, C) of each map's channel vectors over all positions of all ranks, fp32.

    Two sums over ranks serve all maps: one of the channels' sums, one of the centred products.
    """
    samples = [x.float().permute(1, 0, 2, 3).flatten(1) for x in maps]
    counts = [x.shape[1] * world_size() for x in samples]
    sums = global_sum(torch.cat([x.sum(1) for x in samples])).split([len(x) for x in samples])
    centred = [x - (total / n).unsqueeze(1) for x, total, n in zip(samples, sums, counts, strict=True)]
    products = global_sum(torch.cat([(x @ x.T).flatten() for x in centred])).split([len(x) ** 2 for x in centred])
    return [p.view(len(x), len(x)) / max(n - 1, 1) for p, x, n in zip(products, centred, counts, strict=True)]


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
    used = [item for item in zip(maps, variance_weights, covariance_weights, strict=True) if item[1] or item[2]]
    if not used:
        return variance_part, covariance_part
    covariances = channel_covariances([x for x, _, _ in used])
    for covariance, (_, v, c) in zip(covariances, used, strict=True):
        diagonal = covariance.diagonal()
        variance_part = variance_part + v * torch.relu(1 - torch.sqrt(diagonal + 1e-4)).mean()
        off_diagonal = covariance.square().sum() - diagonal.square().sum()
        covariance_part = covariance_part + c * off_diagonal / len(diagonal)
    return variance_part, covariance_part
