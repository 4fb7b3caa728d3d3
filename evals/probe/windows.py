"""Batches of training windows: cut from cached features, or augmented and encoded in every step.

A step's batch is a pure function of the seed and the step: sample number p = step * batch + i is image p mod N of a
permutation of its epoch p div N, and its random numbers are drawn for (seed, p) alone.

The augmentation is mmsegmentation's for VOC, ADE20K and Cityscapes: `Resize` with ratio_range 0.5 to 2, `RandomCrop`
with cat_max_ratio 0.75, `RandomFlip` 0.5, `PhotoMetricDistortion` with its defaults, `Pad` to the crop (void labels).
Images are RGB (H, W, 3) uint8, labels (H, W) uint8 with 255 = void.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Protocol

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mcjepa.data_prep.corpora.items import LabelledImage
from mcjepa.evals.models import COARSEST_STRIDE, EvalModel, image_tensor
from mcjepa.evals.probe.features import EncodedImage, encode_tensor
from mcjepa.evals.probe.images import Size, fitted_size, read_labelled, resize_image, resize_labels
from mcjepa.evals.probe.metrics import VOID
from mcjepa.evals.probe.settings import ProbeConfig, both_sides


@dataclass(frozen=True)
class TrainingWindow:
    """Features and labels of one window of an image."""

    maps: tuple[Tensor, ...]
    """(C, h, w) by level, finest first."""
    labels: Tensor
    """(H, W) uint8, 255 = void."""


class WindowSource(Protocol):
    """Where the batches of a training come from."""

    channels: tuple[int, ...]
    """Channels of the levels, finest first."""

    def batch(self, step: int) -> list[TrainingWindow]:
        """The windows of a step, from 0."""
        ...


@dataclass(frozen=True)
class WindowOrder:
    """Which image each sample of a training is."""

    images: int
    seed: int

    def image_of(self, sample: int) -> int:
        """Image of the sample number `sample`."""
        epoch, place = divmod(sample, self.images)
        return int(_permutation(self.images, self.seed, epoch)[place])

    def random(self, sample: int) -> np.random.Generator:
        """The random numbers of that sample."""
        return np.random.default_rng((self.seed, sample))


@lru_cache(maxsize=4)
def _permutation(count: int, seed: int, epoch: int) -> NDArray[np.int64]:
    return np.random.default_rng((seed, epoch, count)).permutation(count)


class CachedWindows:
    """Windows of encoded images, not augmented."""

    def __init__(self, images: Sequence[EncodedImage], strides: Sequence[int], config: ProbeConfig, seed: int) -> None:
        self.channels = tuple(some_map.shape[0] for some_map in images[0].tiles[0].maps)
        self._images, self._strides = images, tuple(strides)
        self._batch, self._crop = config.batch, both_sides(config.crop_px)
        self._order = WindowOrder(len(images), seed)

    def batch(self, step: int) -> list[TrainingWindow]:
        """See `WindowSource.batch`."""
        samples = range(step * self._batch, (step + 1) * self._batch)
        return [
            cut_window(self._images[self._order.image_of(n)], self._strides, self._crop, self._order.random(n))
            for n in samples
        ]


def cut_window(image: EncodedImage, strides: Sequence[int], crop: Size, rng: np.random.Generator) -> TrainingWindow:
    """A random window of the maps and labels, its corner on a multiple of 64 px, so that all levels are aligned.

    A side that is not longer than the crop (or 0) stays whole.
    """
    corner, sides = [], []
    for side, wanted in zip(image.labels.shape, crop, strict=True):
        inner = -(-wanted // COARSEST_STRIDE) * COARSEST_STRIDE
        room = (side - inner) // COARSEST_STRIDE if 0 < wanted < side else 0
        corner.append(int(rng.integers(room + 1)) * COARSEST_STRIDE if room > 0 else 0)
        sides.append(inner if 0 < wanted < side else -(-side // COARSEST_STRIDE) * COARSEST_STRIDE)
    (top, left), (height, width) = corner, sides
    maps = tuple(
        map_Chw[:, top // s : (top + height) // s, left // s : (left + width) // s]
        for map_Chw, s in zip(image.tiles[0].maps, strides, strict=True)
    )
    return TrainingWindow(maps, image.labels[top : top + height, left : left + width])


@dataclass
class AugmentedWindows:
    """Windows of images that are augmented as mmsegmentation does and then encoded; a context manager."""

    model: EvalModel
    """The encoder."""
    items: Sequence[LabelledImage]
    """Readable images."""
    strides: tuple[int, ...]
    """Strides of the levels, finest first."""
    classes: int
    """Number of classes."""
    config: ProbeConfig
    """Batch, crop, sizes, threads."""
    seed: int
    """Of the order and the augmentation."""
    channels: tuple[int, ...] = field(init=False)
    """Channels of the levels, finest first."""

    def __post_init__(self) -> None:
        size = COARSEST_STRIDE
        maps = encode_tensor(self.model, torch.zeros(1, 3, size, size), self.strides)
        self.channels = tuple(some_map.shape[1] for some_map in maps)
        self._order = WindowOrder(len(self.items), self.seed)
        self._pool = ThreadPoolExecutor(self.config.workers, thread_name_prefix="augment")
        self._ahead: dict[int, list[Future[tuple[NDArray[np.uint8], NDArray[np.uint8]]]]] = {}

    def __enter__(self) -> AugmentedWindows:
        return self

    def __exit__(self, *details: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def batch(self, step: int) -> list[TrainingWindow]:
        """See `WindowSource.batch`; the next step's images are read meanwhile."""
        for wanted in (step, step + 1):
            if wanted not in self._ahead and wanted < self.config.steps:
                samples = range(wanted * self.config.batch, (wanted + 1) * self.config.batch)
                self._ahead[wanted] = [self._pool.submit(self._sample, n) for n in samples]
        drawn = [future.result() for future in self._ahead.pop(step)]
        windows: list[TrainingWindow] = []
        for start in range(0, len(drawn), self.config.encode_batch):
            some = drawn[start : start + self.config.encode_batch]
            maps = encode_tensor(self.model, torch.cat([image_tensor(image) for image, _ in some]), self.strides)
            windows += [
                TrainingWindow(tuple(map_BChw[n] for map_BChw in maps), torch.from_numpy(labels))
                for n, (_, labels) in enumerate(some)
            ]
        return windows

    def _sample(self, sample: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        image, labels = read_labelled(self.items[self._order.image_of(sample)], self.classes)
        crop = both_sides(self.config.crop_px)
        return augment_sample(image, labels, self.config.resize_px, crop, self._order.random(sample))


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
