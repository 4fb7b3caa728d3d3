"""Content term: VICReg on two views (Bardes et al. 2022; method section 2.10), over the global batch.

invariance  mean (z - z')^2
variance    mean_j relu(1 - sqrt(Var_j + 1e-4)) / 2, of each view, summed
covariance  sum_{i != j} C_ij^2 / D, C = z^T z / (N - 1) of the centred z, of each view, summed

Each rank computes the parts of its own rows, with their gradients, which the mean does not change: sum_n (z_n - mean)
is 0.
"""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch
from torch import Tensor

from mcjepa.model.reduction import Summing, gather_rows, over_ranks, world_size


def gram_squares(own_nD: Tensor, all_ND: Tensor) -> Tensor:
    """This rank's part of ||z z^T||_F^2 = ||z^T z||_F^2, of (..., n, D) to (...): n N D operations, no D x D matrix.

    With rows as constants it has half of its gradient on this rank's own; the matrix being symmetric, the other ranks'
    parts would bring the other half, so it is doubled here.

    Args:
        own_nD: this rank's centred rows.
        all_ND: those of all ranks, constants.
    """
    part = (own_nD @ all_ND.transpose(-2, -1)).square().sum((-2, -1))
    return 2 * part - part.detach()


Terms = tuple[Tensor, Tensor, Tensor]


@over_ranks
def vicreg_terms(z_ND: Tensor, other_ND: Tensor) -> Summing[Terms]:
    """Invariance, variance and covariance of the two views' embeddings, unweighted.

    Args:
        z_ND: expanded embeddings of the first views on this rank, (N, D); each rank must hold as many.
        other_ND: of the second views.

    Returns:
        Three scalars, fp32, over the rows of all ranks.

    Raises:
        ValueError: there is one row in all.
    """
    rows, width = len(z_ND) * world_size(), z_ND.shape[1]
    if rows < 2:
        raise ValueError("VICReg got one sample in all, expected at least 2: raise view_batch")
    own_n2D = torch.cat((z_ND.float(), other_ND.float()), dim=1)
    if rows >= width:
        return Summing([own_n2D.detach().sum(0)], lambda sums: _by_features(own_n2D - sums[0] / rows, own_n2D, rows))
    everyone = gather_rows(own_n2D)
    mean = everyone.mean(0)
    return _by_samples(own_n2D - mean, everyone - mean, own_n2D)


def _by_samples(centred_n2D: Tensor, everyone_N2D: Tensor, own_n2D: Tensor) -> Summing[Terms]:
    """From parts of ||z z^T||_F^2 of both views."""
    views = zip(centred_n2D.chunk(2, 1), everyone_N2D.chunk(2, 1), strict=True)
    with _fp32(own_n2D):
        grams = torch.stack([gram_squares(own, everyone) for own, everyone in views])
    parts = [_distance(own_n2D), centred_n2D.square().sum(0), grams]
    return Summing(parts, lambda sums: _terms(sums[0], sums[1], sums[2], len(everyone_N2D)))


def _by_features(centred_n2D: Tensor, own_n2D: Tensor, rows: int) -> Summing[Terms]:
    """From parts of z^T z of both views, the smaller matrix where there are no fewer rows than features."""
    with _fp32(own_n2D):
        products = torch.stack([view.T @ view for view in centred_n2D.chunk(2, 1)])
    parts = [_distance(own_n2D), centred_n2D.square().sum(0), products]
    return Summing(parts, lambda sums: _terms(sums[0], sums[1], sums[2].square().sum((1, 2)), rows))


def _fp32(x: Tensor) -> AbstractContextManager[None]:
    """Products in bf16 make decorrelated features negative."""
    return torch.autocast(x.device.type, enabled=False)


def _distance(own_n2D: Tensor) -> Tensor:
    """Sum of squared differences of the two views."""
    first, second = own_n2D.chunk(2, 1)
    return (first - second).square().sum()


def _terms(distance: Tensor, squares_2D: Tensor, grams_2: Tensor, rows: int) -> Terms:
    """The three terms from sums over all rows: of squared differences and squares, and ||z^T z||_F^2 of both views."""
    width = len(squares_2D) // 2
    hinges = torch.relu(1 - torch.sqrt(squares_2D / (rows - 1) + 1e-4)).sum() / (2 * width)
    off_diagonal = grams_2 - squares_2D.view(2, width).square().sum(1)
    return distance / (rows * width), hinges, off_diagonal.sum() / ((rows - 1) ** 2 * width)
