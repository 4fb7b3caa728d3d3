"""Cycle term (method section 2.4): features warped to the other frame and back come home.

    sum over levels of  mean over visible p of ( X_a(p) - warp(warp(X_a, flow_ba), flow_ab)(p) )^2

The same masked mean squared difference as the regression term, of other arguments.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from mcjepa.model.losses.regression import regression_errors
from mcjepa.model.reduction import Summing, over_ranks
from mcjepa.model.warp import warp


@over_ranks
def cycle_errors(
    maps: Sequence[Tensor],
    flows_ab: Sequence[Tensor],
    flows_ba: Sequence[Tensor],
    masks: Sequence[Tensor],
    moved: Sequence[Tensor] | None = None,
) -> Summing[Tensor]:
    """Masked mean squared difference of the maps and their round trip, of every level.

    Args:
        maps: X_a of every level, each (B, C, h, w).
        flows_ab: flow a -> b of every level, in its cells, each (B, 2, h, w).
        flows_ba: flow b -> a likewise.
        masks: visible share of every cell of a, (B, 1, h, w).
        moved: warp(X_a, flow_ba) of every level, where the caller has it: half of this term's work.

    Returns:
        Means, (K,), fp32.
    """
    if moved is None:
        moved = [warp(x, ba) for x, ba in zip(maps, flows_ba, strict=True)]
    round_trips = [warp(x, ab) for x, ab in zip(moved, flows_ab, strict=True)]
    return regression_errors.begin(maps, round_trips, masks)
