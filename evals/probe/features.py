"""Frozen features of labelled images: how they are encoded, their mean and deviation, their key.

Every level keeps its own resolution: apart they cost a tenth of the concatenated grid. Resizing is linear and a 1x1
convolution acts on each position alone, so a linear head may be applied to every level first and its K logits resized
afterwards: the same numbers as resizing, concatenating and then applying it, at a fraction of the work (`head.py`).
Cached features depend on the encoder, on the images with their labels and on the preprocessing: their key is a digest
over these. Legend: N images, C channels, h w cells, H W pixels.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from mcjepa.data_prep.corpora.items import LabelledImage
from mcjepa.data_prep.errors import DataError
from mcjepa.evals.cards import package_versions
from mcjepa.evals.models import EvalModel, McJepaEvalModel, features_by_stride, image_tensor, map_of_stride
from mcjepa.evals.probe.images import Box, Size, fitted_size, read_labelled, resize_image, resize_labels, window_boxes


@dataclass(frozen=True)
class EncodedTile:
    """The features of one window of an image."""

    box: Box
    """Where it lies in the resized image."""
    maps: tuple[Tensor, ...]
    """(C, h, w) float16 or float32 by level, finest first; they cover the box padded to multiples of 64 px."""


@dataclass(frozen=True)
class EncodedImage:
    """One image's features and labels."""

    name: str
    size: Size
    """Of the resized image, px."""
    tiles: tuple[EncodedTile, ...]
    """Its windows; one that is the whole image where it is not cut."""
    labels: Tensor
    """(H, W) uint8, 255 = void: of the resized image for training, at their own size for scoring."""


@dataclass(frozen=True)
class FailedImage:
    """An image that could not be read."""

    name: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class EncodingPlan:
    """What is done to an image before and after the encoder; part of the cache's key."""

    strides: tuple[int, ...]
    """Strides of the levels that are kept, finest first."""
    classes: int
    """Number of classes; labels are 0..classes-1 or 255."""
    resize: Size = (0, 0)
    """Longest and shortest side that images are fitted into; (0, 0) = as stored."""
    window: Size = (0, 0)
    """Windows that are encoded apart; (0, 0) = the whole image."""
    window_stride: Size = (0, 0)
    """From one window to the next."""
    resize_labels: bool = True
    """Labels at the resized image's size, for training; else at their own, for scoring."""


def resize_map(map_BChw: Tensor, factor: int) -> Tensor:
    """Bilinear enlargement by a whole factor; cells keep their place (align_corners=False)."""
    if factor == 1:
        return map_BChw
    return F.interpolate(map_BChw, scale_factor=factor, mode="bilinear", align_corners=False)


def encode_images(
    model: EvalModel, items: Sequence[LabelledImage], plan: EncodingPlan, batch: int
) -> Iterator[EncodedImage | FailedImage]:
    """Encodes images in their order, those of equal size together.

    Groups begin anew at every `batch`-th item, so that what is encoded from such an item on does not depend on where
    the sequence began: an interrupted encoding goes on with the same numbers.
    """
    for start in range(0, len(items), batch):
        together: list[_Loaded] = []
        for item in items[start : start + batch]:
            try:
                loaded = _load(item, plan)
            except (DataError, OSError) as error:
                yield from _encode_group(model, together, plan)
                together = []
                yield FailedImage(item.name, " ".join(str(error).split()))
                continue
            if together and together[0].image.shape != loaded.image.shape:
                yield from _encode_group(model, together, plan)
                together = []
            together.append(loaded)
        yield from _encode_group(model, together, plan)


def is_readable(item: LabelledImage, plan: EncodingPlan) -> bool:
    """Whether an image can be encoded."""
    try:
        _load(item, plan)
    except (DataError, OSError):
        return False
    return True


@dataclass(frozen=True)
class _Loaded:
    name: str
    image: NDArray[np.uint8]
    labels: NDArray[np.uint8]


def _load(item: LabelledImage, plan: EncodingPlan) -> _Loaded:
    image, labels = read_labelled(item, plan.classes)
    size = fitted_size((image.shape[0], image.shape[1]), plan.resize)
    return _Loaded(item.name, resize_image(image, size), resize_labels(labels, size) if plan.resize_labels else labels)


def _encode_group(model: EvalModel, together: Sequence[_Loaded], plan: EncodingPlan) -> Iterator[EncodedImage]:
    """Images of one size; window by window, all images of the group in one forward pass."""
    if not together:
        return
    size = (together[0].image.shape[0], together[0].image.shape[1])
    tiles: list[list[EncodedTile]] = [[] for _ in together]
    for box in window_boxes(size, plan.window, plan.window_stride):
        top, left, height, width = box
        crops = [image_tensor(loaded.image[top : top + height, left : left + width]) for loaded in together]
        maps = encode_tensor(model, torch.cat(crops), plan.strides)
        for index, mine in enumerate(tiles):
            mine.append(EncodedTile(box, tuple(map_BChw[index].clone() for map_BChw in maps)))
    for loaded, mine in zip(together, tiles, strict=True):
        yield EncodedImage(loaded.name, size, tuple(mine), torch.from_numpy(np.ascontiguousarray(loaded.labels)))


def encode_tensor(model: EvalModel, image_B3HW: Tensor, strides: Sequence[int]) -> list[Tensor]:
    """Maps (B, C, h, w) of the given strides, of images of any one size."""
    maps = features_by_stride(model, image_B3HW)
    return [map_of_stride(maps, stride) for stride in strides]


@dataclass(frozen=True)
class Statistics:
    """Mean and variance by channel of the features on the finest grid, a tensor (C,) float32 a level."""

    mean: tuple[Tensor, ...]
    variance: tuple[Tensor, ...]
    count: int
    """Cells that were measured."""


def measure_statistics(
    windows: Sequence[tuple[Sequence[Tensor], Size]] | Iterator[tuple[Sequence[Tensor], Size]], strides: Sequence[int]
) -> Statistics:
    """Mean and variance (of the whole, not its estimate) by channel over all cells, those of the padding left out.

    Args:
        windows: maps (C, h, w) or (B, C, h, w) by level, finest first, and the pixels (H, W) that they are about.
        strides: strides of the levels, finest first.
    """
    finest, count = strides[0], 0
    sums: list[list[Tensor]] = []
    for maps, (height, width) in windows:
        rows, columns = -(-height // finest), -(-width // finest)
        for level, (some_map, stride) in enumerate(zip(maps, strides, strict=True)):
            batched = some_map if some_map.dim() == 4 else some_map[None]
            cells = resize_map(batched.float(), stride // finest)[:, :, :rows, :columns].double()
            if len(sums) <= level:
                sums.append([torch.zeros_like(cells[0, :, 0, 0]), torch.zeros_like(cells[0, :, 0, 0])])
            sums[level][0] += cells.sum((0, 2, 3))
            sums[level][1] += cells.square().sum((0, 2, 3))
        count += (maps[0].shape[0] if maps[0].dim() == 4 else 1) * rows * columns
    means = [total / count for total, _ in sums]
    variances = [(square / count - mean.square()).clamp_min(0.0) for (_, square), mean in zip(sums, means, strict=True)]
    return Statistics(tuple(mean.float() for mean in means), tuple(v.float() for v in variances), count)


FORMAT = 1
"""Of the cache's files and of the arithmetic around the encoder; a new one makes old features unknown."""


def model_digest(model: EvalModel) -> str:
    """sha256 of our encoder's settings and weights; empty for a model of which neither is known."""
    if not isinstance(model, McJepaEvalModel):
        return ""
    digest = hashlib.sha256(repr(model.model.config.encoder).encode())
    for name, tensor in sorted(model.model.encoder.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    digest.update(model.device.type.encode())
    return digest.hexdigest()


def features_key(model: str, images: str, plan: EncodingPlan, dtype: str, batch: int) -> tuple[str, dict[str, object]]:
    """The key of features, and what it was made of, to be written beside them.

    Args:
        model: digest of the encoder.
        images: digest of the images.
        plan: what is done to them.
        dtype: number format.
        batch: images encoded together, which may change the last bits.
    """
    parts: dict[str, object] = {
        "format": FORMAT,
        "model": model,
        "images": images,
        "plan": dataclasses.asdict(plan),
        "dtype": dtype,
        "batch": batch,
        "versions": package_versions("mcjepa", "torch", "opencv-python-headless"),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32], parts
