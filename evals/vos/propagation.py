"""Label propagation over a video: each cell takes the labels of its best matches in the frames before it.

For a frame t the context is the first frame and the last n frames. A cell's features q are compared with the
context's cells k within a radius of its own place; the best `top_k` of all context frames together vote with weights
softmax(q.k / temperature). Labels stay soft. Sources: DINO, CRW and VFS, see `evals.vos.settings`.

It is computed where the model is. Only the context's features are held, never a video's. The affinity is computed for
one square tile of queries at a time against the part of the context that the tile can reach, and for part of the tile
where that is still large.
Legend: C channels, O labels (background first), h w cells, H W pixels, n context frames, q queries, k keys.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from mcjepa.data_prep.corpora.items import MaskedVideo
from mcjepa.data_prep.errors import DataError
from mcjepa.evals.models import EvalModel, device_of, features_by_stride, image_tensor, map_of_stride
from mcjepa.evals.vos.sequence import Ids
from mcjepa.evals.vos.settings import Neighbourhood, VosConfig

AFFINITY_BYTES = 48 << 20
GROUP_KEYS = 64
Cells = tuple[Tensor, Tensor]
"""A context frame: features (C, h, w) and labels (O, h, w)."""


@dataclass(frozen=True)
class _Span:
    """Rows and columns of a grid, ends excluded."""

    top: int
    bottom: int
    left: int
    right: int

    def of(self, cells_Xhw: Tensor) -> Tensor:
        """That part of the last two axes."""
        return cells_Xhw[..., self.top : self.bottom, self.left : self.right]

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.bottom - self.top, self.right - self.left


def propagate_labels(
    features: Iterable[Tensor], first_labels_Ohw: Tensor, config: VosConfig
) -> Iterator[tuple[Tensor, Tensor]]:
    """Soft labels of every frame after the first.

    Args:
        features: (C, h, w) float by frame, in order; taken one at a time.
        first_labels_Ohw: labels of the first frame on the feature grid, one-hot, float.
        config: context, top-k, radius, temperature and tile.

    Yields:
        The frame's features as they are compared (C, h, w) and its labels (O, h, w), which sum to 1 over O.
    """
    frames = iter(features)
    first = (_compared(next(frames), config), first_labels_Ohw)
    copies = {"never": 0, "recent": min(1, config.context_frames), "fill": config.context_frames}
    recent: deque[Cells] = deque([first] * copies[config.first_again], maxlen=config.context_frames)
    for features_Chw in frames:
        query = _compared(features_Chw, config)
        labels = label_frame(query, [first, *recent], config)
        recent.append((query, labels))
        yield query, labels


def _compared(features_Chw: Tensor, config: VosConfig) -> Tensor:
    return F.normalize(features_Chw, dim=0) if config.normalize else features_Chw


def label_frame(query_Chw: Tensor, context: Sequence[Cells], config: VosConfig) -> Tensor:
    """Labels (O, h, w) of one frame from its context, the first frame's cells at its head."""
    height, width = query_Chw.shape[1:]
    whole = _Span(0, height, 0, width)
    radius = config.radius_cells or height + width
    # A frame whose radius does not count is a group of its own: its keys differ from the others' in number.
    groups = [(context[:1], False), (context[1:], True)] if not config.limit_first else [(context, True)]
    stacks = [(_stacked(frames), limited) for frames, limited in groups if frames]
    result = torch.empty_like(context[0][1])
    for tile in _tiles(height, width, config.tile_cells):
        keys, values, masks = [], [], []
        for (features_Cnhw, labels_Onhw), limited in stacks:
            reach = _reach(tile, whole, radius) if limited else whole
            keys.append(reach.of(features_Cnhw).flatten(1))
            values.append(reach.of(labels_Onhw).flatten(1))
            device = query_Chw.device
            mask = _distance_mask(tile, reach, radius, config.neighbourhood, device) if limited else None
            masks.append((mask, features_Cnhw.shape[1], keys[-1].shape[1]))
        labels_Oq = _vote(tile.of(query_Chw).flatten(1), torch.cat(keys, 1), torch.cat(values, 1), masks, config)
        tile.of(result).copy_(labels_Oq.unflatten(1, tile.shape))
    return result


def _stacked(frames: Sequence[Cells]) -> Cells:
    """(C, n, h, w) and (O, n, h, w)."""
    return torch.stack([features for features, _ in frames], 1), torch.stack([labels for _, labels in frames], 1)


def _tiles(height: int, width: int, side: int) -> Iterator[_Span]:
    for top in range(0, height, side):
        for left in range(0, width, side):
            yield _Span(top, min(top + side, height), left, min(left + side, width))


def _reach(tile: _Span, whole: _Span, radius: int) -> _Span:
    """Cells within the radius of any cell of the tile, along each axis."""
    return _Span(
        max(tile.top - radius, 0),
        min(tile.bottom + radius, whole.bottom),
        max(tile.left - radius, 0),
        min(tile.right + radius, whole.right),
    )


def _distance_mask(
    tile: _Span, reach: _Span, radius: int, neighbourhood: Neighbourhood, device: torch.device
) -> Tensor:
    """(q, cells of the reach): 0 where a match may be, -inf elsewhere; it depends on relative places only."""
    place = (tile.top - reach.top, tile.left - reach.left)
    return _relative_mask(tile.shape, reach.shape, place, radius, neighbourhood, device)


@lru_cache(maxsize=64)
def _relative_mask(
    tile: tuple[int, int],
    reach: tuple[int, int],
    place: tuple[int, int],
    radius: int,
    neighbourhood: Neighbourhood,
    device: torch.device,
) -> Tensor:
    down, across = (
        torch.arange(side)[:, None] + start - torch.arange(ends)[None]
        for side, start, ends in zip(tile, place, reach, strict=True)
    )
    rows, columns = down[:, None, :, None], across[None, :, None, :]
    if neighbourhood == "square":
        near = (rows.abs() <= radius) & (columns.abs() <= radius)
    else:
        near = rows**2 + columns**2 < radius**2
    mask = torch.zeros(near.shape).masked_fill_(~near, float("-inf"))
    return mask.flatten(2).flatten(0, 1).to(device)


def _vote(
    query_Cq: Tensor,
    keys_Ck: Tensor,
    values_Ok: Tensor,
    masks: Sequence[tuple[Tensor | None, int, int]],
    config: VosConfig,
) -> Tensor:
    """Labels (O, q): the best keys' labels, weighted; `masks` has (mask, frames, keys) of each group of keys."""
    queries, keys = query_Cq.shape[1], keys_Ck.shape[1]
    most = max(1, AFFINITY_BYTES // (4 * keys))
    parts = []
    for start in range(0, queries, most):
        affinity = query_Cq[:, start : start + most].T @ keys_Ck
        begin = 0
        for mask, frames, count in masks:
            if mask is not None:
                block = affinity[:, begin : begin + count].unflatten(1, (frames, -1))
                block += mask[start : start + most, None]
            begin += count
        best, index = largest(affinity, min(config.top_k, keys))
        weights = torch.softmax(best / config.temperature, dim=1)
        parts.append((values_Ok[:, index] * weights).sum(-1))
    return torch.cat(parts, 1)


def largest(values_qk: Tensor, count: int, group: int = GROUP_KEYS) -> tuple[Tensor, Tensor]:
    """The `count` largest of each row and their places, as `Tensor.topk`, several times as fast for long rows.

    The largest values lie in the groups with the largest maxima, or in the rest that fills no group: only those
    are sorted.
    """
    whole = values_qk.shape[1] // group * group
    if whole // group <= 2 * count:
        return values_qk.topk(count, dim=1)
    groups = values_qk[:, :whole].unflatten(1, (-1, group))
    chosen = groups.amax(2).topk(count, dim=1).indices
    candidates = groups.gather(1, chosen[..., None].expand(-1, -1, group)).flatten(1)
    best, place = torch.cat((candidates, values_qk[:, whole:]), 1).topk(count, dim=1)
    in_group = place < count * group
    head = place.clamp_max(count * group - 1)
    index = chosen.gather(1, head // group) * group + head % group
    return best, torch.where(in_group, index, place - count * group + whole)


OnFeatures = Callable[[int, Tensor], None]
"""Called with every frame's number and features (C, h, w)."""


def track_masks(
    model: EvalModel, video: MaskedVideo, first_HW: Ids, config: VosConfig, on_features: OnFeatures | None = None
) -> Iterator[tuple[int, Ids]]:
    """Predicted masks of every frame after the first, as they are made.

    Args:
        model: gives the features.
        video: its frames; masks are not read.
        first_HW: object ids of the first frame; the masks have its size.
        config: protocol.
        on_features: sees the features too.

    Yields:
        The frame's number and its object ids (H, W).

    Raises:
        DataError: a frame cannot be read, or its features are not finite.
    """
    size, device = encoded_size(first_HW.shape, config), device_of(model)

    def features() -> Iterator[Tensor]:
        for index in range(len(video.frames)):
            map_Chw = encode_frame(model, video.read_frame(index), size, config.stride)
            if on_features:
                on_features(index, map_Chw)
            yield map_Chw.to(device)

    bilinear = config.first_labels == "bilinear"
    first = first_labels(first_HW, int(first_HW.max()), size, config.stride, bilinear)
    for index, (_, labels) in enumerate(propagate_labels(features(), first.to(device), config), start=1):
        yield index, labels_to_mask(labels.cpu(), config.stride, size, first_HW.shape, config.stretch)


def encode_frame(model: EvalModel, frame: NDArray[np.uint8], size: tuple[int, int], stride: int) -> Tensor:
    """Features (C, h, w) of one RGB frame at that size (H, W); cells beyond the frame are cut off.

    Raises:
        DataError: they are not finite: matches of such features would be of any cells.
    """
    if frame.shape[:2] != size:
        resized = cv2.resize(frame, (size[1], size[0]), interpolation=cv2.INTER_LINEAR)
        frame = np.asarray(resized, np.uint8)
    map_Chw = map_of_stride(features_by_stride(model, image_tensor(frame)), stride)[0]
    cells_Chw = map_Chw[:, : -(-size[0] // stride), : -(-size[1] // stride)]
    if not cells_Chw.isfinite().all():
        raise DataError("the features of a frame are not finite; expected numbers; check the weights")
    return cells_Chw


def encoded_size(size: tuple[int, int], config: VosConfig) -> tuple[int, int]:
    """(H, W) to encode frames of that size at: the short side as asked, the long one rounded down (DINO's rule).

    >>> encoded_size((480, 854), VosConfig()), encoded_size((480, 854), VosConfig(short_side=0))
    ((480, 832), (480, 854))
    """
    short, multiple = config.short_side, config.side_multiple_px
    if short == 0:
        return size
    long_side = max(int(max(size) * short / min(size)) // multiple * multiple, short)
    return (long_side, short) if size[0] > size[1] else (short, long_side)


def first_labels(mask_HW: NDArray, objects: int, frame: tuple[int, int], cell_px: int, bilinear: bool) -> Tensor:
    """A mask of object ids on the feature grid, (objects + 1, h, w) float, which sum to 1 over the labels.

    A cell covers `cell_px` pixels of the encoded frame, the last row and column some beyond it: there the mask goes
    on as its edge does, as the frame did for the encoder.

    Args:
        mask_HW: object ids 0..objects, of any size.
        objects: number of objects.
        frame: (H, W) of the frame that is encoded.
        cell_px: stride of the grid.
        bilinear: soft labels between cell centres [D: CRW]; else the nearest pixel's label [D: DINO, VFS].
    """
    ids = torch.from_numpy(mask_HW.astype("int64"))
    values = F.one_hot(ids, objects + 1).permute(2, 0, 1).float() if bilinear else ids[None].float()
    grid = (-(-frame[0] // cell_px), -(-frame[1] // cell_px))
    beyond = (0, grid[1] * cell_px - frame[1], 0, grid[0] * cell_px - frame[0])
    if any(beyond):  # without, one step does both: the published protocols' own
        values = F.pad(_resampled(values, frame, bilinear), beyond, mode="replicate")
    cells = _resampled(values, grid, bilinear)
    return cells if bilinear else F.one_hot(cells[0].long(), objects + 1).permute(2, 0, 1).float()


def _resampled(values_Ohw: Tensor, size: tuple[int, int], bilinear: bool) -> Tensor:
    """Of another size, between the centres of pixels or by the nearest one."""
    if bilinear:
        return F.interpolate(values_Ohw[None], size, mode="bilinear", align_corners=False)[0]
    return F.interpolate(values_Ohw[None], size, mode="nearest-exact")[0]


def labels_to_mask(
    labels_Ohw: Tensor, cell_px: int, frame: tuple[int, int], size: tuple[int, int], stretch: bool = True
) -> NDArray:
    """Object ids of every pixel from soft labels.

    Args:
        labels_Ohw: soft labels; cells beyond the frame (padding) must be cut off already.
        cell_px: stride of the grid.
        frame: (H, W) of the frame that was encoded.
        size: (H, W) of the mask to return; nearest neighbours from the encoded frame's size.
        stretch: bring each label's map to [0, 1] by its minimum and maximum first.

    Returns:
        (H, W) uint8.
    """
    enlarged = F.interpolate(labels_Ohw[None], scale_factor=cell_px, mode="bilinear", align_corners=False)[0]
    enlarged = enlarged[:, : frame[0], : frame[1]]
    if stretch:
        low = enlarged.amin((1, 2), keepdim=True)
        span = enlarged.amax((1, 2), keepdim=True) - low
        # A channel that is 0 everywhere (its object is lost) stays 0, as in the source.
        enlarged = torch.where(span > 0, (enlarged - low) / span.clamp_min(1e-12), enlarged)
    mask = enlarged.argmax(0).float()[None, None]
    return F.interpolate(mask, size, mode="nearest-exact")[0, 0].to(torch.uint8).numpy()
