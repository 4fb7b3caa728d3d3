"""Sums and gathers over all ranks with right gradients: the identity where nothing is distributed.

Every rank computes the same global loss L from them. Their backward passes add up the gradients of all ranks'
copies of L, so averaging parameter gradients over ranks (as data-parallel engines do) gives dL/dw exactly. That holds
for any shares, empty ones too, as long as every mean is a sum over a number of which all ranks' are added up.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor


def world_size() -> int:
    """Number of ranks; 1 where torch.distributed is not initialised."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


class _AllReduceSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        out = x.detach().clone()
        dist.all_reduce(out)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        grad = grads[0].clone()
        dist.all_reduce(grad)
        return grad


class _AllGather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, x.contiguous())
        ctx.rows = x.shape[0]
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        grad = grads[0].contiguous().clone()
        dist.all_reduce(grad)
        start = dist.get_rank() * ctx.rows
        return grad[start : start + ctx.rows]


def global_sum(x: Tensor) -> Tensor:
    """Sum of `x` over ranks, same shape."""
    if world_size() == 1:
        return x
    out: Tensor = _AllReduceSum.apply(x)
    return out


def counted_sums(parts: Sequence[Tensor], counts: Sequence[int]) -> tuple[list[Tensor], Tensor]:
    """Sums over ranks of some tensors and of as many numbers, by one collective.

    Args:
        parts: K tensors of any shapes and one type, such as sums over what this rank has.
        counts: of how much each is the sum; shares of ranks may differ, and be empty.

    Returns:
        The K sums, and the K numbers, (K,), at least 1, of the parts' type and on their device.
    """
    # Filled on the device: a list would be copied to it, and the host would wait for what is queued there.
    numbers = torch.stack([part.new_full((), count) for part, count in zip(parts, counts, strict=True)])
    sums = global_sum(torch.cat([*(part.flatten() for part in parts), numbers]))
    *totals, numbers = sums.split([*(part.numel() for part in parts), len(parts)])
    return [total.view_as(part) for total, part in zip(totals, parts, strict=True)], numbers.detach().clamp_min(1)


def gather_rows(x_ND: Tensor, at_least: int = 0) -> Tensor:
    """Rows of all ranks in rank order, (N, D) to (W N, D).

    Args:
        x_ND: this rank's rows; each rank must hold as many, when they are filled up.
        at_least: where a rank holds fewer rows than this, zeros fill them up.
    """
    if world_size() == 1:
        return x_ND
    missing = at_least - len(x_ND)
    out: Tensor = _AllGather.apply(F.pad(x_ND, (0, 0, 0, missing)) if missing > 0 else x_ND)
    return out


def masked_means(values: Sequence[Tensor], masks: Sequence[Tensor]) -> Tensor:
    """Mean of each map where its mask is 1, over all elements of all ranks; 0 where no element is.

    One sum over ranks serves all of them: many small collectives cost more than a step's mathematics.

    Args:
        values: K maps (B, C, h, w) of any sizes.
        masks: K masks (B, 1, h, w), float in [0, 1], without gradient.

    Returns:
        K means, shape (K,), fp32.
    """
    totals = torch.stack([(x * mask).sum() for x, mask in zip(values, masks, strict=True)])
    counts = torch.stack([mask.sum() * x.shape[1] for x, mask in zip(values, masks, strict=True)])
    totals, counts = global_sum(torch.stack((totals, counts)))
    return totals / counts.clamp_min(1.0)


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """`masked_means` of one map: scalar."""
    return masked_means([values], [mask])[0]
