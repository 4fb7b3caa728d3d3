"""The labelled images of a set: the two parts, reading with a check, sizes, and the overlapping windows of the test.

Sizes and windows are mmsegmentation's (`Resize` with `keep_ratio`, `slide_inference`). Sizes are (height, width) in px.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from mcjepa.data_prep.corpora import SEGMENTATION_CLASSES, SEGMENTATION_SETS
from mcjepa.data_prep.corpora.items import LabelledImage
from mcjepa.data_prep.corpora.places import read_bytes
from mcjepa.data_prep.errors import DataError
from mcjepa.evals.probe.metrics import VOID
from mcjepa.evals.progress import set_folder, set_reader

Size = tuple[int, int]
Box = tuple[int, int, int, int]
"""Top, left, height, width, px."""


@dataclass(frozen=True, kw_only=True)
class LabelledSet:
    """The two parts of a labelled set."""

    root: Path
    """Folder it was read from."""

    train: Sequence[LabelledImage]
    """Images that a head is fitted to, or an encoder is fine-tuned on."""

    val: Sequence[LabelledImage]
    """Images that are scored."""

    classes: tuple[str, ...]
    """Names of the classes 0, 1, …"""


class SetChoice(Protocol):
    """The settings that name a labelled set: those of the probe and of fine-tuning."""

    @property
    def set(self) -> str:
        """Name of the set."""

    @property
    def root(self) -> str:
        """Its folder."""

    @property
    def train_split(self) -> str:
        """Part to train on."""

    @property
    def val_split(self) -> str:
        """Part to score."""


def read_labelled_set(config: SetChoice, field: str) -> LabelledSet:
    """The images of the set that the settings name.

    Args:
        config: settings of the probe or of fine-tuning.
        field: the setting with the set's name, such as probe.set, for errors.

    Raises:
        DataError: the set is unknown or missing, or has no such part.
    """
    read = set_reader(SEGMENTATION_SETS, config.set, field)
    root = set_folder(config.root, config.set)
    train: list[LabelledImage] = read(root, config.train_split)
    val: list[LabelledImage] = read(root, config.val_split)
    return LabelledSet(root=root, train=train, val=val, classes=SEGMENTATION_CLASSES[config.set](root))


def read_labelled(item: LabelledImage, classes: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """An image (H, W, 3) and its labels (H, W), both uint8, every label checked.

    Raises:
        DataError: a file cannot be read, sizes differ, or a label is no class of the set and not void.
    """
    image, labels = item.read()
    found = np.unique(labels)
    wrong = found[(found != VOID) & ((found < 0) | (found >= classes))]
    if wrong.size:
        raise DataError(
            f"{item.labels} has the label ids {wrong[:5].tolist()}; expected 0..{classes - 1}, or {VOID} for void; "
            "correct the file or choose the set that it belongs to"
        )
    return image, labels.astype(np.uint8)


def images_digest(items: Sequence[LabelledImage], on_image: Callable[[int], None] = lambda done: None) -> str:
    """sha256 over the names, the bytes and the label tables of images; a file that cannot be read counts as such."""
    digest = hashlib.sha256()
    for done, item in enumerate(items, start=1):
        digest.update(f"{item.name}\0{item.void_label}\0{item.classes}\0".encode())
        for place in (item.image, item.labels):
            try:
                content = read_bytes(place)
            except (DataError, OSError):
                digest.update(b"unreadable\0")
                continue
            digest.update(hashlib.sha256(content).digest())
        on_image(done)
    return digest.hexdigest()


def fitted_size(size: Size, limits: Size, factor: float = 1.0) -> Size:
    """The size at which an image fits into limits, its shape kept; unchanged without limits.

    Args:
        size: of the image.
        limits: longest and shortest side, px, or (0, 0).
        factor: of both limits.

    >>> fitted_size((375, 500), (2048, 512)), fitted_size((375, 500), (0, 0)), fitted_size((100, 1000), (2048, 512))
    ((512, 683), (375, 500), (205, 2048))
    """
    if limits == (0, 0):
        scale = factor
    else:
        longest, shortest = (int(limit * factor + 0.5) for limit in limits)
        scale = min(longest / max(size), shortest / min(size))
    height, width = (max(1, int(side * scale + 0.5)) for side in size)
    return height, width


def resize_image(image_HW3: NDArray[np.uint8], size: Size) -> NDArray[np.uint8]:
    """An image brought to a size, bilinear; the image itself if it has that size."""
    if image_HW3.shape[:2] == size:
        return image_HW3
    return np.asarray(cv2.resize(image_HW3, size[::-1], interpolation=cv2.INTER_LINEAR), np.uint8)


def resize_labels(labels_HW: NDArray[np.uint8], size: Size) -> NDArray[np.uint8]:
    """A label map brought to a size, nearest pixel."""
    if labels_HW.shape == size:
        return labels_HW
    return np.asarray(cv2.resize(labels_HW, size[::-1], interpolation=cv2.INTER_NEAREST), np.uint8)


def window_boxes(size: Size, window: Size, stride: Size) -> list[Box]:
    """Windows that cover an image, row by row; those at the far edges are moved back inside.

    Args:
        size: of the image.
        window: of each window; (0, 0) = the whole image; what is larger than the image is cut to it.
        stride: from one to the next; (0, 0) = the window.

    >>> window_boxes((512, 683), (512, 512), (341, 341))
    [(0, 0, 512, 512), (0, 171, 512, 512)]
    >>> window_boxes((300, 400), (0, 0), (0, 0))
    [(0, 0, 300, 400)]
    """
    if window == (0, 0):
        return [(0, 0, *size)]
    starts = []
    for side, reach, step in zip(size, window, stride if stride != (0, 0) else window, strict=True):
        count = max(side - reach + step - 1, 0) // step + 1
        starts.append([max(min(n * step + reach, side) - reach, 0) for n in range(count)])
    height, width = min(window[0], size[0]), min(window[1], size[1])
    return [(top, left, height, width) for top in starts[0] for left in starts[1]]
