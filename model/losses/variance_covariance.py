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

from mcjepa.model.losses.vicreg import gram_squares
from mcjepa.model.reduction import Summing, counted, gather_rows, over_ranks

Level = tuple[Tensor, float, float]  # a map (B, C, h, w), its v and its c
Parts = tuple[list[Tensor], list[Tensor]]  # variances and covariances of levels


@over_ranks
def channel_covariances(maps: Sequence[Tensor]) -> Summing[list[Tensor]]:
    """Unbiased covariance (C, C) of each map's channel vectors over all positions of all ranks, fp32.

    Two sums over ranks serve all maps: one of the channels' sums, one of the centred products.
    """
    samples = [x.float().permute(1, 0, 2, 3).flatten(1) for x in maps]

    def products(sums: list[Tensor], counts: Tensor) -> Summing[list[Tensor]]:
        # The mean is a constant: it does not change the gradient, because what is centred by it adds up to 0.
        centred = [x - (total / n).unsqueeze(1) for x, total, n in zip(samples, sums, counts, strict=True)]
        freedom = (counts - 1).clamp_min(1)
        return Summing([x @ x.T for x in centred], lambda found: [x / n for x, n in zip(found, freedom, strict=True)])

    return counted([x.detach().sum(1) for x in samples], [x.shape[1] for x in samples], products)


def _over_positions(levels: Sequence[Level], matrices: Sequence[Tensor]) -> Parts:
    """The parts of every level, of its covariance matrix."""
    variances, covariances = [], []
    for matrix, (_, v, c) in zip(matrices, levels, strict=True):
        diagonal = matrix.diagonal()
        variances.append(v * torch.relu(1 - torch.sqrt(diagonal + 1e-4)).mean())
        covariances.append(c * (matrix.square().sum() - diagonal.square().sum()) / len(diagonal))
    return variances, covariances


def _over_images(levels: Sequence[Level]) -> Summing[Parts]:
    """By two sums over ranks; only levels with a covariance are gathered, the small coarse ones, by one collective."""
    samples = [x.float().flatten(2) for x, _, _ in levels]  # (B, C, P)

    def squares_and_grams(sums: list[Tensor], counts: Tensor) -> Summing[Parts]:
        centred = [x - total / n for x, total, n in zip(samples, sums, counts, strict=True)]
        related = [x for x, (_, _, c) in zip(centred, levels, strict=True) if c]
        squares = [x.square().sum(0) for x in centred]
        return Summing([*squares, *_gram_squares_of_positions(related)], lambda found: finish(found, counts))

    def finish(found: list[Tensor], counts: Tensor) -> Parts:
        squares, grams = found[: len(levels)], iter(found[len(levels) :])
        variances, covariances = [], []
        for square, n, (_, v, c) in zip(squares, (counts - 1).clamp_min(1), levels, strict=True):
            variances.append(v * torch.relu(1 - torch.sqrt(square / n + 1e-4)).mean())
            if c:
                off_diagonal = next(grams) - square.square().sum(0)
                covariances.append(c * off_diagonal.mean() / (n**2 * len(square)))
        return variances, covariances

    return counted([x.detach().sum(0) for x in samples], [len(x) for x in samples], squares_and_grams)


def _gram_squares_of_positions(maps: Sequence[Tensor]) -> list[Tensor]:
    """This rank's parts of ||z z^T||_F^2 at every position, (P,), of centred maps (B, C, P)."""
    if not maps:
        return []
    # Zeros, which stand for a pair on ranks without one, add nothing.
    everyone = gather_rows(torch.cat([x.flatten(1) for x in maps], dim=1), at_least=2)
    pieces = everyone.split([x.shape[1] * x.shape[2] for x in maps], dim=1)
    wholes = [piece.unflatten(1, x.shape[1:]) for piece, x in zip(pieces, maps, strict=True)]
    return [gram_squares(x.permute(2, 0, 1), y.permute(2, 0, 1)) for x, y in zip(maps, wholes, strict=True)]


@over_ranks
def variance_covariance_loss(
    maps: Sequence[Tensor],
    variance_weights: Sequence[float],
    covariance_weights: Sequence[float],
    samples: str = "positions",
) -> Summing[tuple[Tensor, Tensor]]:
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
        return Summing([], lambda _: (nothing, nothing.clone()))

    def add_up(parts: Parts) -> tuple[Tensor, Tensor]:
        variances, covariances = parts
        return torch.stack(variances).sum(), torch.stack(covariances).sum() if covariances else nothing

    if samples == "images":
        return _over_images(used).then(add_up)
    matrices = channel_covariances.begin([x for x, _, _ in used])
    return matrices.then(lambda found: add_up(_over_positions(used, found)))
