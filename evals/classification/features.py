"""Pooled features of many images: encoded batch by batch into a file that is mapped into memory, and kept.

    CACHE/KEY.npy     (N, D) float32, one row an image; it appears when it is whole
    CACHE/KEY.json    what the key was made of, and the images that could not be read

The key is a digest of the weights, the list of files with their lengths and times, and the preprocessing.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from mcjepa.data_prep.errors import DataError
from mcjepa.data_prep.storage import atomic_write, explained_disk_errors
from mcjepa.evals.cards import package_versions
from mcjepa.evals.classification.images import ClassImages
from mcjepa.evals.classification.settings import ClassifyConfig
from mcjepa.evals.models import EvalModel, features_by_stride, map_of_stride
from mcjepa.evals.progress import nothing_scored
from mcjepa.evals.reading import read_batches

log = logging.getLogger(__name__)
FORMAT = 1
CPU = torch.device("cpu")
Loaded = tuple[int, NDArray[np.uint8] | None, str]
"""Index, picture, reason why there is none."""


@dataclass(frozen=True, kw_only=True)
class PooledFeatures:
    """Features of the images of one split that could be read."""

    table: NDArray[np.float32]
    """(N, D), a row an image, mapped from a file; rows of unreadable images hold zeros."""

    rows: NDArray[np.int64]
    """Rows of the readable images, rising."""

    labels: NDArray[np.int64]
    """Class of each readable image."""

    failed: tuple[str, ...]
    """ "name: reason" of the others."""

    device: torch.device = CPU
    """Where rows are computed with."""

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def channels(self) -> int:
        """D."""
        return int(self.table.shape[1])

    def take(self, places: NDArray[np.int64] | slice) -> Tensor:
        """Rows of readable images by their place among them, (n, D) float32, on the device."""
        return torch.from_numpy(np.array(self.table[self.rows[places]], np.float32)).to(self.device)

    def blocks(self, size: int) -> Iterator[tuple[slice, Tensor]]:
        """All rows, `size` at a time."""
        for start in range(0, len(self), size):
            place = slice(start, min(start + size, len(self)))
            yield place, self.take(place)

    def class_numbers(self) -> Tensor:
        """`labels` on the device."""
        return torch.from_numpy(self.labels).to(self.device)

    def part(self, places: NDArray[np.int64]) -> PooledFeatures:
        """Some of the images."""
        return dataclasses.replace(self, rows=self.rows[places], labels=self.labels[places], failed=())


@dataclass(frozen=True, kw_only=True)
class PooledFeatureCache:
    """The folder of pooled features."""

    folder: Path
    model: str
    """Who made the features: a digest; empty = unknown, so nothing that is there is taken."""
    device: torch.device = CPU
    """Where the features are computed with."""

    def features(
        self,
        model: EvalModel,
        images: ClassImages,
        config: ClassifyConfig,
        on_image: Callable[[int], None] = lambda done: None,
    ) -> PooledFeatures:
        """Features of a split, from the file if it is there.

        Raises:
            DataError: no image can be read, a feature is not finite, or the disk is full.
        """
        path = self.folder / f"{self._key(images, config)}.npy"
        record = path.with_suffix(".json")
        if not (self.model and self._is_whole(path, images, config)):
            failed = _encode_to_file(model, images, config, path, on_image)
            atomic_write(record, _record_bytes(self._parts(images, config), failed))
        on_image(len(images))
        reasons = {int(index): str(why) for index, why in json.loads(record.read_text())["failed"].items()}
        rows = np.array([row for row in range(len(images)) if row not in reasons], np.int64)
        named = tuple(f"{images.names[index]}: {why}" for index, why in sorted(reasons.items()))
        if not len(rows):
            raise nothing_scored(str(images.root), named, "readable images")
        table = np.load(path, mmap_mode="r")
        return PooledFeatures(table=table, rows=rows, labels=images.labels[rows], failed=named, device=self.device)

    def remove(self, images: ClassImages, config: ClassifyConfig) -> None:
        """Removes a split's files."""
        path = self.folder / f"{self._key(images, config)}.npy"
        for file in (path, path.with_suffix(".json")):
            file.unlink(missing_ok=True)

    def _is_whole(self, path: Path, images: ClassImages, config: ClassifyConfig) -> bool:
        """Whether both files are there and readable, and what could not be read then still cannot be read."""
        try:
            failed = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))["failed"]
            whole = len(np.load(path, mmap_mode="r")) == len(images)
        except FileNotFoundError:
            return False
        except (KeyError, ValueError, EOFError) as error:
            log.warning("%s is damaged (%s): its images are encoded again", path, error)
            return False
        pictures = _Pictures(images, config)
        return whole and all(pictures[int(index)][1] is None for index in failed)

    def _parts(self, images: ClassImages, config: ClassifyConfig) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "model": self.model,
            "images": images.digest,
            "levels": sorted(config.levels),
            "preprocessing": [config.resize_px, config.crop_px, config.interpolation],
            "versions": package_versions("torch", "pillow"),
        }

    def _key(self, images: ClassImages, config: ClassifyConfig) -> str:
        text = json.dumps(self._parts(images, config), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:32]


def _record_bytes(parts: dict[str, Any], failed: dict[int, str]) -> bytes:
    return (json.dumps({**parts, "failed": failed}, indent=1) + "\n").encode()


def _encode_to_file(
    model: EvalModel,
    images: ClassImages,
    config: ClassifyConfig,
    path: Path,
    on_image: Callable[[int], None],
) -> dict[int, str]:
    """Writes the table through a neighbour; returns the reason of each image that could not be read."""
    failed: dict[int, str] = {}
    table: np.memmap[Any, np.dtype[np.float32]] | None = None
    done = 0
    with explained_disk_errors(str(path)):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.stem}.{uuid.uuid4().hex}.partial")
        try:
            for batch in _batches(images, config):
                failed |= {index: why for index, picture, why in batch if picture is None}
                good = [(index, picture) for index, picture, _ in batch if picture is not None]
                if good:
                    features = pool(model, _stack([picture for _, picture in good]), config.levels)
                    _require_finite(features, [images.names[index] for index, _ in good])
                    if table is None:
                        shape = (len(images), features.shape[1])
                        table = np.lib.format.open_memmap(partial, "w+", np.float32, shape)
                    table[[index for index, _ in good]] = features.numpy()
                done += len(batch)
                on_image(done)
            if table is None:
                np.save(partial.with_suffix(".npy"), np.empty((len(images), 0), np.float32))
                os.replace(partial.with_suffix(".npy"), partial)
            else:
                table.flush()
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
    return failed


def _require_finite(features_BD: Tensor, names: Sequence[str]) -> None:
    wrong = (~features_BD.isfinite().all(1)).nonzero().flatten().tolist()
    if wrong:
        raise DataError(f"features of {names[wrong[0]]} are not finite; expected numbers; check the weights")


def pool(model: EvalModel, images_B3HW: Tensor, levels: Sequence[int]) -> Tensor:
    """Global averages of the levels, concatenated finest first, (B, D) float32; cells of the padding are left out."""
    maps = features_by_stride(model, images_B3HW)
    height, width = images_B3HW.shape[-2:]
    means = []
    for level in sorted(levels):
        map_BChw = map_of_stride(maps, 2**level)
        means.append(map_BChw[:, :, : -(-height // 2**level), : -(-width // 2**level)].float().mean((2, 3)))
    return torch.cat(means, dim=1).cpu()


def _stack(pictures: Sequence[NDArray[np.uint8]]) -> Tensor:
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float().div(255.0)


class _Pictures(Dataset[Loaded]):
    def __init__(self, images: ClassImages, config: ClassifyConfig) -> None:
        self.images, self.config = images, config

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Loaded:
        try:
            return index, self.images.read(index, self.config), ""
        except (DataError, OSError) as error:
            return index, None, str(error)


def _batches(images: ClassImages, config: ClassifyConfig) -> Iterator[list[Loaded]]:
    """All images, in order."""
    starts = range(0, len(images), config.encode_batch)
    batches = [range(start, min(start + config.encode_batch, len(images))) for start in starts]
    return read_batches(_Pictures(images, config), batches, list, config.workers, "classify.workers")
