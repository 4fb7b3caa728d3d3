"""Small labelled sets, encoded images and caches of the probe's tests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from mcjepa.data_prep.corpora.image_files import write_id_png, write_png
from mcjepa.data_prep.corpora.items import LabelledImage
from mcjepa.evals.models import EvalModel
from mcjepa.evals.pictures import class_colours
from mcjepa.evals.probe.cache import FeatureCache
from mcjepa.evals.probe.feature_file import FeatureFile
from mcjepa.evals.probe.features import EncodedImage, EncodedTile, EncodingPlan
from mcjepa.evals.probe.images import images_digest

STRIDES = (8, 16, 32, 64)
CHANNELS = (3, 4, 5, 6)
PLAN = EncodingPlan(strides=STRIDES, classes=5)


def encoded_image(seed: int, height: int = 100, width: int = 140) -> EncodedImage:
    """An image of random features and labels of five classes."""
    generator = torch.Generator().manual_seed(seed)
    padded = (-(-height // 64) * 64, -(-width // 64) * 64)
    maps = tuple(
        torch.randn(count, padded[0] // stride, padded[1] // stride, generator=generator) * 3 + 1
        for count, stride in zip(CHANNELS, STRIDES, strict=True)
    )
    labels = torch.randint(0, 5, (height, width), generator=generator).to(torch.uint8)
    return EncodedImage(f"image{seed}", (height, width), (EncodedTile((0, 0, height, width), maps),), labels)


def write_items(folder: Path, sizes: Sequence[tuple[int, int]], classes: int = 5) -> list[LabelledImage]:
    """Images on disk whose colour says their class: bands of random height."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(len(sizes))
    items = []
    for index, (height, width) in enumerate(sizes):
        image, labels = folder / f"{index}.png", folder / f"{index}_labels.png"
        rows = np.sort(rng.integers(0, classes, height // 8 + 1)).repeat(8)[:height].astype(np.uint8)
        ids = np.broadcast_to(rows[:, None], (height, width)).copy()
        noise = rng.integers(0, 20, (height, width, 3))
        write_png(image, (class_colours(classes)[ids] * 0.8 + noise).astype(np.uint8))
        write_id_png(labels, ids)
        items.append(LabelledImage(str(index), image, labels))
    return items


def features_of(
    cache: FeatureCache,
    model: EvalModel,
    items: Sequence[LabelledImage],
    plan: EncodingPlan = PLAN,
    on_image: Callable[[int], None] = lambda done: None,
) -> FeatureFile:
    """The cache's features of some images."""
    return cache.features(model, items, images_digest(items), plan, on_image)


def cache_in(folder: Path, *, batch: int = 3, most_gib: float = 1.0, dtype: str = "float32") -> FeatureCache:
    """A cache as the tests use it."""
    return FeatureCache(folder, most_gib=most_gib, dtype=dtype, batch=batch)
