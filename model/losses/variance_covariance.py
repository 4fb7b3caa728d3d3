"""Variance-covariance term on the maps of every level (method section 2.5 and 2.8).

    v/d sum_j max(0, 1 - sqrt(Var_j + 1e-4))  +  c/d sum_{i != j} Cov_ij^2

It is what keeps the features from collapsing under the regression term. What a sample of a d-channel vector is, the
paper does not say. `positions`: every position of every map of every rank. `images`: the maps of all ranks at one
position, and the mean of the term over positions, as VICRegL treats its maps (Bardes et al. 2022b).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mcjepa.model.losses.vicreg import off_diagonal_squares
from mcjepa.model.reduction import counted_sums, gather_rows, global_sum

Level = tuple[Tensor, float, float]  # a map (B, C, h, w), its v and its c


def channel_covariances(maps: Sequence[Tensor]) -> list[Tensor]:
    """Unbiased covariance (C, C) of each map's channel vectors over all positions of all ranks, fp32.

    Two sums over ranks serve all maps: one of the channels' sums, one of the centred products.
    """
    samples = [x.float().permute(1, 0, 2, 3).flatten(1) for x in maps]
    sums, counts = counted_sums([x.sum(1) for x in samples], [x.shape[1] for x in samples])
    centred = [x - (total / n).unsqueeze(1) for x, total, n in zip(samples, sums, counts, strict=True)]
    products = global_sum(torch.cat([(x @ x.T).flatten() for x in centred])).split([len(x) ** 2 for x in centred])
    freedom = (counts - 1).clamp_min(1)
    return [p.view(len(x), len(x)) / n for p, x, n in zip(products, centred, freedom, strict=True)]


def _over_positions(levels: Sequence[Level]) -> tuple[list[Tensor], list[Tensor]]:
    variances, covariances = [], []
    matrices = channel_covariances([x for x, _, _ in levels])
    for matrix, (_, v, c) in zip(matrices, levels, strict=True):
        diagonal = matrix.diagonal()
        variances.append(v * torch.relu(1 - torch.sqrt(diagonal + 1e-4)).mean())
        covariances.append(c * (matrix.square().sum() - diagonal.square().sum()) / len(diagonal))
    return variances, covariances


def _over_images(levels: Sequence[Level]) -> tuple[list[Tensor], list[Tensor]]:
    """Variances by two sums over ranks; only levels with a covariance are gathered, the small coarse ones."""
    samples = [x.float().flatten(2) for x, _, _ in levels]  # (B, C, P)
    sums, counts = counted_sums([x.sum(0) for x in samples], [len(x) for x in samples])
    centred = [x - total / n for x, total, n in zip(samples, sums, counts, strict=True)]
    sizes = [total.numel() for total in sums]
    squares = global_sum(torch.cat([x.square().sum(0).flatten() for x in centred])).split(sizes)
    variances, covariances = [], []
    for x, square, n, (_, v, c) in zip(centred, squares, (counts - 1).clamp_min(1), levels, strict=True):
        variances.append(v * torch.relu(1 - torch.sqrt(square / n + 1e-4)).mean())
        if c:  # zeros, which stand for a pair on ranks without one, add nothing to a covariance
            z_PND = gather_rows(x.flatten(1), at_least=2).unflatten(1, x.shape[1:]).permute(2, 0, 1)
            covariances.append(c * off_diagonal_squares(z_PND).mean() / (n**2 * x.shape[1]))
    return variances, covariances


def variance_covariance_loss(
    maps: Sequence[Tensor],
    variance_weights: Sequence[float],
    covariance_weights: Sequence[float],
    samples: str = "positions",
) -> tuple[Tensor, Tensor]:
    """The two parts, each weighted by level and summed.

    Args:
        maps: features of every level, (B, C, h, w).
        variance_weights: v of each level, in the order of the maps.
        covariance_weights: c of each level.
        samples: `positions` or `images`, see above.

    Returns:
        The variance part and the covariance part, scalars, fp32.
    """
    used = [level for level in zip(maps, variance_weights, covariance_weights, strict=True) if level[1] or level[2]]
    nothing = maps[0].new_zeros((), dtype=torch.float32)
    if not used:
        return nothing, nothing.clone()
    variances, covariances = _over_positions(used) if samples == "positions" else _over_images(used)
    return torch.stack(variances).sum(), torch.stack(covariances).sum() if covariances else nothing
