"""The linear head of the segmentation probe: a 1x1 convolution on standardised frozen features.

Protocol of VICRegL (mmsegmentation's linear head): levels concatenated, batch normalisation (here: with the
training features' statistics), 1x1 convolution, cross-entropy at the labels' resolution, AdamW, linear
warm-up and polynomial decay. Legend: B batch, K classes, C channels, h w cells of a level, H W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from evals.model_under_test import COARSEST_STRIDE
from evals.segmentation.config import ProbeConfig
from evals.segmentation.features import EncodedImage, resize_map
from evals.segmentation.metrics import VOID, confusion_matrix


class LinearHead(nn.Module):
    """A 1x1 convolution over the concatenated levels, applied level by level before the resizing."""

    def __init__(self, channels: Sequence[int], strides: Sequence[int], classes: int, seed: int) -> None:
        """Weights are normal with standard deviation 0.01 (mmsegmentation's head), the bias is 0."""
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.strides = tuple(strides)
        self.weights = nn.ParameterList(
            torch.empty(classes, count).normal_(0.0, 0.01, generator=generator) for count in channels
        )
        self.bias = nn.Parameter(torch.zeros(classes))

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Logits (B, K, h, w) on the finest level's grid from the levels' maps (B, C, h, w)."""
        finest = self.strides[0]
        logits = self.bias[None, :, None, None]
        for map_BChw, weight, stride in zip(maps, self.weights, self.strides, strict=True):
            logits = logits + resize_map(F.conv2d(map_BChw, weight[:, :, None, None]), stride // finest)
        return logits

    def label_logits(self, maps: Sequence[Tensor], height: int, width: int, every_px: int = 1) -> Tensor:
        """Logits of every `every_px`-th pixel, (B, K, height, width); the padding is cut off."""
        return resize_map(self(maps), self.strides[0] // every_px)[:, :, :height, :width]


@dataclass(frozen=True)
class TrainingWindow:
    """A batch of equally large windows."""

    maps: tuple[Tensor, ...]
    labels: Tensor


def schedule_factor(step: int, config: ProbeConfig) -> float:
    """Learning rate of a step (from 0) as a part of the peak: linear warm-up, then (1 - t)**power to 0."""
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / (config.steps - config.warmup_steps)
    return (1.0 - progress) ** config.poly_power


def train_head(
    images: Sequence[EncodedImage],
    strides: Sequence[int],
    classes: int,
    config: ProbeConfig,
    seed: int,
    on_step: Callable[[int], None] = lambda step: None,
) -> LinearHead:
    """Trains the head on standardised features; the same images, settings and seed give the same head on the
    CPU."""
    head = LinearHead([map_Chw.shape[0] for map_Chw in images[0].maps], strides, classes, seed)
    optimizer = torch.optim.AdamW(head.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    order = np.random.default_rng(seed)
    waiting: list[int] = []
    for step in range(config.steps):
        while len(waiting) < config.batch:
            waiting.extend(order.permutation(len(images)).tolist())
        batch, waiting = waiting[: config.batch], waiting[config.batch :]
        for group in optimizer.param_groups:
            group["lr"] = config.lr * schedule_factor(step, config)
        windows = [cut_window(images[index], strides, config.crop_px, order) for index in batch]
        optimizer.zero_grad(set_to_none=True)
        if batch_loss(head, windows, config.loss_stride_px, backward=True) is not None:
            optimizer.step()
        on_step(step + 1)
    return head


def cut_window(image: EncodedImage, strides: Sequence[int], crop_px: int, order: np.random.Generator) -> TrainingWindow:
    """A random window of the maps and labels, its corner on a multiple of 64 px, so that all levels are
    aligned.

    A side that is not longer than `crop_px` (or `crop_px` = 0) stays whole.
    """
    corner, sides = [], []
    for side in image.labels.shape:
        inner = -(-crop_px // COARSEST_STRIDE) * COARSEST_STRIDE
        room = (side - inner) // COARSEST_STRIDE if 0 < crop_px < side else 0
        corner.append(int(order.integers(room + 1)) * COARSEST_STRIDE if room > 0 else 0)
        sides.append(inner if 0 < crop_px < side else -(-side // COARSEST_STRIDE) * COARSEST_STRIDE)
    (top, left), (height, width) = corner, sides
    maps = tuple(
        map_Chw[:, top // s : (top + height) // s, left // s : (left + width) // s]
        for map_Chw, s in zip(image.maps, strides, strict=True)
    )
    return TrainingWindow(maps, image.labels[top : top + height, left : left + width])


def batch_loss(head: LinearHead, windows: Sequence[TrainingWindow], label_stride: int, backward: bool) -> float | None:
    """Mean cross-entropy over all pixels of the batch that are not void; None if there is no such pixel.

    Windows of equal size go through the head together; with `backward` their gradients are accumulated.
    """
    half = label_stride // 2
    chosen = [window.labels[half::label_stride, half::label_stride] for window in windows]
    counted = [int((labels != VOID).sum()) for labels in chosen]
    total = sum(counted)
    if total == 0:
        return None
    groups: dict[tuple[int, int], list[TrainingWindow]] = {}
    for window, labels, count in zip(windows, chosen, counted, strict=True):
        if count:
            groups.setdefault((labels.shape[0], labels.shape[1]), []).append(TrainingWindow(window.maps, labels))
    value = 0.0
    for (height, width), members in groups.items():
        maps = [torch.stack(level) for level in zip(*(member.maps for member in members), strict=True)]
        labels = torch.stack([member.labels for member in members])
        logits = head.label_logits(maps, height, width, every_px=label_stride)
        loss = F.cross_entropy(logits, labels.long(), ignore_index=VOID, reduction="sum") / total
        if backward:
            loss.backward()
        value += float(loss.detach())
    return value


@torch.inference_mode()
def predict_labels(head: LinearHead, image: EncodedImage) -> NDArray[np.uint8]:
    """The most likely class of every pixel of one standardised image, (H, W) uint8."""
    height, width = image.labels.shape
    logits = head.label_logits([map_Chw[None] for map_Chw in image.maps], height, width)
    return logits[0].argmax(0).to(torch.uint8).numpy()


def score_head(head: LinearHead, images: Sequence[EncodedImage], classes: int) -> NDArray[np.int64]:
    """Confusion matrix (K, K) over all pixels of standardised images."""
    total = np.zeros((classes, classes), np.int64)
    for image in images:
        total += confusion_matrix(image.labels.numpy(), predict_labels(head, image), classes)
    return total
