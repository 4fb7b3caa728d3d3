"""Content term: VICReg on two views (Bardes et al. 2022; method section 2.10), over the global batch.

invariance  mean (z - z')^2
variance    mean_j relu(1 - sqrt(Var_j + 1e-4)) / 2, of each view, summed
covariance  sum_{i != j} C_ij^2 / D, C = z^T z / (N - 1) of the centred z, of each view, summed
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mcjepa.model.reduction import gather_rows


def variance_part(z_ND: Tensor) -> Tensor:
    """Half the mean hinge of the standard deviations of (N, D), scalar."""
    return torch.relu(1 - torch.sqrt(z_ND.var(0) + 1e-4)).mean() / 2


def off_diagonal_squares(centred_ND: Tensor) -> Tensor:
    """Sum of the squared off-diagonal elements of z^T z, of (..., N, D) to (...).

    With N < D it uses ||z^T z||_F = ||z z^T||_F: N^2 D operations instead of N D^2 and no D x D matrix.
    """
    rows, width = centred_ND.shape[-2:]
    z, transposed = centred_ND, centred_ND.transpose(-2, -1)
    product = z @ transposed if rows < width else transposed @ z
    diagonal = z.square().sum(-2).square().sum(-1)
    return product.square().sum((-2, -1)) - diagonal


def covariance_part(z_ND: Tensor) -> Tensor:
    """Sum of squared off-diagonal covariances over D, of (N, D), scalar."""
    rows, width = z_ND.shape
    return off_diagonal_squares(z_ND - z_ND.mean(0)) / ((rows - 1) ** 2 * width)


def vicreg_terms(z_ND: Tensor, other_ND: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Invariance, variance and covariance of the two views' embeddings, unweighted.

    Args:
        z_ND: expanded embeddings of the first views on this rank, (N, D).
        other_ND: of the second views.

    Returns:
        Three scalars, fp32, over the rows of all ranks.
    """
    with torch.autocast(z_ND.device.type, enabled=False):  # products in bf16 make decorrelated features negative
        z, other = gather_rows(torch.cat((z_ND.float(), other_ND.float()), dim=1)).chunk(2, dim=1)
        if z.shape[0] < 2:
            raise ValueError("VICReg got one sample in all, expected at least 2: raise view_batch")
        variance = variance_part(z) + variance_part(other)
        return F.mse_loss(z, other), variance, covariance_part(z) + covariance_part(other)
