"""Correlation of two feature maps over a window of displacements, as banded matrix products.

    out[b, (dy + r) * (2r + 1) + (dx + r), y, x] = mean_c left[b, c, y, x] * right[b, c, y + dy, x + dx]

with zeros outside the map. For one displacement row dy, all dx at once are the product of a stretch of an image row of
`left` (T, C) with the stretch of the padded row of `right` that it can reach (C, T + 2r): the wanted values are its
diagonal band, read out as a strided view. The backward pass writes the gradient into the same band and multiplies
again. Of T + 2r products 2r + 1 are wanted: long rows are cut into stretches, short ones stay whole, because small
products cost more a number. Maps are worked on in blocks that fit a cache, and nothing but the inputs is kept.
Measured in `benchmarks/model_correlation.py` against the loop over displacements.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def correlate_loop(left_BChw: Tensor, right_BChw: Tensor, search_range: int) -> Tensor:
    """The definition, one displacement after the other: the reference in tests and measurements."""
    height, width = left_BChw.shape[-2:]
    padded = F.pad(right_BChw, (search_range,) * 4)
    rows = [
        (left_BChw * padded[..., dy : dy + height, dx : dx + width]).mean(1)
        for dy in range(2 * search_range + 1)
        for dx in range(2 * search_range + 1)
    ]
    return torch.stack(rows, dim=1)


LONGEST_ROW, STRETCH = 64, 20  # cells; longer rows are cut into stretches of about this many
# What one product reads of `right` at a time: within a core's cache on CPUs, everything at once on accelerators.
BLOCK_BYTES = {"cpu": 512 << 10}
ACCELERATOR_BLOCK_BYTES = 256 << 20


@dataclass(frozen=True)
class _Tiling:
    """How maps (B, C, h, w) are cut: rows into `count` stretches of `tile` cells that see `reach` more a side; maps
    into blocks of `images` whole images, or of `rows` rows of one."""

    channels: int
    height: int
    width: int
    reach: int
    tile: int
    count: int
    images: int
    rows: int

    @property
    def window(self) -> int:
        return 2 * self.reach + 1

    @property
    def seen(self) -> int:
        return self.tile + 2 * self.reach

    @property
    def surplus(self) -> int:
        return self.count * self.tile - self.width

    def pad(self, right: Tensor) -> Tensor:
        """(B, C, h, w) to contiguous (B, h + 2r, count * T + 2r, C)."""
        r = self.reach
        return F.pad(right, (r, r + self.surplus, r, r)).permute(0, 2, 3, 1).contiguous()

    def cut(self, left: Tensor) -> Tensor:
        """(B, C, n, w) to stretches (B * n * count, T, C)."""
        rows = F.pad(left, (0, self.surplus)) if self.surplus else left
        return rows.permute(0, 2, 3, 1).reshape(-1, self.tile, left.shape[1])

    def row_blocks(self) -> Iterator[slice]:
        """The rows of one image, block by block."""
        return (slice(y, min(y + self.rows, self.height)) for y in range(0, self.height, self.rows))


def _tile(maps: Tensor, reach: int) -> _Tiling:
    _, channels, height, width = maps.shape
    tile = width
    if width > LONGEST_ROW:
        fitting = [t for t in range(max(2 * reach, 8), LONGEST_ROW + 1) if width % t == 0]
        tile = min(fitting, key=lambda t: abs(t - STRETCH)) if fitting else max(STRETCH, 2 * reach)
    count = -(-width // tile)
    row_bytes = count * (tile + 2 * reach) * channels * maps.element_size()
    rows = max(BLOCK_BYTES.get(maps.device.type, ACCELERATOR_BLOCK_BYTES) // row_bytes, 1)
    return _Tiling(channels, height, width, reach, tile, count, max(rows // height, 1), min(rows, height))


def _band(product: Tensor, window: int) -> Tensor:
    """The diagonal band of contiguous (rows, T, T + window - 1): a view of shape (rows, T, window)."""
    rows, width, padded = product.shape
    return product.as_strided((rows, width, window), (width * padded, padded + 1, 1))


def _stretches(padded: Tensor, t: _Tiling, rows: slice, dy: int, cells: slice) -> Tensor:
    """What the stretches of `rows` see in the rows dy further down: a view (B, n, count, cells, C) of `t.pad(...)`.

    It overlaps itself where it has more than T cells.
    """
    image, row, cell, _ = padded.stride()
    shape = (padded.shape[0], rows.stop - rows.start, t.count, cells.stop - cells.start, t.channels)
    start = padded.storage_offset() + (rows.start + dy) * row + cells.start * cell
    return padded.as_strided(shape, (image, row, t.tile * cell, cell, 1), start)


class _BandedCorrelation(torch.autograd.Function):
    """Keeps nothing but its inputs; everything else it needs is the size of a block."""

    @staticmethod
    def forward(ctx: Any, left: Tensor, right: Tensor, search_range: int) -> Tensor:
        t = _tile(left, search_range)
        ctx.save_for_backward(left, right)
        ctx.tiling = t
        out = left.new_empty(len(left), t.height, t.count * t.tile, t.window, t.window)
        groups = (x.split(t.images) for x in (left, right, out))
        for left_group, right_group, out_group in zip(*groups, strict=True):
            padded = t.pad(right_group)
            for rows in t.row_blocks():
                stretches = t.cut(left_group[:, :, rows])
                block = out_group[:, rows].view(-1, t.tile, t.window, t.window)
                for dy in range(t.window):
                    seen = _stretches(padded, t, rows, dy, slice(0, t.seen)).reshape(-1, t.seen, t.channels)
                    block[:, :, dy] = _band(torch.bmm(stretches, seen.transpose(1, 2)), t.window)
        return out[:, :, : t.width].flatten(3).div_(t.channels).permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        left, right = ctx.saved_tensors
        t: _Tiling = ctx.tiling
        grad_left, grad_right = torch.empty_like(left), torch.empty_like(right)
        groups = (x.split(t.images) for x in (left, right, grads[0], grad_left, grad_right))
        for left_group, right_group, grad_group, to_left, to_right in zip(*groups, strict=True):
            padded = t.pad(right_group)
            grad_padded = torch.zeros_like(padded)
            for rows in t.row_blocks():
                stretches = t.cut(left_group[:, :, rows])
                grad = t.cut(grad_group[:, :, rows]).unflatten(2, (t.window, t.window))
                of_left = _backward_block(t, rows, (stretches, padded), grad, grad_padded)
                of_left = of_left.view(len(to_left), -1, t.count * t.tile, t.channels)[:, :, : t.width]
                to_left[:, :, rows] = of_left.permute(0, 3, 1, 2).div_(t.channels)
            inner = grad_padded[:, t.reach : t.reach + t.height, t.reach : t.reach + t.width]
            to_right.copy_(inner.permute(0, 3, 1, 2)).div_(t.channels)
        return grad_left, grad_right, None


def _backward_block(t: _Tiling, rows: slice, maps: tuple[Tensor, Tensor], grad: Tensor, grad_padded: Tensor) -> Tensor:
    """Gradient of a block's stretches (n, T, C), times C; adds that of `right` to `grad_padded`."""
    stretches, padded = maps
    of_left = torch.zeros_like(stretches)
    spread = stretches.new_zeros(len(stretches), t.tile, t.seen)
    for dy in range(t.window):
        _band(spread, t.window).copy_(grad[:, :, dy])
        seen = _stretches(padded, t, rows, dy, slice(0, t.seen)).reshape(-1, t.seen, t.channels)
        of_left.baddbmm_(spread, seen)
        of_seen = torch.bmm(spread.transpose(1, 2), stretches)
        # In two parts, neither of which overlaps itself: the stretch's own length, and what it sees of the next.
        for cells in (slice(0, t.tile), slice(t.tile, t.seen)):
            target = _stretches(grad_padded, t, rows, dy, cells)
            target.add_(of_seen[:, cells].view(target.shape))
    return of_left


def correlate(left_BChw: Tensor, right_BChw: Tensor, search_range: int) -> Tensor:
    """Correlation over a (2r + 1) x (2r + 1) window of displacements.

    Args:
        left_BChw: (B, C, h, w).
        right_BChw: (B, C, h, w), zeros are taken outside of it.
        search_range: r, in cells.

    Returns:
        (B, (2r + 1)^2, h, w): mean over channels of the products; channel (dy + r) (2r + 1) + dx + r.
    """
    if left_BChw.shape != right_BChw.shape:
        raise ValueError(f"correlate: shapes {tuple(left_BChw.shape)} and {tuple(right_BChw.shape)} differ")
    result: Tensor = _BandedCorrelation.apply(left_BChw, right_BChw, search_range)
    return result
