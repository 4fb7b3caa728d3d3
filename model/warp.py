"""Flow fields: warping by them, upsampling, tests of occlusion, and what to do where two directions disagree.

**The convention of the whole project, stated once.** `flow_ab` lives on the pixel grid of `a` and points to `b`:
the thing seen at p in `a` is at p + flow_ab(p) in `b`. Component 0 is u (to the right, along the width),
component 1 is v (down), in pixels of the map it belongs to. So `warp(b, flow_ab)` looks like `a`, which is what
benchmarks call the flow a -> b. In the paper's notation (its section on flow, method section 2.9) the map warped
by F(X_t, X_t+1) is X_t and the result is compared with X_t+1, hence that field is our flow (t+1) -> t; as both
directions are always trained with the same estimator, the two namings describe one function.

>>> import torch
>>> a = torch.zeros(1, 1, 1, 4); a[..., 1] = 1           # the thing is at x = 1 in a
>>> b = torch.zeros(1, 1, 1, 4); b[..., 3] = 1           # and at x = 3 in b
>>> flow_ab = torch.zeros(1, 2, 1, 4); flow_ab[:, 0] = 2
>>> warp(b, flow_ab).flatten().tolist()[1]
1.0
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def _target_positions(flow_B2hw: Tensor) -> tuple[Tensor, Tensor]:
    """Positions p + f(p): x (B, h, w) and y (B, h, w), in pixels."""
    height, width = flow_B2hw.shape[-2:]
    x = torch.arange(width, device=flow_B2hw.device, dtype=flow_B2hw.dtype) + flow_B2hw[:, 0]
    y = torch.arange(height, device=flow_B2hw.device, dtype=flow_B2hw.dtype).view(-1, 1) + flow_B2hw[:, 1]
    return x, y


def _centres(flow_B2hw: Tensor, margin: int) -> tuple[Tensor, Tensor]:
    """Where cells lie as `grid_sample` counts, from -1 to 1 between the map's edges: x (w,) and y (h, 1), fp32.

    In that unit a position takes an addition and a clamp: a step warps some twenty maps, and launches are its price.
    """
    height, width = flow_B2hw.shape[-2:]
    ends = ((n, 1 - (2 * margin + 1) / (n + 2 * margin)) for n in (width, height))
    x, y = (torch.linspace(-end, end, n, device=flow_B2hw.device) for n, end in ends)
    return x, y.view(-1, 1)


def warp(map_BChw: Tensor, flow_B2hw: Tensor, margin: int = 0) -> Tensor:
    """Samples `map` at p + flow(p), bilinearly, the border repeated outside.

    Args:
        map_BChw: the map that the flow points into, shape (B, C, h + 2 margin, w + 2 margin).
        flow_B2hw: flow in cells of that map, shape (B, 2, h, w).
        margin: cells that the map has more on every side than the flow.

    Returns:
        The warped map, shape (B, C, h, w), computed in fp32 and returned in the map's type.
    """
    height, width = map_BChw.shape[-2:]
    with torch.autocast(map_BChw.device.type, enabled=False):
        # Clamped here instead of padding_mode="border", whose backward pass on CPUs crashes on NaN (torch 2.13).
        x, y = (
            torch.add(cells, shift, alpha=2 / count).clamp(1 / count - 1, 1 - 1 / count)
            for cells, shift, count in zip(
                _centres(flow_B2hw, margin), flow_B2hw.float().unbind(1), (width, height), strict=True
            )
        )
        grid = torch.stack((x, y), dim=-1)
        out = F.grid_sample(map_BChw.float(), grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return out.to(map_BChw.dtype)


def inside(flow_B2hw: Tensor, margin: int = 0) -> Tensor:
    """Whether p + flow(p) lies on the map or within `margin` cells of it, bool of shape (B, 1, h, w)."""
    height, width = flow_B2hw.shape[-2:]
    x, y = _target_positions(flow_B2hw)
    on_row = (x >= -margin) & (x <= width - 1 + margin)
    return (on_row & (y >= -margin) & (y <= height - 1 + margin)).unsqueeze(1)


def upsample_flow(flow_B2hw: Tensor, size: tuple[int, int], factor: int) -> Tensor:
    """Bilinear upsampling by a whole factor, values multiplied by it, cropped to `size`.

    The crop undoes the padding of odd sides in the encoder, so cells stay where they belong.
    """
    up = F.interpolate(flow_B2hw, scale_factor=factor, mode="bilinear", align_corners=False) * factor
    return up[..., : size[0], : size[1]]


def pool(x_BChw: Tensor, factor: int) -> Tensor:
    """Mean over factor x factor cells; a ragged border has the mean of what is there."""
    return x_BChw if factor == 1 else F.avg_pool2d(x_BChw, factor, ceil_mode=True, count_include_pad=False)


@torch.no_grad()
def visible(flow_ab: Tensor, flow_ba: Tensor, scale: float, offset: float) -> Tensor:
    """Pixels of `a` with a two-way correspondence in `b` (method section 2.7).

    A pixel is left out where it leaves the frame or where |f + f'|^2 > scale (|f|^2 + |f'|^2) + offset, with f'
    the backward flow at its target. No gradient passes.

    Args:
        flow_ab: (B, 2, h, w), in pixels.
        flow_ba: (B, 2, h, w), in pixels.
        scale: the relative tolerance.
        offset: the absolute tolerance, in square pixels.

    Returns:
        float mask of shape (B, 1, h, w), 1 where visible.
    """
    back = warp(flow_ba, flow_ab)
    error = (flow_ab + back).square().sum(1, keepdim=True)
    size = flow_ab.square().sum(1, keepdim=True) + back.square().sum(1, keepdim=True)
    return ((error <= scale * size + offset) & inside(flow_ab)).float()


@torch.no_grad()
def range_map(flow_B2hw: Tensor) -> Tensor:
    """How many pixels land on each cell when all follow their flow, each spread bilinearly over four cells.

    Args:
        flow_B2hw: (B, 2, h, w), in cells; for the visibility of `a` that of the other frame, b -> a.

    Returns:
        (B, 1, h, w), fp32: 1 everywhere for zero flow, 0 where nothing arrives.
    """
    batch, _, height, width = flow_B2hw.shape
    x, y = _target_positions(torch.nan_to_num(flow_B2hw.float(), nan=0.0, posinf=0.0, neginf=0.0))  # NaN is no place
    left, top = x.floor(), y.floor()
    images = torch.arange(batch, device=flow_B2hw.device).view(-1, 1, 1) * (height * width)
    counts = torch.zeros(batch * height * width, device=flow_B2hw.device)
    for column in (left, left + 1):
        for row in (top, top + 1):
            share = (1 - (x - column).abs()) * (1 - (y - row).abs())
            on_map = (column >= 0) & (column < width) & (row >= 0) & (row < height)
            cell = images + (row.clamp(0, height - 1) * width + column.clamp(0, width - 1)).long()
            counts.index_add_(0, cell.flatten(), (share * on_map).flatten())
    return counts.view(batch, 1, height, width)


@torch.no_grad()
def trust_if_mostly_visible(mask_B1HW: Tensor, least: float) -> Tensor:
    """The mask, or all ones for those images of the batch of which less than `least` is visible.

    Two flows that contradict each other everywhere would otherwise leave no pixel to learn from, a state that
    training never leaves again (seen on small models within 100 steps).
    """
    trusted = mask_B1HW.mean((1, 2, 3), keepdim=True) >= least
    return torch.where(trusted, mask_B1HW, torch.ones_like(mask_B1HW))


def reached(flow_ab: Tensor, flow_ba: Tensor, least: float) -> Tensor:
    """Pixels of `a` that stay in the frame and on which at least `least` pixels of `b` land (Wang et al. 2018).

    Args:
        flow_ab: (B, 2, h, w), in pixels.
        flow_ba: (B, 2, h, w), in pixels.
        least: threshold on `range_map(flow_ba)`.

    Returns:
        float mask of shape (B, 1, h, w), 1 where visible. No gradient passes.
    """
    return ((range_map(flow_ba) >= least) & inside(flow_ab)).float()


_RECONCILED_AT = ((8, 12), (4, 6))
"""Strides of `reconcile`, each half the one before, and its rounds at each: 12 at stride 8 reach 384 px."""
_APART = tuple((dy, dx) for dy in (-4, -2, 0, 2, 4) for dx in (-4, -2, 0, 2, 4) if (dy, dx) != (0, 0))
"""A cell's neighbours in `reconcile`, in cells: every second of a square of nine."""
_COLOUR_SCALE = 0.05
"""Difference of colour, of [0, 1], at which a neighbour counts 1 / e."""
_LEAST_LIKENESS = 0.3
"""What neighbours that are less alike together share: in fine texture a cell's own measurement stays."""


@torch.no_grad()
def reconcile(flow_ab: Tensor, flow_ba: Tensor, image_a: Tensor) -> Tensor:
    """The flow of `a`, taken from places nearby that look alike where the other direction contradicts it.

    What passes the two-way test is a measurement. Occluded pixels have none, and beside something that moves the
    estimator's flow is often that thing's. Measurements are spread by colour, from coarse cells to finer ones, and
    smooth each other on the way [ours; the test and the spreading by colour are those of classical flow].

    Args:
        flow_ab: (B, 2, H, W), in pixels.
        flow_ba: (B, 2, H, W), in pixels.
        image_a: frame `a`, (B, 3, H, W), RGB in [0, 1].

    Returns:
        (B, 2, H, W), fp32, known in cells of four pixels and bilinear between them.
    """
    flow, image = flow_ab.float(), image_a.float()
    trusted = visible(flow, flow_ba.float(), scale=0.01, offset=0.5)
    settled: Tensor = flow
    known: Tensor | None = None
    for stride, rounds in _RECONCILED_AT:
        share, colours = pool(trusted, stride), pool(image, stride)
        measured = torch.where(share > 0, pool(flow * trusted, stride) / share.clamp_min(1e-6), pool(flow, stride))
        weight = share * (share > 0.5)
        if known is None:
            settled, known = measured, weight
        else:
            coarse = F.interpolate(torch.cat((settled, known), dim=1), scale_factor=2, mode="bilinear")
            coarse = coarse[..., : weight.shape[-2], : weight.shape[-1]]
            settled = torch.where(weight > 0, measured, coarse[:, :2])
            known = torch.maximum(weight, 0.9 * coarse[:, 2:])
        settled, known = _spread(measured, weight, settled, known, _likeness(colours), rounds)
    full = F.interpolate(settled, scale_factor=_RECONCILED_AT[-1][0], mode="bilinear", align_corners=False)
    return full[..., : flow.shape[-2], : flow.shape[-1]]


def _neighbours(x_BChw: Tensor) -> list[Tensor]:
    """The map seen from each cell's neighbours, zero beyond the border."""
    height, width = x_BChw.shape[-2:]
    reach = max(dy for dy, _ in _APART)
    padded = F.pad(x_BChw, (reach,) * 4)
    return [padded[..., reach + dy :, reach + dx :][..., :height, :width] for dy, dx in _APART]


def _likeness(colours_B3hw: Tensor) -> list[Tensor]:
    """How much each neighbour counts, each (B, 1, h, w): they sum to 1, to less where hardly any looks alike."""
    on_map = _neighbours(torch.ones_like(colours_B3hw[:, :1]))
    alike = [
        (torch.exp(-(there - colours_B3hw).square().sum(1, keepdim=True) / _COLOUR_SCALE**2) + 1e-4) * exists
        for there, exists in zip(_neighbours(colours_B3hw), on_map, strict=True)
    ]
    total = torch.stack(alike).sum(0).clamp_min(_LEAST_LIKENESS)
    return [x / total for x in alike]


def _spread(
    measured: Tensor, weight: Tensor, settled: Tensor, known: Tensor, likeness: list[Tensor], rounds: int
) -> tuple[Tensor, Tensor]:
    """Every cell's mean of its own measurement and what its neighbours have settled on, `rounds` times.

    Args:
        measured: flow of the cells, (B, 2, h, w).
        weight: how far it is trusted, 0 to 1, (B, 1, h, w).
        settled: flow to begin with, (B, 2, h, w).
        known: how far that is trusted, (B, 1, h, w).
        likeness: see `_likeness`.
        rounds: how often.

    Returns:
        `settled` and `known` afterwards.
    """
    for _ in range(rounds):
        there = torch.zeros_like(torch.cat((settled, known), dim=1))
        for share, seen in zip(likeness, _neighbours(torch.cat((settled * known, known), dim=1)), strict=True):
            there.addcmul_(share, seen)
        support = there[:, 2:]
        certain = weight + support
        mean = (weight * measured + there[:, :2]) / certain.clamp_min(1e-20)
        settled, known = torch.where(certain > 1e-20, mean, settled), torch.maximum(weight, 0.95 * support)
    return settled, known
