"""Label propagation over a video, DINO's protocol: each cell takes the labels of its best matches before it.

For a frame t the context is the first frame and the last n frames. A cell's features q are compared with the
context's cells k within a square of `radius` cells around its own place; the best `top_k` of all context
frames together vote with weights softmax(q.k / temperature) (features are l2-normalised). The soft labels
live on the feature grid; for the result they are resized bilinearly, brought to [0, 1] by channel (min-max)
and compared. Source: facebookresearch/dino, eval_video_segmentation.py.

The affinity is computed for one square tile of queries at a time against the part of the context that the
tile can reach, so memory does not grow with the frame. Legend: C channels, O labels (background first), h w
cells, H W pixels, n context frames.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from evals.vos.config import VosConfig


def propagate_labels(
    features: Iterable[Tensor], first_labels_Ohw: Tensor, config: VosConfig
) -> Iterator[tuple[Tensor, Tensor]]:
    """Soft labels of every frame after the first.

    Args:
        features: (C, h, w) float by frame, in order; taken one at a time.
        first_labels_Ohw: labels of the first frame on the feature grid, one-hot, float.
        config: context, top-k, radius, temperature and tile.

    Yields:
        The frame's l2-normalised features (C, h, w) and its labels (O, h, w), which sum to 1 over O.
    """
    frames = iter(features)
    first = (F.normalize(next(frames), dim=0), first_labels_Ohw)
    recent: deque[tuple[Tensor, Tensor]] = deque(maxlen=config.context_frames)
    for features_Chw in frames:
        query = F.normalize(features_Chw, dim=0)
        labels = label_frame(query, [first, *recent], config)
        recent.append((query, labels))
        yield query, labels


def label_frame(query_Chw: Tensor, context: Sequence[tuple[Tensor, Tensor]], config: VosConfig) -> Tensor:
    """Labels (O, h, w) of one frame from its context of (features (C, h, w), labels (O, h, w))."""
    keys = torch.stack([features for features, _ in context], dim=1)
    values = torch.stack([labels for _, labels in context], dim=1)
    height, width = query_Chw.shape[1:]
    radius = config.radius_cells or max(height, width)
    result = torch.empty_like(context[0][1])
    for top in range(0, height, config.tile_cells):
        for left in range(0, width, config.tile_cells):
            rows = slice(top, min(top + config.tile_cells, height))
            columns = slice(left, min(left + config.tile_cells, width))
            result[:, rows, columns] = _label_tile(query_Chw, keys, values, (rows, columns), radius, config)
    return result


def _label_tile(
    query_Chw: Tensor,
    keys_Cnhw: Tensor,
    values_Onhw: Tensor,
    tile: tuple[slice, slice],
    radius: int,
    config: VosConfig,
) -> Tensor:
    """Labels (O, tile rows, tile columns) from the context cells within `radius` of the tile's cells."""
    rows, columns = tile
    reach = tuple(
        slice(max(part.start - radius, 0), min(part.stop + radius, side))
        for part, side in zip(tile, query_Chw.shape[1:], strict=True)
    )
    query_Cq = query_Chw[:, rows, columns].flatten(1)
    keys_Ck = keys_Cnhw[:, :, reach[0], reach[1]].flatten(1)
    affinity = query_Cq.T @ keys_Ck
    far = ~_within(tile, reach, radius)[:, None]
    affinity.view(len(affinity), keys_Cnhw.shape[1], -1).masked_fill_(far, float("-inf"))
    best, index = affinity.topk(min(config.top_k, affinity.shape[1]), dim=1)
    weights = torch.softmax(best / config.temperature, dim=1)
    votes_Oqk = values_Onhw[:, :, reach[0], reach[1]].flatten(1)[:, index]
    labels = (votes_Oqk * weights).sum(-1)
    return labels.view(-1, rows.stop - rows.start, columns.stop - columns.start)


def _within(tile: tuple[slice, slice], reach: tuple[slice, ...], radius: int) -> Tensor:
    """(queries, keys) bool: the key is at most `radius` cells away along both axes."""
    near = [
        (torch.arange(part.start, part.stop)[:, None] - torch.arange(ends.start, ends.stop)[None]).abs() <= radius
        for part, ends in zip(tile, reach, strict=True)
    ]
    both = near[0][:, None, :, None] & near[1][None, :, None, :]
    return both.flatten(2).flatten(0, 1)


def one_hot_labels(mask_HW: NDArray, objects: int, height: int, width: int) -> Tensor:
    """A mask of object ids on the feature grid, (objects + 1, height, width) float; nearest neighbours as
    DINO's."""
    grid = F.interpolate(
        torch.from_numpy(mask_HW.astype(np.float32))[None, None], (height, width), mode="nearest-exact"
    )
    return F.one_hot(grid[0, 0].long(), objects + 1).permute(2, 0, 1).float()


def labels_to_mask(
    labels_Ohw: Tensor, cell_px: int, frame: tuple[int, int], size: tuple[int, int]
) -> NDArray[np.uint8]:
    """Object ids of every pixel from soft labels.

    Args:
        labels_Ohw: soft labels; cells beyond the frame (padding) must be cut off already.
        cell_px: stride of the grid.
        frame: (H, W) of the frame that was encoded.
        size: (H, W) of the mask to return; nearest neighbours from the encoded frame's size.

    Returns:
        (H, W) uint8.
    """
    enlarged = F.interpolate(labels_Ohw[None], scale_factor=cell_px, mode="bilinear", align_corners=False)[0]
    enlarged = enlarged[:, : frame[0], : frame[1]]
    low = enlarged.amin((1, 2), keepdim=True)
    span = enlarged.amax((1, 2), keepdim=True) - low
    # A channel that is 0 everywhere (its object is lost) stays 0, as in the source.
    normal = torch.where(span > 0, (enlarged - low) / span.clamp_min(1e-12), enlarged)
    mask = normal.argmax(0).float()[None, None]
    return F.interpolate(mask, size, mode="nearest-exact")[0, 0].to(torch.uint8).numpy()
