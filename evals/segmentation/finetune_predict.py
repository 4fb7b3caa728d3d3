"""The test of a fine-tuned network: whole image or sliding windows, several scales, mirrored.

mmsegmentation's protocol: images are fitted into `image_scale`, logits brought back to the labels' size, their softmax
averaged over scales and mirrors. Legend: K classes, H W pixels.
"""

from __future__ import annotations

from collections.abc import Iterator

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evals.segmentation.finetune_augment import fitted_size
from evals.segmentation.finetune_config import FinetuneConfig
from evals.segmentation.finetune_model import Segmenter
from evals.segmentation.upernet import resize_to

OVERLAP_PARTS = 3


@torch.inference_mode()
def predict_labels(network: Segmenter, image_HW3: NDArray[np.uint8], config: FinetuneConfig) -> NDArray[np.uint8]:
    """The most likely class of every pixel of an image of any size, (H, W) uint8; the network in evaluation mode."""
    device = next(network.parameters()).device
    size = (image_HW3.shape[0], image_HW3.shape[1])
    long, short = config.image_scale
    total = torch.zeros((), device=device)
    for factor in config.test_scales:
        height, width = fitted_size(size[0], size[1], long * factor, short * factor)
        resized = cv2.resize(image_HW3, (width, height), interpolation=cv2.INTER_LINEAR)
        pixels = torch.from_numpy(np.ascontiguousarray(resized)).to(device).permute(2, 0, 1)[None].float() / 255.0
        for mirrored in (False, True) if config.test_flip else (False,):
            logits = _logits(network, pixels.flip(-1) if mirrored else pixels, config)
            total = total + resize_to(logits.flip(-1) if mirrored else logits, size).softmax(1)
    return total[0].argmax(0).to(torch.uint8).cpu().numpy()


def _logits(network: Segmenter, image_13HW: Tensor, config: FinetuneConfig) -> Tensor:
    """(1, K, H, W) float32, by windows if the settings say so."""
    with torch.autocast(image_13HW.device.type, torch.bfloat16, enabled=config.precision == "bf16"):
        if config.test == "whole":
            return network.label_logits(image_13HW)
        return slide(network, image_13HW, config.crop_px)


def slide(network: Segmenter, image_13HW: Tensor, crop_px: tuple[int, int]) -> Tensor:
    """Mean of the logits of all windows over a pixel, (1, K, H, W) float32."""
    total: Tensor | None = None
    count = torch.zeros(image_13HW.shape[-2:], device=image_13HW.device)
    for rows, columns in windows(image_13HW.shape[-2], image_13HW.shape[-1], crop_px):
        logits = network.label_logits(image_13HW[..., rows, columns])
        if total is None:
            total = logits.new_zeros((1, logits.shape[1], *image_13HW.shape[-2:]))
        total[..., rows, columns] += logits
        count[rows, columns] += 1
    assert total is not None  # every image has at least one window
    return total / count


def windows(height: int, width: int, crop_px: tuple[int, int]) -> Iterator[tuple[slice, slice]]:
    """Windows that cover an image and overlap by a third at least; the last of a row or column ends at the border.

    >>> [(rows.start, rows.stop) for rows, _ in windows(600, 90, (300, 90))]
    [(0, 300), (200, 500), (300, 600)]
    """
    for top in _starts(height, crop_px[0]):
        for left in _starts(width, crop_px[1]):
            yield slice(top, min(top + crop_px[0], height)), slice(left, min(left + crop_px[1], width))


def _starts(side: int, crop: int) -> list[int]:
    stride = max(1, crop * (OVERLAP_PARTS - 1) // OVERLAP_PARTS)
    steps = max(side - crop + stride - 1, 0) // stride
    return [max(0, min(step * stride, side - crop)) for step in range(steps + 1)]
