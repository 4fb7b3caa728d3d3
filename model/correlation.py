"""Correlation of two feature maps over a window of displacements, as banded matrix products.

    out[b, (dy + r) * (2r + 1) + (dx + r), y, x] = mean_c left[b, c, y, x] * right[b, c, y + dy, x + dx]

with zeros outside the map. All displacements of a stretch of an image row of `left` (T, C) are the product with what
it can reach of the padded `right`, 2r + 1 rows of T + 2r cells: the wanted values are the diagonal bands, read out as
a strided view. The backward pass writes the gradient into the same bands and multiplies again. Of T + 2r products in a
row 2r + 1 are wanted: long rows are cut into stretches, short ones stay whole, because small products cost more a
number. Maps are worked on in blocks of rows that fit a cache, and nothing but the inputs is kept. In fp16, whose
largest number is 65,504, sums over channels would overflow before they are divided: factors of a product are made
smaller first, by a power of two, which rounds nothing.
Measured in `benchmarks/model/model_correlation.py` against the loop over displacements.
"""

from __future__ import annotations

import math
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


LONGEST_ROW, STRETCH = 40, 16  # cells; longer rows are cut into stretches of about this many
# What one product reads of `right` at a time: within a core's cache on CPUs, everything at once on accelerators.
BLOCK_BYTES = {"cpu": 2 << 20}
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
    row_bytes = count * (2 * reach + 1) * (tile + 2 * reach) * channels * maps.element_size()
    rows = max(BLOCK_BYTES.get(maps.device.type, ACCELERATOR_BLOCK_BYTES) // row_bytes, 1)
    return _Tiling(channels, height, width, reach, tile, count, max(rows // height, 1), min(rows, height))


def _bands(product: Tensor, window: int) -> Tensor:
    """The diagonals of contiguous (n, T, window * seen), one band a displacement row: a view (n, T, window, window)."""
    stretches, tile, width = product.shape
    return product.as_strided((stretches, tile, window, window), (tile * width, width + 1, width // window, 1))


def _seen(padded: Tensor, t: _Tiling, rows: slice, cells: slice) -> Tensor:
    """What stretches of `rows` see in each displacement row: a view (B, n, count, window, cells, C) of `t.pad(...)`.

    One displacement row of it overlaps itself where it has more than T cells.
    """
    image, row, cell, _ = padded.stride()
    shape = (padded.shape[0], rows.stop - rows.start, t.count, t.window, cells.stop - cells.start, t.channels)
    start = padded.storage_offset() + rows.start * row + cells.start * cell
    return padded.as_strided(shape, (image, row, t.tile * cell, row, cell, 1), start)


def _shrink(maps: Tensor) -> float:
    """What both factors of a product of fp16 maps (B, C, h, w) are multiplied by: its square is at most 1 / C.

    >>> _shrink(torch.zeros(1, 768, 1, 1, dtype=torch.float16)), _shrink(torch.zeros(1, 768, 1, 1))
    (0.03125, 1.0)
    """
    return 1.0 if maps.dtype != torch.float16 else 2.0 ** -math.ceil(math.log2(maps.shape[1]) / 2)


class _BandedCorrelation(torch.autograd.Function):
    """Keeps nothing but its inputs; everything else it needs is the size of a block."""

    @staticmethod
    def forward(ctx: Any, left: Tensor, right: Tensor, search_range: int) -> Tensor:
        t = _tile(left, search_range)
        ctx.save_for_backward(left, right)
        ctx.tiling = t
        shrink = _shrink(left)
        if shrink < 1:
            left, right = left * shrink, right * shrink
        out = left.new_empty(len(left), t.height, t.count * t.tile, t.window, t.window)
        groups = (x.split(t.images) for x in (left, right, out))
        for left_group, right_group, out_group in zip(*groups, strict=True):
            padded = t.pad(right_group)
            for rows in t.row_blocks():
                stretches = t.cut(left_group[:, :, rows])
                seen = _seen(padded, t, rows, slice(0, t.seen)).reshape(-1, t.window * t.seen, t.channels)
                product = torch.bmm(stretches, seen.transpose(1, 2))
                out_group[:, rows].view(-1, t.tile, t.window, t.window).copy_(_bands(product, t.window))
        return out[:, :, : t.width].flatten(3).div_(t.channels * shrink**2).permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        left, right = ctx.saved_tensors
        t: _Tiling = ctx.tiling
        grad, shrink = grads[0], _shrink(left)
        grad_left, grad_right = torch.empty_like(left), torch.empty_like(right)
        if shrink < 1:
            left, right, grad = left * shrink, right * shrink, grad * shrink
        divisor = t.channels * shrink**2
        groups = (x.split(t.images) for x in (left, right, grad, grad_left, grad_right))
        for left_group, right_group, grad_group, to_left, to_right in zip(*groups, strict=True):
            padded = t.pad(right_group)
            grad_padded = torch.zeros_like(padded)
            for rows in t.row_blocks():
                stretches = t.cut(left_group[:, :, rows])
                grad_rows = t.cut(grad_group[:, :, rows]).unflatten(2, (t.window, t.window))
                of_left = _backward_block(t, rows, (stretches, padded), grad_rows, grad_padded)
                of_left = of_left.view(len(to_left), -1, t.count * t.tile, t.channels)[:, :, : t.width]
                to_left[:, :, rows] = of_left.permute(0, 3, 1, 2).div_(divisor)
            inner = grad_padded[:, t.reach : t.reach + t.height, t.reach : t.reach + t.width]
            to_right.copy_(inner.permute(0, 3, 1, 2)).div_(divisor)
        return grad_left, grad_right, None


def _backward_block(t: _Tiling, rows: slice, maps: tuple[Tensor, Tensor], grad: Tensor, grad_padded: Tensor) -> Tensor:
    """Gradient of a block's stretches (n, T, C), times C; adds that of `right` to `grad_padded`."""
    stretches, padded = maps
    spread = stretches.new_zeros(len(stretches), t.tile, t.window * t.seen)
    _bands(spread, t.window).copy_(grad)
    of_left = torch.bmm(spread, _seen(padded, t, rows, slice(0, t.seen)).reshape(-1, t.window * t.seen, t.channels))
    of_seen = torch.bmm(spread.transpose(1, 2), stretches).unflatten(1, (t.window, t.seen))
    # In two parts, neither of which overlaps itself: the stretch's own length, and what it sees of the next.
    for cells in (slice(0, t.tile), slice(t.tile, t.seen)):
        targets = _seen(grad_padded, t, rows, cells)
        for dy in range(t.window):
            target = targets[:, :, :, dy]
            target.add_(of_seen[:, dy, cells].view(target.shape))
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
    if not len(left_BChw):  # nothing, of which gradients are nothing
        return (left_BChw[:, :1] * right_BChw[:, :1]).expand(-1, (2 * search_range + 1) ** 2, -1, -1)
    if torch.compiler.is_compiling():  # it fuses the loop, and cannot follow writes into overlapping views
        return correlate_loop(left_BChw, right_BChw, search_range)
    result: Tensor = _BandedCorrelation.apply(left_BChw, right_BChw, search_range)
    return result
