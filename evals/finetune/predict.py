"""The test of a fine-tuned network: whole image or sliding windows, several scales, mirrored.

mmsegmentation's protocol: images are fitted into `image_scale`, logits brought back to the labels' size, their softmax
averaged over scales and mirrors. Legend: K classes, H W pixels.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mcjepa.evals.finetune.model import Segmenter
from mcjepa.evals.finetune.settings import FinetuneConfig
from mcjepa.evals.finetune.upernet import resize_to
from mcjepa.evals.probe.tiles import fitted_size, resize_image, window_boxes

STRIDE_PARTS = (2, 3)
"""Windows are two thirds of their size apart: 341 px for 512."""


@torch.inference_mode()
def predict_labels(network: Segmenter, image_HW3: NDArray[np.uint8], config: FinetuneConfig) -> NDArray[np.uint8]:
    """The most likely class of every pixel of an image of any size, (H, W) uint8; the network in evaluation mode."""
    device = next(network.parameters()).device
    size = (image_HW3.shape[0], image_HW3.shape[1])
    total = torch.zeros((), device=device)
    for factor in config.test_scales:
        resized = resize_image(image_HW3, fitted_size(size, config.image_scale, factor))
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
    part, whole = STRIDE_PARTS
    stride = (max(1, crop_px[0] * part // whole), max(1, crop_px[1] * part // whole))
    for top, left, height, width in window_boxes((image_13HW.shape[-2], image_13HW.shape[-1]), crop_px, stride):
        rows, columns = slice(top, top + height), slice(left, left + width)
        logits = network.label_logits(image_13HW[..., rows, columns])
        if total is None:
            total = logits.new_zeros((1, logits.shape[1], *image_13HW.shape[-2:]))
        total[..., rows, columns] += logits
        count[rows, columns] += 1
    assert total is not None  # every image has at least one window
    return total / count
