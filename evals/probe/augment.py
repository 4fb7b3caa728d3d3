"""mmsegmentation's training augmentation: random size, crop, flip and colours, with the labels.

Its standard pipeline for VOC, ADE20K and Cityscapes: `Resize` with ratio_range 0.5 to 2, `RandomCrop` with
cat_max_ratio 0.75, `RandomFlip` 0.5, `PhotoMetricDistortion` with its defaults, `Pad` to the crop (void labels).
Images are RGB (H, W, 3) uint8, labels (H, W) uint8 with 255 = void.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from mcjepa.evals.probe.metrics import VOID
from mcjepa.evals.probe.tiles import Size, fitted_size, resize_image, resize_labels

SMALLEST_RATIO, LARGEST_RATIO = 0.5, 2.0
MOST_OF_ONE_CLASS = 0.75
CROP_TRIALS = 10
FLIP_PART = 0.5
BRIGHTNESS = 32.0
CONTRAST = (0.5, 1.5)
SATURATION = (0.5, 1.5)
HUE = 18
"""Of OpenCV's 180."""
PAD_RGB = (124, 116, 104)
"""ImageNet's mean colour: 0 after the encoder's normalisation."""

Bytes = NDArray[np.uint8]


def augment_sample(
    image_HW3: Bytes, labels_HW: Bytes, resize: Size, crop: Size, rng: np.random.Generator
) -> tuple[Bytes, Bytes]:
    """One augmented window of an image.

    Args:
        image_HW3: RGB.
        labels_HW: its labels.
        resize: longest and shortest side that factor 1 fits images into; (0, 0) = as stored.
        crop: height and width of the window.
        rng: all randomness.

    Returns:
        Image (*crop, 3) and labels (*crop), padded with ImageNet's mean colour and void at the right and bottom.
    """
    ratio = rng.uniform(SMALLEST_RATIO, LARGEST_RATIO)
    size = fitted_size((image_HW3.shape[0], image_HW3.shape[1]), resize, ratio)
    image, labels = resize_image(image_HW3, size), resize_labels(labels_HW, size)
    rows, columns = choose_crop(labels, crop, rng)
    image, labels = image[rows, columns], labels[rows, columns]
    if rng.random() < FLIP_PART:
        image, labels = image[:, ::-1], labels[:, ::-1]
    image = distort_colours(np.ascontiguousarray(image), rng)
    below, right = crop[0] - image.shape[0], crop[1] - image.shape[1]
    if below or right:
        image = np.asarray(cv2.copyMakeBorder(image, 0, below, 0, right, cv2.BORDER_CONSTANT, value=PAD_RGB), np.uint8)
        labels = np.pad(labels, ((0, below), (0, right)), constant_values=VOID)
    return image, np.ascontiguousarray(labels)


def choose_crop(labels_HW: Bytes, crop: Size, rng: np.random.Generator) -> tuple[slice, slice]:
    """A random window in which no class has more than three quarters of the pixels that have one.

    After ten trials it is the last, whatever it shows.
    """
    height, width = labels_HW.shape
    for _ in range(CROP_TRIALS):
        top = int(rng.integers(max(height - crop[0], 0) + 1))
        left = int(rng.integers(max(width - crop[1], 0) + 1))
        window = (slice(top, min(top + crop[0], height)), slice(left, min(left + crop[1], width)))
        counts = np.bincount(labels_HW[window].ravel(), minlength=256)[:VOID]
        if np.count_nonzero(counts) > 1 and counts.max() < MOST_OF_ONE_CLASS * counts.sum():
            break
    return window


def distort_colours(image_HW3: Bytes, rng: np.random.Generator) -> Bytes:
    """Brightness, contrast, saturation and hue, each at random and with probability one half.

    Contrast comes before or after saturation and hue, as likely.
    """
    image = image_HW3
    if rng.integers(2):
        image = _linear(image, 1.0, rng.uniform(-BRIGHTNESS, BRIGHTNESS))
    contrast_first = bool(rng.integers(2))
    if contrast_first and rng.integers(2):
        image = _linear(image, rng.uniform(*CONTRAST), 0.0)
    if rng.integers(2):
        hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
        hsv[..., 1] = _linear(np.asarray(hsv[..., 1], np.uint8), rng.uniform(*SATURATION), 0.0)
        image = np.asarray(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB), np.uint8)
    if rng.integers(2):
        hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
        hsv[..., 0] = (hsv[..., 0].astype(np.int64) + rng.integers(-HUE, HUE)) % 180
        image = np.asarray(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB), np.uint8)
    if not contrast_first and rng.integers(2):
        image = _linear(image, rng.uniform(*CONTRAST), 0.0)
    return image


def _linear(values: Bytes, factor: float, offset: float) -> Bytes:
    return np.clip(values.astype(np.float32) * np.float32(factor) + np.float32(offset), 0, 255).astype(np.uint8)
