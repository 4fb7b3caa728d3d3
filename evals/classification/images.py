"""Images in folders of classes, and what is done to each before it is encoded.

ROOT/train/CLASS/…, ROOT/val/CLASS/…: classes are the folders of `train`, sorted by name.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PillowImage

from mcjepa.data_prep.corpora.image_files import read_rgb
from mcjepa.data_prep.corpora.inputs import list_image_classes
from mcjepa.data_prep.errors import DataError
from mcjepa.evals.classification.settings import ClassifyConfig
from mcjepa.evals.progress import evenly_spaced

FILTERS = {
    "bicubic": PillowImage.Resampling.BICUBIC,
    "bilinear": PillowImage.Resampling.BILINEAR,
}
MOST_NAMED = 3


@dataclass(frozen=True, kw_only=True)
class ClassImages:
    """The images of one split; a name and a number each, so that millions fit into memory."""

    root: Path
    """Folder of the split."""

    names: tuple[str, ...]
    """Names below `root`."""

    labels: NDArray[np.int64]
    """Class of each."""

    digest: str
    """sha256 over names, lengths and times of change (s) of the files."""

    def __len__(self) -> int:
        return len(self.names)

    def read(self, index: int, config: ClassifyConfig) -> NDArray[np.uint8]:
        """The picture as the model sees it, (crop_px, crop_px, 3).

        Raises:
            DataError: it cannot be read.
        """
        return prepare(read_rgb(self.root / self.names[index]), config)


@dataclass(frozen=True, kw_only=True)
class ClassifyData:
    """Both splits of a set."""

    root: Path
    classes: tuple[str, ...]
    train: ClassImages
    val: ClassImages


def read_class_folders(root: Path, max_train: int = 0, max_val: int = 0) -> ClassifyData:
    """Lists both splits; with a cap, evenly spaced images of each. The classes are those of all training images.

    Raises:
        DataError: a split is absent or empty, `val` has a class that `train` lacks, or images lie in no class.
    """
    train, val = _list_split(root, "train"), _list_split(root, "val")
    classes = tuple(sorted({item.label for item in train}))
    unknown = sorted({item.label for item in val} - set(classes))
    if unknown:
        named = ", ".join(unknown[:MOST_NAMED]) + (", …" if len(unknown) > MOST_NAMED else "")
        raise DataError(
            f"{root / 'val'} has {len(unknown)} classes that train lacks ({named}); expected classes of train only; "
            "add training images or take the classes out"
        )
    if len(classes) < 2:
        raise DataError(f"{root / 'train'} has one class ({classes[0]}); expected two or more; check the folder")
    return ClassifyData(
        root=root,
        classes=classes,
        train=_split(root / "train", evenly_spaced(train, max_train), classes),
        val=_split(root / "val", evenly_spaced(val, max_val), classes),
    )


class _Listed(NamedTuple):
    name: str
    label: str
    bytes: int


def _list_split(root: Path, split: str) -> list[_Listed]:
    listed = [_Listed(item.name, sys.intern(item.label), item.bytes) for item in list_image_classes(str(root), split)]
    loose = [item.name for item in listed if not item.label]
    if loose:
        raise DataError(
            f"{root / split} has {len(loose)} images beside its class folders ({loose[0]}, …); expected "
            f"{split}/CLASS/IMAGE; move them into their classes"
        )
    return listed


def _split(root: Path, items: Iterable[_Listed], classes: tuple[str, ...]) -> ClassImages:
    number = {name: index for index, name in enumerate(classes)}
    digest, names, labels = hashlib.sha256(), [], []
    for item in items:
        names.append(item.name)
        labels.append(number[item.label])
        digest.update(f"{item.name}\0{item.bytes}\0{_changed(root / item.name)}\n".encode())
    return ClassImages(root=root, names=tuple(names), labels=np.array(labels, np.int64), digest=digest.hexdigest())


def _changed(path: Path) -> int:
    """When a file was changed, whole seconds as archives keep them; 0 where that cannot be told."""
    try:
        return int(path.stat().st_mtime)
    except OSError:
        return 0


def prepare(image_HW3: NDArray[np.uint8], config: ClassifyConfig) -> NDArray[np.uint8]:
    """Short side to `resize_px`, then the central square of `crop_px`: torchvision's Resize and CenterCrop."""
    height, width = image_HW3.shape[:2]
    short = config.resize_px
    size = (short * width // height, short) if height <= width else (short, short * height // width)
    resized = np.asarray(PillowImage.fromarray(image_HW3).resize(size, FILTERS[config.interpolation]), np.uint8)
    top, left = (round((side - config.crop_px) / 2) for side in resized.shape[:2])
    return resized[top : top + config.crop_px, left : left + config.crop_px]
