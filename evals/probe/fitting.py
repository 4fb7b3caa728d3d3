"""How a head is fitted to training images: trained on cached or augmented ones, or a bank of cells.

Training is VICRegL's protocol (mmsegmentation): cross-entropy at the labels' resolution, AdamW, linear warm-up and
polynomial decay. A head in training is saved as `CACHE/heads/KEY.pt`, which is gone when the training is done: a step's
batch depends on the seed and the step alone, so head, optimiser and step are all that a continued training needs to end
with the same bits on the CPU.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import logging
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from mcjepa.data_prep.corpora.items import LabelledImage
from mcjepa.data_prep.errors import DataError
from mcjepa.data_prep.storage import atomic_write
from mcjepa.evals.models import EvalModel, device_of
from mcjepa.evals.probe.cache import FeatureCache
from mcjepa.evals.probe.feature_file import FeatureFile
from mcjepa.evals.probe.features import EncodingPlan, Statistics, measure_statistics, model_digest, resize_map
from mcjepa.evals.probe.head import LinearHead, PixelClassifier
from mcjepa.evals.probe.images import LabelledSet, read_labelled
from mcjepa.evals.probe.knn import NearestCells, collect_cells
from mcjepa.evals.probe.metrics import VOID
from mcjepa.evals.probe.settings import ProbeConfig, both_sides
from mcjepa.evals.probe.windows import AugmentedWindows, CachedWindows, TrainingWindow, WindowSource
from mcjepa.evals.progress import OnEvent, nothing_scored

MOST_LOGITS = 2**27
"""Logits of pixels that are in memory at once while training."""
WARMUP_START = 1e-6
HEAD_EVENTS = 50
SHAPES_NO_TRAINING = (
    *("root", "val_split", "window_px", "window_stride_px", "knn_k", "knn_temperature", "knn_cells", "max_val"),
    *("workers", "seeds", "cache", "cache_gib", "keep_features", "checkpoint_steps", "random_baseline", "pictures"),
)
"""Settings that change nothing in the training of a head."""
log = logging.getLogger(__name__)

Tell = Callable[[str, int, int], None]
"""Told of a phase, how much of it is done, and how much there is."""
Fit = Callable[[int], PixelClassifier]
"""Gives the head of a seed."""


@dataclass(frozen=True, kw_only=True)
class ProbeRun:
    """What all heads of a score share."""

    data: LabelledSet
    """Images, as many as are used."""
    config: ProbeConfig
    """Protocol."""
    cache: FeatureCache
    """Where features are kept."""
    digests: tuple[str, str]
    """Of the training and of the validation images."""
    shown: tuple[str, ...]
    """Validation images of which predictions are kept for pictures."""
    on_event: OnEvent
    """Progress."""

    @property
    def strides(self) -> tuple[int, ...]:
        """Strides of the levels, finest first."""
        return tuple(2**level for level in sorted(self.config.levels))

    def plan(self, training: bool) -> EncodingPlan:
        """How images are encoded: training images whole, validation images in the test's windows."""
        window, stride = both_sides(self.config.window_px), both_sides(self.config.window_stride_px)
        return EncodingPlan(
            strides=self.strides,
            classes=len(self.data.classes),
            resize=self.config.resize_px,
            window=(0, 0) if training else window,
            window_stride=(0, 0) if training else stride,
            resize_labels=training,
        )


def features_of(model: EvalModel, run: ProbeRun, *, training: bool, tell: Tell) -> FeatureFile:
    """Features of the training or of the validation images.

    Raises:
        DataError: none could be read, or they have no room.
    """
    items = run.data.train if training else run.data.val
    part = "training" if training else "validation"
    plan, digest = run.plan(training), run.digests[0 if training else 1]
    features = run.cache.features(model, items, digest, plan, lambda done: tell(f"encode {part}", done, len(items)))
    require_some(features, features.failed, part, run)
    return features


def require_some(images: Sequence[object], failed: Sequence[str], part: str, run: ProbeRun) -> None:
    """Raises a DataError if no image of a part could be read."""
    if not images:
        raise nothing_scored(f"{part} images of {run.data.root}", failed, "readable images")


def make_fit(model: EvalModel, run: ProbeRun, tell: Tell) -> tuple[Fit, Sequence[str], int]:
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
    model: EvalModel, train: FeatureFile, statistics: Statistics | None, run: ProbeRun, seed: int, tell: Tell
) -> LinearHead:
    source = CachedWindows(train, run.strides, run.config, seed)
    head = LinearHead(source.channels, run.strides, len(run.data.classes), seed, batch_norm=run.config.norm == "batch")
    if statistics is not None:
        head.set_statistics(statistics)
    saved = _checkpoint(model, run, seed)
    return train_head(source, head, run.config, device_of(model), _steps_told(run, tell), saved)


def _train_augmented(
    model: EvalModel, items: Sequence[LabelledImage], run: ProbeRun, seed: int, tell: Tell
) -> LinearHead:
    config, classes = run.config, len(run.data.classes)
    with AugmentedWindows(model, items, run.strides, classes, config, seed) as source:
        head = LinearHead(source.channels, run.strides, classes, seed, batch_norm=True)
        saved = _checkpoint(model, run, seed)
        return train_head(source, head, config, device_of(model), _steps_told(run, tell), saved)


def _checkpoint(model: EvalModel, run: ProbeRun, seed: int) -> HeadCheckpoint | None:
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


def poly_schedule(step: int, steps: int, warmup_steps: int, power: float) -> float:
    """Learning rate of a step (from 0) as a part of the peak, as mmsegmentation's `poly` with linear warm-up.

    The decay (1 - step / steps)**power runs from the first step on; the warm-up is a second factor from 1e-6 to 1.

    >>> [round(poly_schedule(step, 10, 4, 1.0), 3) for step in (0, 2, 4, 9)]
    [0.0, 0.4, 0.6, 0.1]
    """
    decay = float((1.0 - step / steps) ** power)
    if step >= warmup_steps:
        return decay
    return decay * (1.0 - (1.0 - step / warmup_steps) * (1.0 - WARMUP_START))


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

    Raises:
        DataError: the loss is not finite.
    """
    head.to(device).train()
    optimizer = torch.optim.AdamW(head.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    start = checkpoint.load(head, optimizer) if checkpoint else 0
    for step in range(start, config.steps):
        for group in optimizer.param_groups:
            group["lr"] = config.lr * poly_schedule(step, config.steps, config.warmup_steps, config.poly_power)
        windows = [
            TrainingWindow(tuple(m.to(device, torch.float32) for m in w.maps), w.labels) for w in source.batch(step)
        ]
        statistics = None
        if head.batch_norm:
            parts = ((window.maps, (window.labels.shape[0], window.labels.shape[1])) for window in windows)
            statistics = measure_statistics(parts, head.strides)
            head.follow_statistics(statistics)
        optimizer.zero_grad(set_to_none=True)
        loss = batch_loss(head, windows, config.loss_stride_px, statistics, backward=True)
        if loss is not None:
            _require_finite(loss, step)
            optimizer.step()
        if checkpoint:
            checkpoint.after(step + 1, config.steps, head, optimizer)
        on_step(step + 1)
    return head.eval()


def _require_finite(loss: float, step: int) -> None:
    if not math.isfinite(loss):
        raise DataError(
            f"the head's loss is {loss} at step {step}; expected a finite one; lower probe.lr or check the weights"
        )


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
