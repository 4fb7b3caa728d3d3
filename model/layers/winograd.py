"""3x3 convolution of fp32 on CPUs by Winograd's minimal filtering F(4x4, 3x3) (Lavin and Gray 2016).

    y = A^T [ (G w G^T) * (B^T d B) ] A      of every tile: d is 6x6 of the input, y 4x4 of the output

The 36 products by element are, over all channels and tiles, 36 matrix products: a quarter of the direct form's
multiplications. B and A are applied to tiles as one 36x36 and one 16x36 matrix. Going back, the same steps are
transposed: the weight's gradient needs a quarter of the products, too. The points are 0, 1, -1, 2, -2 and infinity;
errors are 3e-6 of the result, some three times the direct form's in fp32. Nothing is kept but the input and the
weight's form, which calls can share. Tiles are worked on in blocks, so that what is between stays small.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_B = ((4, 0, -5, 0, 1, 0), (0, -4, -4, 1, 1, 0), (0, 4, -4, -1, 1, 0), (0, -2, -1, 2, 1, 0), (0, 2, -1, -2, 1, 0),
      (0, 4, 0, -5, 0, 1))  # fmt: skip
_G = ((6, 0, 0), (-4, -4, -4), (-4, 4, -4), (1, 2, 4), (1, -2, 4), (0, 0, 24))  # times 24
_A = ((1, 1, 1, 1, 1, 0), (0, 1, -1, 2, -2, 0), (0, 1, 1, 4, 4, 0), (0, 1, -1, 8, -8, 1))
_ONES = 7
"""Of the 36 products the one that is added to each of a tile's 16 outputs: where a bias belongs."""
BLOCK_TILES, BLOCK_FILTERS = 512, 8192


@functools.cache
def _matrices() -> tuple[Tensor, Tensor, Tensor]:
    """For flattened tiles: B^T (36, 36), G (36, 9) and A^T (16, 36)."""
    b, g, a = (torch.tensor(rows, dtype=torch.float64, device="cpu") for rows in (_B, _G, _A))
    return torch.kron(b, b).float(), torch.kron(g / 24, g / 24).float(), torch.kron(a, a).float()


@dataclass(frozen=True)
class _Tiling:
    """How maps (B, C, h, w) are cut into `rows` x `columns` tiles an image."""

    batch: int
    height: int
    width: int

    @property
    def rows(self) -> int:
        return -(-self.height // 4)

    @property
    def columns(self) -> int:
        return -(-self.width // 4)

    def blocks(self) -> Iterator[tuple[slice, slice]]:
        """Images and rows of tiles, block by block: whole images, or rows of one."""
        images = max(BLOCK_TILES // (self.rows * self.columns), 1)
        rows = self.rows if images > 1 else min(max(BLOCK_TILES // self.columns, 1), self.rows)
        for image in range(0, self.batch, images):
            for row in range(0, self.rows, rows):
                yield slice(image, min(image + images, self.batch)), slice(row, min(row + rows, self.rows))

    def pad(self, x_BChw: Tensor) -> Tensor:
        """The input with its border, (B, 4 rows + 2, 4 columns + 2, C)."""
        right, bottom = 4 * self.columns - self.width + 1, 4 * self.rows - self.height + 1
        return F.pad(x_BChw.permute(0, 2, 3, 1), (0, 0, 1, right, 1, bottom))

    def fill(self, grad_BChw: Tensor) -> Tensor:
        """The output's gradient in whole tiles, (B, 4 rows, 4 columns, C)."""
        right, bottom = 4 * self.columns - self.width, 4 * self.rows - self.height
        grad = grad_BChw.permute(0, 2, 3, 1)
        return F.pad(grad, (0, 0, 0, right, 0, bottom)) if right or bottom else grad

    def crop(self, whole: Tensor) -> Tensor:
        """What `fill` has filled, without its filling, (B, C, h, w) in channels-last memory."""
        cropped = whole[:, : self.height, : self.width].permute(0, 3, 1, 2)
        return cropped.contiguous(memory_format=torch.channels_last)


def _tiles(map_BhwC: Tensor, size: int) -> Tensor:
    """Squares of `size` cells, one every four: a copy, (size^2, tiles, C)."""
    batch, height, width, channels = map_BhwC.shape
    image, row, cell, channel = map_BhwC.stride()
    shape = (size, size, batch, height // 4, width // 4, channels)
    squares = map_BhwC.as_strided(shape, (row, cell, image, 4 * row, 4 * cell, channel), map_BhwC.storage_offset())
    return squares.reshape(size * size, -1)


def _add_overlapping(windows: Tensor, padded: Tensor) -> None:
    """Adds 6x6 windows (36, tiles * C), one every four cells, to a map (n, 4 rows + 2, 4 columns + 2, C)."""
    batch, height, width, channels = padded.shape
    shape = (6, 6, batch, height // 4, width // 4, channels)
    windows = windows.view(shape).permute(2, 3, 0, 4, 1, 5)
    image, row, cell, _ = padded.stride()
    for up in (slice(0, 4), slice(4, 6)):  # in four parts, none of which overlaps itself
        for left in (slice(0, 4), slice(4, 6)):
            part = windows[:, :, up, :, left]
            start = padded.storage_offset() + up.start * row + left.start * cell
            padded.as_strided(part.shape, (image, 4 * row, row, 4 * cell, cell, 1), start).add_(part)


class _Filters(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor) -> Tensor:
        outputs, channels = weight.shape[:2]
        filters, block = weight.new_empty(36, channels * outputs), max(BLOCK_FILTERS // outputs, 1)
        for start in range(0, channels, block):
            taps = weight[:, start : start + block].permute(2, 3, 1, 0).reshape(9, -1)
            at = slice(start * outputs, start * outputs + taps.shape[1])
            torch.mm(_matrices()[1], taps, out=filters[:, at])
        return filters.view(36, channels, outputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        _, channels, outputs = grads[0].shape
        with torch.autocast("cpu", enabled=False):
            taps = (_matrices()[1].t() @ grads[0].reshape(36, -1)).view(9, channels, outputs)
        # By way of a matrix whose transposition torch does in blocks, half the time of permuting at once.
        return taps.transpose(0, 1).reshape(-1, outputs).t().contiguous().view(outputs, channels, 3, 3)


class _Winograd(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, filters: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, filters)
        t, outputs = _Tiling(x.shape[0], x.shape[2], x.shape[3]), filters.shape[2]
        enter, _, leave = _matrices()
        padded = t.pad(x)
        out = x.new_empty(t.batch, 4 * t.rows, 4 * t.columns, outputs)
        for images, rows in t.blocks():
            seen = padded[images, 4 * rows.start : 4 * rows.stop + 2]
            products = torch.bmm((enter @ _tiles(seen, 6)).view(36, -1, x.shape[1]), filters)
            if bias is not None:
                products[_ONES].add_(bias)
            tiles = (leave @ products.view(36, -1)).view(4, 4, len(seen), -1, t.columns, outputs)
            target = out[images, 4 * rows.start : 4 * rows.stop]
            target.unflatten(2, (-1, 4)).unflatten(1, (-1, 4)).copy_(tiles.permute(2, 3, 0, 4, 1, 5))
        return t.crop(out)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, filters = ctx.saved_tensors
        of_x, of_filters, of_bias = ctx.needs_input_grad
        t = _Tiling(x.shape[0], x.shape[2], x.shape[3])
        enter, _, leave = _matrices()
        with torch.autocast("cpu", enabled=False):
            grad, padded = t.fill(grads[0]), t.pad(x)
            to_padded = torch.zeros_like(padded) if of_x else padded
            to_filters, to_bias = filters.new_empty(0), filters.new_zeros(filters.shape[2])
            for images, rows in t.blocks():
                window = (images, slice(4 * rows.start, 4 * rows.stop + 2))
                products = leave.t() @ _tiles(grad[images, 4 * rows.start : 4 * rows.stop], 4)
                products = products.view(36, -1, filters.shape[2])
                if of_bias:
                    to_bias += products[_ONES].sum(0)
                if of_x:
                    windows = enter.t() @ torch.bmm(products, filters.transpose(1, 2)).view(36, -1)
                    _add_overlapping(windows, to_padded[window])
                if of_filters:
                    seen = (enter @ _tiles(padded[window], 6)).view(36, -1, x.shape[1])
                    pair = seen.transpose(1, 2), products
                    to_filters = to_filters.baddbmm_(*pair) if len(to_filters) else torch.bmm(*pair)
            to_x = to_padded[:, 1 : t.height + 1, 1 : t.width + 1].permute(0, 3, 1, 2)
        return to_x if of_x else None, to_filters if of_filters else None, to_bias if of_bias else None


def winograd_filters(weight_OC33: Tensor) -> Tensor:
    """A weight in the form that `convolve_winograd` takes, (36, C, O), which several calls can share."""
    filters: Tensor = _Filters.apply(weight_OC33)
    return filters


def convolve_winograd(x_BChw: Tensor, filters_36CO: Tensor, bias_O: Tensor | None) -> Tensor:
    """3x3 convolution with zeros around the map.

    Args:
        x_BChw: the input, fp32, on a CPU.
        filters_36CO: `winograd_filters` of the weight, fp32.
        bias_O: the bias, fp32, or None.

    Returns:
        (B, O, h, w) in channels-last memory.
    """
    out: Tensor = _Winograd.apply(x_BChw, filters_36CO, bias_O)
    return out
