"""How a head is fitted to training images: trained on cached or augmented ones, or a bank of cells."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from mcjepa.data_prep.corpora.items import LabelledImage
from mcjepa.data_prep.errors import DataError
from mcjepa.data_prep.storage import atomic_write
from mcjepa.evals.probe.feature_file import FeatureFile
from mcjepa.evals.probe.features import Statistics, measure_statistics, model_digest, read_labelled
from mcjepa.evals.probe.head import LinearHead
from mcjepa.evals.probe.knn import NearestCells, collect_cells
from mcjepa.evals.probe.probe import PixelClassifier, train_head
from mcjepa.evals.probe.runs import ProbeRun, Tell, device_of, features_of, require_some
from mcjepa.evals.probe.settings import ProbeConfig
from mcjepa.evals.probe.windows import AugmentedWindows, CachedWindows
from mcjepa.evals.subject import ModelUnderTest

HEAD_EVENTS = 50
Fit = Callable[[int], PixelClassifier]
"""Gives the head of a seed."""


def fitting(model: ModelUnderTest, run: ProbeRun, tell: Tell) -> tuple[Fit, Sequence[str], int]:
    """How a head is fitted for a seed; the training images that failed, and how many there are."""
    config, device = run.config, device_of(model)
    if config.head == "linear" and config.augment == "mmseg":
        items, failed = _readable(run, tell)
        return lambda seed: _train_augmented(model, items, run, seed, tell), failed, len(items)
    train = features_of(model, run, training=True, tell=tell)
    needed = config.head == "knn" or config.norm == "statistics"
    statistics = _statistics(train, run.strides) if needed else None
    if config.head == "knn":
        return lambda seed: _nearest_cells(train, statistics, run, seed, device), train.failed, len(train)
    return lambda seed: _train_cached(model, train, statistics, run, seed, tell), train.failed, len(train)


def _readable(run: ProbeRun, tell: Tell) -> tuple[list[LabelledImage], list[str]]:
    """Training images that can be read, and "name: reason" of the others: in the steps none may fail."""

    def reason_of(item: LabelledImage) -> str:
        try:
            read_labelled(item, len(run.data.classes))
        except (DataError, OSError) as error:
            return f"{item.name}: {' '.join(str(error).split())}"
        return ""

    good, failed = [], []
    with ThreadPoolExecutor(run.config.workers) as pool:
        for done, (item, reason) in enumerate(zip(run.data.train, pool.map(reason_of, run.data.train), strict=True)):
            if reason:
                failed.append(reason)
            else:
                good.append(item)
            tell("check training", done + 1, len(run.data.train))
    require_some(good, failed, "training", run)
    return good, failed


def _statistics(images: FeatureFile, strides: Sequence[int]) -> Statistics:
    """Statistics of all training features, kept beside them."""
    known = images.arrays("statistics")
    if known is None:
        parts = ((image.tiles[0].maps, (image.labels.shape[0], image.labels.shape[1])) for image in images)
        found = measure_statistics(parts, strides)
        known = {"count": np.array(found.count)}
        for level, (mean, variance) in enumerate(zip(found.mean, found.variance, strict=True)):
            known |= {f"mean_{level}": mean.numpy(), f"variance_{level}": variance.numpy()}
        images.keep_arrays("statistics", known)
    levels = range(len(strides))
    return Statistics(
        tuple(torch.from_numpy(known[f"mean_{level}"]) for level in levels),
        tuple(torch.from_numpy(known[f"variance_{level}"]) for level in levels),
        int(known["count"]),
    )


def _nearest_cells(
    train: FeatureFile, statistics: Statistics | None, run: ProbeRun, seed: int, device: torch.device
) -> NearestCells:
    assert statistics is not None
    config = run.config
    bank, shares = collect_cells(train, statistics, run.strides, len(run.data.classes), config.knn_cells, seed)
    return NearestCells(
        bank.to(device),
        shares.to(device),
        statistics,
        run.strides,
        k=config.knn_k,
        temperature=config.knn_temperature,
    )


def _train_cached(
    model: ModelUnderTest, train: FeatureFile, statistics: Statistics | None, run: ProbeRun, seed: int, tell: Tell
) -> LinearHead:
    source = CachedWindows(train, run.strides, run.config, seed)
    head = LinearHead(source.channels, run.strides, len(run.data.classes), seed, batch_norm=run.config.norm == "batch")
    if statistics is not None:
        head.set_statistics(statistics)
    saved = _checkpoint(model, run, seed)
    return train_head(source, head, run.config, device_of(model), _steps_told(run, tell), saved)


def _train_augmented(
    model: ModelUnderTest, items: Sequence[LabelledImage], run: ProbeRun, seed: int, tell: Tell
) -> LinearHead:
    config, classes = run.config, len(run.data.classes)
    with AugmentedWindows(model, items, run.strides, classes, config, seed) as source:
        head = LinearHead(source.channels, run.strides, classes, seed, batch_norm=True)
        saved = _checkpoint(model, run, seed)
        return train_head(source, head, config, device_of(model), _steps_told(run, tell), saved)


def _checkpoint(model: ModelUnderTest, run: ProbeRun, seed: int) -> HeadCheckpoint | None:
    """Where the training of a head is saved; None for a model that cannot be told from another."""
    known = model_digest(model)
    if not known or not run.config.checkpoint_steps:
        return None
    name = f"{training_key(known, run.digests[0], run.config, seed)}.pt"
    return HeadCheckpoint(run.cache.root / "heads" / name, run.config.checkpoint_steps)


def _steps_told(run: ProbeRun, tell: Tell) -> Callable[[int], None]:
    steps = run.config.steps

    def told(step: int) -> None:
        if step % max(1, steps // HEAD_EVENTS) == 0 or step == steps:
            tell("head", step, steps)

    return told


# Checkpoints of a head in training: `CACHE/heads/KEY.pt`, gone when the training is done.
#
# A step's batch depends on the seed and the step alone, so head, optimiser and step are all that a continued training
# needs to end with the same bits on the CPU.


SHAPES_NO_TRAINING = (
    *("root", "val_split", "window_px", "window_stride_px", "knn_k", "knn_temperature", "knn_cells", "max_val"),
    *("workers", "seeds", "cache", "cache_gib", "keep_features", "checkpoint_steps", "random_baseline", "pictures"),
)
"""Settings that change nothing in the training of a head."""
log = logging.getLogger(__name__)


def training_key(model: str, images: str, config: ProbeConfig, seed: int) -> str:
    """What a head's training depends on, as one digest: encoder, training images, settings and seed."""
    settings = {k: v for k, v in dataclasses.asdict(config).items() if k not in SHAPES_NO_TRAINING}
    parts = {"model": model, "images": images, "settings": settings, "seed": seed, "torch": torch.__version__}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


class HeadCheckpoint:
    """Where a training is saved, and how often."""

    def __init__(self, path: Path, every_steps: int) -> None:
        """A checkpoint file, written every so many steps."""
        self._path, self._every = path, every_steps

    def load(self, head: LinearHead, optimizer: torch.optim.Optimizer) -> int:
        """Brings head and optimiser to where an earlier process saved them; the step to go on with, 0 without one.

        Raises:
            DataError: the file is damaged.
        """
        if not self._path.is_file():
            return 0
        try:
            state = torch.load(self._path, map_location="cpu", weights_only=True)
            head.load_state_dict(state["head"])
            optimizer.load_state_dict(state["optimizer"])
        except Exception as error:  # damaged bytes fail in any way in the unpickler
            raise DataError(
                f"the head's checkpoint {self._path} cannot be read ({error}); expected one that this training wrote; "
                "remove it: the head is trained from its start"
            ) from error
        log.info("the head goes on at step %d from %s", state["step"], self._path)
        return int(state["step"])

    def after(self, step: int, steps: int, head: LinearHead, optimizer: torch.optim.Optimizer) -> None:
        """Saves after that many steps where it is time, and removes the file after the last."""
        if step == steps:
            self._path.unlink(missing_ok=True)
        elif step % self._every == 0:
            buffer = io.BytesIO()
            torch.save({"step": step, "head": head.state_dict(), "optimizer": optimizer.state_dict()}, buffer)
            atomic_write(self._path, buffer.getvalue())
