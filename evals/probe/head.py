"""The linear head of the segmentation probe, and the classes of pixels that a head gives.

The head is what VICRegL trains with mmsegmentation (its `LinearHead`): levels resized to the finest grid and
concatenated, batch normalisation, 1x1 convolution. Normalisation by channel is affine, so it is folded into the
convolution's weights, which are applied level by level before the resizing. The test averages the scores of
overlapping windows. Legend: B batch, K classes, C channels, h w cells, H W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from mcjepa.evals.probe.features import EncodedImage, Statistics, resize_map

BATCH_EPS = 1e-5
BATCH_MOMENTUM = 0.1
SMALLEST_DEVIATION = 1e-6


class PixelClassifier(Protocol):
    """Something fitted to features: the linear head or the nearest cells."""

    strides: tuple[int, ...]

    def __call__(self, maps: Sequence[Tensor]) -> Tensor:
        """Scores of classes (B, K, h, w) on the finest grid from the levels' maps (B, C, h, w)."""
        ...


class LinearHead(nn.Module):
    """A 1x1 convolution over the concatenated, normalised levels.

    Attributes:
        strides: strides of the levels, finest first.
        batch_norm: normalise with each batch's statistics and learn scale and shift; else with fixed ones.
    """

    def __init__(
        self, channels: Sequence[int], strides: Sequence[int], classes: int, seed: int, *, batch_norm: bool = False
    ) -> None:
        """Weights are normal with standard deviation 0.01 (mmsegmentation's head), the bias is 0.

        Until `set_statistics` the normalisation changes nothing.
        """
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.strides, self.batch_norm = tuple(strides), batch_norm
        self.weights = nn.ParameterList(
            torch.empty(classes, count).normal_(0.0, 0.01, generator=generator) for count in channels
        )
        self.bias = nn.Parameter(torch.zeros(classes))
        learned = channels if batch_norm else ()
        self.scales = nn.ParameterList(torch.ones(count) for count in learned)
        self.shifts = nn.ParameterList(torch.zeros(count) for count in learned)
        for level, count in enumerate(channels):
            self.register_buffer(f"mean_{level}", torch.zeros(count))
            self.register_buffer(f"variance_{level}", torch.ones(count))

    def set_statistics(self, statistics: Statistics) -> None:
        """Normalises with these from now on; a channel that does not vary becomes 0."""
        for level, (mean, variance) in enumerate(zip(statistics.mean, statistics.variance, strict=True)):
            self.get_buffer(f"mean_{level}").copy_(mean)
            self.get_buffer(f"variance_{level}").copy_(
                torch.where(variance > SMALLEST_DEVIATION**2, variance, torch.ones_like(variance))
            )

    def follow_statistics(self, statistics: Statistics) -> None:
        """Moves the statistics of the test a tenth towards a batch's, as `torch.nn.BatchNorm2d` does."""
        unbiased = statistics.count / max(1, statistics.count - 1)
        for level, (mean, variance) in enumerate(zip(statistics.mean, statistics.variance, strict=True)):
            self.get_buffer(f"mean_{level}").lerp_(mean, BATCH_MOMENTUM)
            self.get_buffer(f"variance_{level}").lerp_(variance * unbiased, BATCH_MOMENTUM)

    def forward(self, maps: Sequence[Tensor], batch: Statistics | None = None) -> Tensor:
        """Logits (B, K, h, w) on the finest level's grid.

        Args:
            maps: of the levels, (B, C, h, w), finest first.
            batch: statistics to normalise with instead of the head's own.
        """
        finest = self.strides[0]
        logits = self.bias[None, :, None, None]
        for level, (map_BChw, stride) in enumerate(zip(maps, self.strides, strict=True)):
            weight, bias = self._folded(level, batch)
            part = F.conv2d(map_BChw.float(), weight[:, :, None, None], bias)
            logits = logits + resize_map(part, stride // finest)
        return logits

    def _folded(self, level: int, batch: Statistics | None) -> tuple[Tensor, Tensor]:
        """Weight (K, C) and bias (K,) of a level with its normalisation in them."""
        mean = batch.mean[level] if batch else self.get_buffer(f"mean_{level}")
        variance = batch.variance[level] if batch else self.get_buffer(f"variance_{level}")
        scale = torch.rsqrt(variance + (BATCH_EPS if self.batch_norm else 0.0))
        shift = -mean * scale
        if self.batch_norm:
            learned = self.scales[level]
            scale, shift = scale * learned, shift * learned + self.shifts[level]
        return self.weights[level] * scale, self.weights[level] @ shift


@torch.inference_mode()
def predict_labels(classifier: PixelClassifier, image: EncodedImage, device: torch.device) -> NDArray[np.uint8]:
    """The class of every pixel of one image, (H, W) uint8, at the size of its labels.

    The scores of overlapping windows are averaged at the resized image's size, then brought to the labels' size.
    """
    finest = classifier.strides[0]
    whole: Tensor | None = None
    counts = torch.zeros(image.size, device=device)
    for tile in image.tiles:
        top, left, height, width = tile.box
        cells = classifier([some_map[None].to(device, torch.float32) for some_map in tile.maps])
        scores = resize_map(cells, finest)[0, :, :height, :width]
        if len(image.tiles) == 1:
            whole = scores
            counts += 1.0
            break
        if whole is None:
            whole = scores.new_zeros(scores.shape[0], *image.size)
        whole[:, top : top + height, left : left + width] += scores
        counts[top : top + height, left : left + width] += 1.0
    assert whole is not None  # every image has a window
    merged = (whole / counts)[None]
    if tuple(image.labels.shape) != image.size:
        size = (image.labels.shape[0], image.labels.shape[1])
        merged = F.interpolate(merged, size=size, mode="bilinear", align_corners=False)
    return merged[0].argmax(0).to(torch.uint8).cpu().numpy()
