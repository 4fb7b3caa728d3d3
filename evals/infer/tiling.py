"""Flow and features of frames of any size: tile by tile, with tiles that fade into each other.

Tiles begin at multiples of 64 px, so that every level of a tile's pyramid lies on the grid of the whole frame's. At a
side where it was cut, a tile's weight is 0 over the outer quarter of the overlap and rises smoothly over the next half;
where a quarter of the overlap holds all that a pixel depends on, the result is that of the whole frame. What
a model's coarsest levels see beyond that is lost. Legend: B batch, K channels, H W px, h w cells of a stride.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mcjepa.evals.models import COARSEST_STRIDE, EvalModel, features_by_stride, map_of_stride

Part = tuple[slice, slice]
"""Rows and columns of a frame, px."""


def tile_starts(side_px: int, tile_px: int, overlap_px: int) -> list[int]:
    """Where tiles begin along one side; neighbours overlap by `overlap_px` or more.

    >>> tile_starts(1000, 512, 128), tile_starts(512, 512, 128), tile_starts(513, 512, 128)
    ([0, 384, 512], [0], [0, 64])
    """
    if side_px <= tile_px:
        return [0]
    last = -(-(side_px - tile_px) // COARSEST_STRIDE) * COARSEST_STRIDE
    return [*range(0, last, tile_px - overlap_px), last]


def blend_tiles(
    run: Callable[[Part], Tensor], size: tuple[int, int], stride: int, tile_px: int, overlap: int
) -> Tensor:
    """The weighted mean of what `run` gives for every tile.

    Args:
        run: rows and columns of the frame to a map (..., h, w) of those cells.
        size: (H, W) of the frame, px.
        stride: px a cell.
        tile_px: side of a tile, a multiple of 64; 0 = the whole frame at once.
        overlap: of neighbouring tiles, px.

    Returns:
        (..., ceil(H / stride), ceil(W / stride)).
    """
    rows, columns = (tile_starts(side, tile_px or side, overlap) for side in size)
    if len(rows) == len(columns) == 1:
        return run((slice(0, size[0]), slice(0, size[1])))
    total: Tensor | None = None
    weights = torch.zeros([-(-side // stride) for side in size])
    for top in rows:
        for left in columns:
            part = (slice(top, min(top + tile_px, size[0])), slice(left, min(left + tile_px, size[1])))
            values = run(part)
            weight = _ramp(part[0], size[0], stride, overlap)[:, None] * _ramp(part[1], size[1], stride, overlap)
            down, across = (slice(along.start // stride, -(-along.stop // stride)) for along in part)
            if total is None:
                total = values.new_zeros((*values.shape[:-2], *weights.shape))
            total[..., down, across] += values * weight
            weights[down, across] += weight
    assert total is not None
    return total.div_(weights)


def _ramp(along: slice, side_px: int, stride: int, overlap_px: int) -> Tensor:
    """Weights of a tile's cells along one axis: 1 inside, fading to (almost) 0 at sides where it was cut."""
    cells = torch.arange(along.start // stride, -(-along.stop // stride))
    centre_px = (cells + 0.5) * stride
    weight = torch.ones(len(cells))
    for cut, distance_px in (
        (along.start > 0, centre_px - along.start),
        (along.stop < side_px, along.stop - centre_px),
    ):
        if cut:
            part = ((distance_px - overlap_px / 4) / (overlap_px / 2)).clamp(0, 1)
            weight = weight * (part * part * (3 - 2 * part))
    return weight.clamp_min(1e-9)


def tiled_flow(model: EvalModel, frames_B3HW: tuple[Tensor, Tensor], tile_px: int, overlap_px: int) -> Tensor:
    """Flow (B, 2, H, W) from the first frames to the second ones, px."""
    first, second = frames_B3HW

    def run(part: Part) -> Tensor:
        return model.flow(first[..., part[0], part[1]], second[..., part[0], part[1]])

    height, width = first.shape[-2:]
    return blend_tiles(run, (height, width), 1, tile_px, overlap_px)


def tiled_features(model: EvalModel, image_B3HW: Tensor, stride: int, tile_px: int, overlap_px: int) -> Tensor:
    """Features (B, C, ceil(H / stride), ceil(W / stride)) of the level of that stride.

    Raises:
        ValueError: the model has no such level.
    """

    def run(part: Part) -> Tensor:
        image = image_B3HW[..., part[0], part[1]]
        cells = [-(-side // stride) for side in image.shape[-2:]]
        return map_of_stride(features_by_stride(model, image), stride)[..., : cells[0], : cells[1]]

    height, width = image_B3HW.shape[-2:]
    return blend_tiles(run, (height, width), stride, tile_px, overlap_px)
