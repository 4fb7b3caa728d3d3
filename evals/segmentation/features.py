"""Frozen features of labelled images, encoded once and kept in memory at each level's own resolution.

Keeping the levels apart costs a tenth of the concatenated grid. Resizing is linear and a 1x1 convolution acts
on each position alone, so a linear head may be applied to every level first and its K logits resized
afterwards: the same numbers as resizing, concatenating and then applying it, at a fraction of the work
(`probe.py`). Legend: N images, C channels, h w cells, H W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from data_prep.corpora.items import LabelledImage
from data_prep.errors import DataError
from evals.model_under_test import ModelUnderTest, features_by_stride, image_tensor, map_of_stride


@dataclass(frozen=True)
class EncodedImage:
    """One image's features and labels."""

    name: str
    maps: tuple[Tensor, ...]
    """(C, h, w) float32 by level, finest first; they cover the image padded to multiples of 64 px."""
    labels: Tensor
    """(H, W) uint8, 255 = void."""


@dataclass(frozen=True)
class Standardisation:
    """Mean and standard deviation by channel of the concatenated features of the training images."""

    mean: tuple[Tensor, ...]
    std: tuple[Tensor, ...]


def resize_map(map_BChw: Tensor, factor: int) -> Tensor:
    """Bilinear enlargement by a whole factor; cells keep their place (align_corners=False)."""
    if factor == 1:
        return map_BChw
    return F.interpolate(map_BChw, scale_factor=factor, mode="bilinear", align_corners=False)


def encode_images(
    model: ModelUnderTest,
    items: Sequence[LabelledImage],
    strides: Sequence[int],
    batch: int,
    on_image: Callable[[int], None] = lambda done: None,
) -> tuple[list[EncodedImage], list[str]]:
    """Encodes every readable image once, images of equal size together.

    Args:
        model: the encoder.
        items: images with labels.
        strides: strides of the levels to keep, finest first.
        batch: most images in one forward pass.
        on_image: called with the number of images done.

    Returns:
        The encoded images in their order, and "name: reason" of those that could not be read.
    """
    encoded: list[EncodedImage] = []
    failed: list[str] = []
    waiting: list[tuple[str, NDArray[np.uint8], NDArray]] = []

    def flush() -> None:
        if waiting:
            encoded.extend(_encode_batch(model, waiting, strides))
            on_image(len(encoded) + len(failed))
            waiting.clear()

    for item in items:
        try:
            image, labels = item.read()
        except (DataError, OSError) as error:
            failed.append(f"{item.name}: {error}")
            continue
        if waiting and (waiting[0][1].shape != image.shape or len(waiting) == batch):
            flush()
        waiting.append((item.name, image, labels))
    flush()
    return encoded, failed


def _encode_batch(
    model: ModelUnderTest, waiting: Sequence[tuple[str, NDArray[np.uint8], NDArray]], strides: Sequence[int]
) -> list[EncodedImage]:
    maps = features_by_stride(model, torch.cat([image_tensor(image) for _, image, _ in waiting]))
    chosen = [map_of_stride(maps, stride) for stride in strides]
    return [
        EncodedImage(
            name=name,
            maps=tuple(map_BChw[index].clone() for map_BChw in chosen),
            labels=torch.from_numpy(labels.astype(np.uint8)),
        )
        for index, (name, _, labels) in enumerate(waiting)
    ]


def measure_statistics(images: Sequence[EncodedImage], strides: Sequence[int]) -> Standardisation:
    """Mean and standard deviation by channel over all cells of the finest grid, cells of the padding left
    out.

    A channel that does not vary gets the standard deviation 1, so that it becomes 0.
    """
    finest = strides[0]
    means, stds = [], []
    for level, stride in enumerate(strides):
        count, total, squares = 0, torch.zeros(()), torch.zeros(())
        for image in images:
            cells = resize_map(image.maps[level][None], stride // finest)[0].double()
            height, width = (-(-side // finest) for side in image.labels.shape)
            flat = cells[:, :height, :width].flatten(1)
            count += flat.shape[1]
            total = total + flat.sum(1)
            squares = squares + flat.square().sum(1)
        mean = total / count
        std = (squares / count - mean.square()).clamp_min(0.0).sqrt()
        means.append(mean.float())
        stds.append(torch.where(std > 1e-6, std, 1.0).float())
    return Standardisation(tuple(means), tuple(stds))


def standardise(images: Sequence[EncodedImage], statistics: Standardisation) -> list[EncodedImage]:
    """The same images with (map - mean) / std applied by channel."""
    return [
        EncodedImage(
            name=image.name,
            maps=tuple(
                (map_Chw - mean[:, None, None]) / std[:, None, None]
                for map_Chw, mean, std in zip(image.maps, statistics.mean, statistics.std, strict=True)
            ),
            labels=image.labels,
        )
        for image in images
    ]
