"""Collapse meters: how much of its room a representation uses, over the samples of all ranks.

deviation       of each dimension: 0 in a collapsed one
effective rank  exp of the entropy of the singular values' shares (Roy and Vetterli, 2007): 1 where all samples lie
                on a line, the number of dimensions where they fill it evenly
off-diagonal    sum of squared covariances between dimensions over the number of dimensions, VICReg's third term
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mcjepa.pipeline.settings.monitor import AlertConfig

DEAD_STD = 1e-3
"""A dimension whose deviation is below this says nothing."""


@dataclass(frozen=True)
class Spread:
    """How a set of vectors is spread."""

    std_mean: float
    std_least: float
    dead_share: float
    """Share of dimensions with a deviation below `DEAD_STD`."""
    rank: float
    """Effective rank, 1 to the number of dimensions; 0 where all vectors are equal."""
    rank_share: float
    """The same over the most that so many samples and dimensions allow."""
    off_diagonal: float


def effective_rank(covariance_DD: Tensor) -> float:
    """Effective rank of centred vectors from their covariance, whose eigenvalues are squared singular values.

    >>> effective_rank(torch.eye(4))
    4.0
    """
    singular = torch.linalg.eigvalsh(covariance_DD.double()).clamp_min(0).sqrt()
    if float(singular.sum()) <= 0:
        return 0.0
    share = singular / singular.sum()
    return round(float(torch.exp(-torch.xlogy(share, share).sum())), 6)


def global_covariances(vectors: Sequence[Tensor]) -> tuple[list[Tensor], list[int]]:
    """Covariances over the rows of all ranks; all ranks call it with as many sets of the same widths.

    Args:
        vectors: sets (N, D), each of any N.

    Returns:
        Covariances (D, D), fp32, and the numbers of rows of all ranks. Two sums over ranks serve all sets.
    """
    sums = [torch.cat((x.float().sum(0), x.new_full((1,), float(x.shape[0]), dtype=torch.float32))) for x in vectors]
    totals = _summed(sums)
    counts = [float(total[-1]) for total in totals]
    centred = [x.float() - total[:-1] / max(n, 1.0) for x, total, n in zip(vectors, totals, counts, strict=True)]
    products = _summed([x.T @ x for x in centred])
    return [p / max(n - 1, 1.0) for p, n in zip(products, counts, strict=True)], [int(n) for n in counts]


def _summed(parts: Sequence[Tensor]) -> list[Tensor]:
    """Sums over ranks of tensors of any shapes, by one collective."""
    flat = torch.cat([part.reshape(-1) for part in parts])
    if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
        torch.distributed.all_reduce(flat)
    pieces = flat.split([part.numel() for part in parts])
    return [piece.view(part.shape) for piece, part in zip(pieces, parts, strict=True)]


def spread_of(covariance_DD: Tensor, rows: int) -> Spread:
    """The meters of one set of vectors."""
    width = covariance_DD.shape[0]
    std = covariance_DD.diagonal().clamp_min(0).sqrt()
    rank = effective_rank(covariance_DD.cpu())
    return Spread(
        float(std.mean()),
        float(std.min()),
        float((std < DEAD_STD).float().mean()),
        rank,
        rank / max(min(width, rows - 1), 1),
        float((covariance_DD.square().sum() - covariance_DD.diagonal().square().sum()) / width),
    )


class Alerts:
    """Says when a meter leaves its limits, once until it is back."""

    def __init__(self, config: AlertConfig) -> None:
        self._below = {
            "embedding_std_mean": config.embedding_std,
            "embedding_rank_share": config.embedding_rank,
            "visible_share": config.visible_share,
        }
        self._above = {"flow_px": config.flow_px}
        self.standing: set[str] = set()

    def look(self, values: Mapping[str, float]) -> list[str]:
        """New alerts, as lines for a person."""
        lines = []
        for limits, sign, word in ((self._below, -1.0, "below"), (self._above, 1.0, "above")):
            for name, limit in limits.items():
                if name not in values:
                    continue
                beyond = sign * (values[name] - limit) > 0
                if beyond and name not in self.standing:
                    lines.append(f"{name} is {values[name]:.4g}, {word} its limit {limit:g}")
                self.standing = self.standing | {name} if beyond else self.standing - {name}
        return lines
