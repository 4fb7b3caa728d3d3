"""Training of the linear head, and the classes of pixels that a head gives.

Protocol of VICRegL (mmsegmentation): cross-entropy at the labels' resolution, AdamW, linear warm-up and polynomial
decay; the test adds up the logits of overlapping windows. Legend: B batch, K classes, C channels, h w cells of a
level, H W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from mcjepa.evals.probe.features import EncodedImage, Statistics, measure_statistics, resize_map
from mcjepa.evals.probe.fitting import HeadCheckpoint
from mcjepa.evals.probe.head import LinearHead
from mcjepa.evals.probe.metrics import VOID
from mcjepa.evals.probe.settings import ProbeConfig
from mcjepa.evals.probe.windows import TrainingWindow, WindowSource

MOST_LOGITS = 2**27
"""Logits of pixels that are in memory at once while training."""
WARMUP_START = 1e-6


class PixelClassifier(Protocol):
    """Something fitted to features: the linear head or the nearest cells."""

    strides: tuple[int, ...]

    def __call__(self, maps: Sequence[Tensor]) -> Tensor:
        """Scores of classes (B, K, h, w) on the finest grid from the levels' maps (B, C, h, w)."""
        ...


def schedule_factor(step: int, config: ProbeConfig) -> float:
    """Learning rate of a step (from 0) as a part of the peak, as mmsegmentation's `poly` with linear warm-up.

    The decay (1 - step / steps)**power runs from the first step on; the warm-up is a second factor from 1e-6 to 1.
    """
    decay = (1.0 - step / config.steps) ** config.poly_power
    if step >= config.warmup_steps:
        return decay
    return decay * (1.0 - (1.0 - step / config.warmup_steps) * (1.0 - WARMUP_START))


def train_head(
    source: WindowSource,
    head: LinearHead,
    config: ProbeConfig,
    device: torch.device,
    on_step: Callable[[int], None] = lambda step: None,
    checkpoint: HeadCheckpoint | None = None,
) -> LinearHead:
    """Trains the head in place; the same windows, settings and head give the same result on the CPU.

    Args:
        source: batches of windows.
        head: as it was initialised.
        config: steps, rates, batch.
        device: where the head is trained.
        on_step: called with the number of steps done.
        checkpoint: where the training is saved and goes on from.
    """
    head.to(device).train()
    optimizer = torch.optim.AdamW(head.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    start = checkpoint.load(head, optimizer) if checkpoint else 0
    for step in range(start, config.steps):
        for group in optimizer.param_groups:
            group["lr"] = config.lr * schedule_factor(step, config)
        windows = [
            TrainingWindow(tuple(m.to(device, torch.float32) for m in w.maps), w.labels) for w in source.batch(step)
        ]
        statistics = None
        if head.batch_norm:
            parts = ((window.maps, (window.labels.shape[0], window.labels.shape[1])) for window in windows)
            statistics = measure_statistics(parts, head.strides)
            head.follow_statistics(statistics)
        optimizer.zero_grad(set_to_none=True)
        if batch_loss(head, windows, config.loss_stride_px, statistics, backward=True) is not None:
            optimizer.step()
        if checkpoint:
            checkpoint.after(step + 1, config.steps, head, optimizer)
        on_step(step + 1)
    return head.eval()


def batch_loss(
    head: LinearHead,
    windows: Sequence[TrainingWindow],
    label_stride: int,
    statistics: Statistics | None = None,
    *,
    backward: bool,
) -> float | None:
    """Mean cross-entropy over all pixels of the batch that are not void; None if there is no such pixel.

    Windows of equal size go through the head together, as many as memory allows; with `backward` their gradients are
    accumulated: frozen features have none, so the batch's statistics are constants.
    """
    half = label_stride // 2
    chosen = [window.labels[half::label_stride, half::label_stride] for window in windows]
    counted = [int((labels != VOID).sum()) for labels in chosen]
    total = sum(counted)
    if total == 0:
        return None
    groups: dict[tuple[int, ...], list[TrainingWindow]] = {}
    for window, labels, count in zip(windows, chosen, counted, strict=True):
        if count:
            groups.setdefault(tuple(labels.shape), []).append(TrainingWindow(window.maps, labels))
    value, classes = 0.0, len(head.bias)
    for (height, width), members in groups.items():
        at_once = max(1, MOST_LOGITS // (classes * height * width))
        for start in range(0, len(members), at_once):
            some = members[start : start + at_once]
            maps = [torch.stack(level) for level in zip(*(member.maps for member in some), strict=True)]
            labels = torch.stack([member.labels for member in some]).to(maps[0].device)
            logits = resize_map(head(maps, statistics), head.strides[0] // label_stride)[:, :, :height, :width]
            loss = F.cross_entropy(logits, labels.long(), ignore_index=VOID, reduction="sum") / total
            if backward:
                loss.backward()
            value += float(loss.detach())
    return value


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
