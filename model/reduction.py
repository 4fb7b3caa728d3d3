"""Sums and gathers over all ranks with right gradients: the identity where nothing is distributed.

Every rank computes the same global loss L from them. Gradients of a parameter are those of all ranks' copies of L added
up, so averaging them over ranks (as data-parallel engines do) gives dL/dw exactly. That holds for any shares, empty
ones too, as long as every mean is a sum over a number of which all ranks' are added up.

A sum that L alone is made of has the same gradient on every rank, so W times one's own is all ranks' together, and the
backward pass sends nothing (`global_sums`). Of gathered rows a rank needs the gradient of its own alone, which it can
compute from the others' as constants (`gather_rows`). What each rank uses further on its own, like the mean and
variance of a norm, is summed on the way back too (`global_moments`).

A loss that needs sums over ranks is begun, which gives a `Summing`: what is to be added up, and what comes of the sums.
`alongside` makes one of several, so that one collective serves a round of all of them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Generic, ParamSpec, TypeVar

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")
S = TypeVar("S")


@dataclass(frozen=True)
class Summing(Generic[R]):
    """A value that waits for sums over ranks, in one or more rounds."""

    parts: list[Tensor]
    """This rank's parts of the sums, of any shapes and one type."""
    finish: Callable[[list[Tensor]], R | Summing[R]]
    """The value, or the next round, of the sums."""

    def then(self, change: Callable[[R], S | Summing[S]]) -> Summing[S]:
        """What comes of the value."""

        def go_on(sums: list[Tensor]) -> S | Summing[S]:
            found = self.finish(sums)
            return found.then(change) if isinstance(found, Summing) else change(found)

        return Summing(self.parts, go_on)


def world_size() -> int:
    """Number of ranks; 1 where torch.distributed is not initialised."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


class _GlobalSums(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *parts: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)  # a sum that is not used asks nothing of what it is made of
        flat = torch.cat([part.flatten() for part in parts])
        dist.all_reduce(flat)
        return tuple(x.view_as(part) for x, part in zip(flat.split([p.numel() for p in parts]), parts, strict=True))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        ranks = world_size()
        return tuple(None if grad is None else ranks * grad for grad in grads)


class _GlobalMoments(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        ctx.count = x.numel() // x.shape[1] * world_size()
        mean = _summed_by_channel(x) / ctx.count
        centred = x - _as_channels(mean, x)
        ctx.save_for_backward(x, mean)
        return mean, _summed_by_channel(centred.square()) / ctx.count

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        x, mean = ctx.saved_tensors
        centred = x - _as_channels(mean, x)
        of_mean, of_variance = (_as_channels(x, centred) for x in _reduced(torch.stack(grads)) / ctx.count)
        grad: Tensor = of_mean + 2 * of_variance * centred
        return grad


def _as_channels(x_C: Tensor, like: Tensor) -> Tensor:
    """(C,) to what multiplies (N, C, ...)."""
    return x_C.view(-1, *(1,) * (like.ndim - 2))


def _summed_by_channel(x: Tensor) -> Tensor:
    return _reduced(x.sum((0, *range(2, x.ndim))))


def _reduced(x: Tensor) -> Tensor:
    """Sum over ranks, in place."""
    if world_size() > 1:
        dist.all_reduce(x)
    return x


def global_sums(parts: Sequence[Tensor]) -> list[Tensor]:
    """Sums over ranks of tensors of any shapes and one type, by one collective.

    Their gradients are right where nothing but the global loss is computed from them, alike on every rank.
    """
    return list(parts) if world_size() == 1 or not parts else list(_GlobalSums.apply(*parts))


def global_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance (over N, not N - 1) of each channel over all else and all ranks, (C,) each.

    Each rank may use them with what it has itself: two collectives forward, one backward.

    Args:
        x: this rank's share, (N, C) or (N, C, h, w); each rank must hold as much.
    """
    mean, variance = _GlobalMoments.apply(x)
    return mean, variance


@torch.no_grad()
def gather_rows(x: Tensor, at_least: int = 0) -> Tensor:
    """Rows of all ranks in rank order, (N, ...) to (W N, ...), as constants.

    Args:
        x: this rank's rows; each rank must hold as many, when they are filled up.
        at_least: where a rank holds fewer rows than this, zeros fill them up.
    """
    if world_size() == 1:
        return x.detach()
    missing = at_least - len(x)
    rows = (F.pad(x, (0, 0) * (x.ndim - 1) + (0, missing)) if missing > 0 else x).contiguous()
    out = rows.new_empty((world_size() * len(rows), *rows.shape[1:]))
    dist.all_gather_into_tensor(out, rows)
    return out


def run_summing(summing: Summing[R]) -> R:
    """The value, by one collective a round."""
    found: R | Summing[R] = summing
    while isinstance(found, Summing):
        found = found.finish(global_sums(found.parts))
    return found


def alongside(values: Mapping[str, Any]) -> Summing[dict[str, Any]]:
    """Several values by name, of which some may be `Summing`: each round adds up the parts of all that still go on."""
    waiting = {name: value for name, value in values.items() if isinstance(value, Summing)}

    def go_on(sums: list[Tensor]) -> Summing[dict[str, Any]] | dict[str, Any]:
        left = iter(sums)
        found = {name: value.finish(list(islice(left, len(value.parts)))) for name, value in waiting.items()}
        merged = {**values, **found}
        return alongside(merged) if any(isinstance(value, Summing) for value in found.values()) else merged

    return Summing([part for value in waiting.values() for part in value.parts], go_on)


class OverRanks(Generic[P, R]):
    """A loss that can be called by itself, or begun, to go on alongside others; made by `over_ranks`."""

    def __init__(self, begin: Callable[P, Summing[R]]) -> None:
        self.begin = begin

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        return run_summing(self.begin(*args, **kwargs))


def over_ranks(begin: Callable[P, Summing[R]]) -> OverRanks[P, R]:
    """Decorator of a function that gives a `Summing`."""
    loss = OverRanks(begin)
    functools.update_wrapper(loss, begin)
    return loss


def counted(
    parts: Sequence[Tensor], counts: Sequence[int], finish: Callable[[list[Tensor], Tensor], R | Summing[R]]
) -> Summing[R]:
    """Sums of some tensors and of as many numbers.

    Args:
        parts: K tensors of any shapes and one type, such as sums over what this rank has.
        counts: of how much each is the sum; shares of ranks may differ, and be empty.
        finish: gets the K sums, and the K numbers, (K,), at least 1, of the parts' type and on their device.
    """
    # Filled on the device: a list would be copied to it, and the host would wait for what is queued there.
    numbers = torch.stack([part.new_full((), count) for part, count in zip(parts, counts, strict=True)])
    return Summing([*parts, numbers], lambda sums: finish(sums[:-1], sums[-1].detach().clamp_min(1)))


@over_ranks
def masked_means(values: Sequence[Tensor], masks: Sequence[Tensor]) -> Summing[Tensor]:
    """Mean of each map where its mask is 1, over all elements of all ranks; 0 where no element is.

    Args:
        values: K maps (B, C, h, w) of any sizes.
        masks: K masks (B, 1, h, w), float in [0, 1], without gradient.

    Returns:
        K means, shape (K,), fp32.
    """
    own = torch.stack([(x * mask).sum() for x, mask in zip(values, masks, strict=True)])
    numbers = torch.stack([mask.sum() * x.shape[1] for x, mask in zip(values, masks, strict=True)])
    return Summing([own, numbers], lambda sums: sums[0] / sums[1].clamp_min(1.0))


@over_ranks
def masked_mean(values: Tensor, mask: Tensor) -> Summing[Tensor]:
    """`masked_means` of one map: scalar."""
    return masked_means.begin([values], [mask]).then(lambda means: means[0])
