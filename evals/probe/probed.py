"""One encoder, probed: a head a seed, and what the validation images say of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from mcjepa.data_prep.errors import DataError
from mcjepa.evals.probe.feature_file import FeatureFile
from mcjepa.evals.probe.fitting import fitting
from mcjepa.evals.probe.metrics import confusion_matrix, mean_iou, pixel_accuracy
from mcjepa.evals.probe.probe import PixelClassifier, predict_labels
from mcjepa.evals.probe.runs import ProbeRun, device_of, features_of
from mcjepa.evals.progress import EvalEvent
from mcjepa.evals.subject import ModelUnderTest


@dataclass(frozen=True, kw_only=True)
class ProbedHead:
    """What one head found."""

    confusion: NDArray[np.int64]
    """(K, K) over all validation images, rows = truth."""
    by_image: dict[str, tuple[int, float, float]]
    """Counted pixels, mIoU and pixel accuracy of each image."""
    predictions: dict[str, NDArray[np.uint8]]
    """Of the images that are shown."""


@dataclass(frozen=True, kw_only=True)
class ProbedEncoder:
    """What the heads of one encoder found."""

    heads: tuple[ProbedHead, ...]
    """One a seed."""
    failed: tuple[str, ...]
    """Images that could not be read, each "name: reason"."""
    trained_on: int
    """Training images."""
    sizes: tuple[str, ...] = field(default=())
    """Sizes of the scored images, WIDTHxHEIGHT."""
    channels: int = 0
    """Channels of the concatenated levels."""


def probe_encoder(model: ModelUnderTest, run: ProbeRun, seeds: Sequence[int], name: str) -> ProbedEncoder:
    """Fits a head a seed to the training images and scores each on the validation images.

    Args:
        model: the encoder.
        run: data, protocol, cache.
        seeds: of the heads.
        name: of the score, for progress.

    Raises:
        DataError: no training or no validation image could be read, or the features have no room.
    """

    def tell(phase: str, done: int, total: int) -> None:
        run.on_event(EvalEvent(score=name, phase=phase, done=done, total=total))

    fit, train_failed, trained_on = fitting(model, run, tell)
    val = features_of(model, run, training=False, tell=tell)
    device = device_of(model)
    heads = []
    for seed in seeds:
        classifier = fit(seed)
        heads.append(_score_head(classifier, val, run, device, lambda done: tell("predict", done, len(val))))
    return ProbedEncoder(
        heads=tuple(heads),
        failed=(*train_failed, *val.failed),
        trained_on=trained_on,
        sizes=tuple(sorted({f"{image.labels.shape[1]}x{image.labels.shape[0]}" for image in val})),
        channels=sum(some_map.shape[0] for some_map in val[0].tiles[0].maps),
    )


def _score_head(
    classifier: PixelClassifier, val: FeatureFile, run: ProbeRun, device: torch.device, on_image: Callable[[int], None]
) -> ProbedHead:
    classes = len(run.data.classes)
    total = np.zeros((classes, classes), np.int64)
    by_image, predictions = {}, {}
    for done, image in enumerate(val, start=1):
        predicted = predict_labels(classifier, image, device)
        confusion = confusion_matrix(image.labels.numpy(), predicted, classes)
        total += confusion
        by_image[image.name] = (int(confusion.sum()), 100.0 * mean_iou(confusion), 100.0 * pixel_accuracy(confusion))
        if image.name in run.shown:
            predictions[image.name] = predicted
        on_image(done)
    if not total.sum():
        raise DataError(
            f"all {len(val)} validation images of {run.data.root} are void; expected pixels with a class; "
            "check the labels"
        )
    return ProbedHead(confusion=total, by_image=by_image, predictions=predictions)
