"""Scores frozen features by a linear segmentation probe, beside the same probe on a random encoder."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

import numpy as np
from numpy.typing import NDArray

from data_prep.corpora.items import LabelledImage
from data_prep.errors import DataError
from evals.cards import Card, Picture, Score, package_versions
from evals.model_under_test import ModelUnderTest, Subject
from evals.pictures import class_colours, overlay_labels, side_by_side, write_png
from evals.progress import EvalEvent, OnEvent, evenly_spaced, silent
from evals.segmentation.config import ProbeConfig
from evals.segmentation.features import EncodedImage, encode_images, measure_statistics, standardise
from evals.segmentation.metrics import confusion_matrix, iou_per_class, mean_iou, pixel_accuracy
from evals.segmentation.probe import predict_labels, train_head

HEAD_EVENTS = 50


@dataclass(frozen=True, kw_only=True)
class ProbeData:
    """The two parts of a labelled set."""

    root: Path
    train: Sequence[LabelledImage]
    val: Sequence[LabelledImage]
    classes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class ProbedModel:
    """What one probe found."""

    confusion: NDArray[np.int64]
    predictions: dict[str, NDArray[np.uint8]]
    by_image: dict[str, NDArray[np.int64]]
    failed: tuple[str, ...]
    trained_on: int


def score_probe(
    subject: Subject, data: ProbeData, config: ProbeConfig, seed: int, out: Path, on_event: OnEvent = silent
) -> Score:
    """Trains a linear head on frozen features and scores it; again on the random twin if the settings ask for
    it.

    Args:
        subject: the model, and its random twin where the baseline is wanted.
        data: training and validation images with labels.
        config: protocol.
        seed: of the head and its batches, the same for both encoders.
        out: folder for the pictures.
        on_event: progress.

    Returns:
        The score `probe/SET`: `miou`, `pixel_accuracy`, `iou_CLASS` (all in %), the random encoder's with the
        suffix `_random`.

    Raises:
        DataError: no training or no validation image could be read.
    """
    name = f"probe/{config.set}"
    result = probe_model(subject.model, data, config, seed, on_event, name)
    random = None
    if config.random_baseline and subject.random_model is not None:
        random = probe_model(subject.random_model, data, config, seed, on_event, f"{name} (random encoder)")
    metrics = _metrics(result, data.classes, "")
    if random is not None:
        metrics |= _metrics(random, data.classes, "_random")
    return Score(
        name=name,
        metrics=metrics,
        card=_card(subject, data, config, seed, result),
        rivals=("random",) if random is not None else (),
        table=tuple(_rows(result, random)),
        pictures=_draw_pictures(data, result, random, config.pictures, out),
    )


def probe_model(
    model: ModelUnderTest, data: ProbeData, config: ProbeConfig, seed: int, on_event: OnEvent, name: str
) -> ProbedModel:
    """Encodes both parts once, trains the head on the training part and predicts the validation part.

    Raises:
        DataError: no training or no validation image could be read.
    """
    strides = tuple(2**level for level in sorted(config.levels))
    train = evenly_spaced(data.train, config.max_train)
    val = evenly_spaced(data.val, config.max_val)

    def encode(items: Sequence[LabelledImage], part: str) -> tuple[list[EncodedImage], list[str]]:
        def tell(done: int) -> None:
            on_event(EvalEvent(score=name, phase=f"encode {part}", done=done, total=len(items)))

        images, failed = encode_images(model, items, strides, config.encode_batch, tell)
        if not images:
            reason = failed[0] if failed else "the list is empty"
            raise DataError(f"{part} images of {data.root}: {reason}; expected readable images; check the folder")
        return images, failed

    train_images, train_failed = encode(train, "training")
    statistics = measure_statistics(train_images, strides)

    def tell_step(step: int) -> None:
        if step % max(1, config.steps // HEAD_EVENTS) == 0 or step == config.steps:
            on_event(EvalEvent(score=name, phase="head", done=step, total=config.steps))

    head = train_head(standardise(train_images, statistics), strides, len(data.classes), config, seed, tell_step)
    val_images, val_failed = encode(val, "validation")
    predictions, by_image = {}, {}
    for image in standardise(val_images, statistics):
        predictions[image.name] = predict_labels(head, image)
        by_image[image.name] = confusion_matrix(image.labels.numpy(), predictions[image.name], len(data.classes))
    return ProbedModel(
        confusion=np.sum(list(by_image.values()), axis=0),
        predictions=predictions,
        by_image=by_image,
        failed=(*train_failed, *val_failed),
        trained_on=len(train_images),
    )


def _metrics(result: ProbedModel, classes: Sequence[str], suffix: str) -> dict[str, float]:
    metrics = {
        f"miou{suffix}": 100.0 * mean_iou(result.confusion),
        f"pixel_accuracy{suffix}": 100.0 * pixel_accuracy(result.confusion),
    }
    for label, value in zip(classes, iou_per_class(result.confusion), strict=True):
        if np.isfinite(value):
            metrics[f"iou_{_metric_name(label)}{suffix}"] = 100.0 * float(value)
    return metrics


def _metric_name(label: str) -> str:
    """A class name as part of a metric's name: letters, digits and underscores, file suffix and folders cut
    off."""
    return re.sub(r"\W+", "_", PurePath(label).stem).lower()


def _rows(result: ProbedModel, random: ProbedModel | None) -> list[dict[str, object]]:
    rows = []
    for name, confusion in result.by_image.items():
        row: dict[str, object] = {
            "image": name,
            "counted_pixels": int(confusion.sum()),
            "miou": 100.0 * mean_iou(confusion),
            "pixel_accuracy": 100.0 * pixel_accuracy(confusion),
        }
        if random is not None:
            row["miou_random"] = 100.0 * mean_iou(random.by_image[name])
        rows.append(row)
    return rows


def _card(subject: Subject, data: ProbeData, config: ProbeConfig, seed: int, result: ProbedModel) -> Card:
    sizes = sorted({f"{labels.shape[1]}x{labels.shape[0]}" for labels in result.predictions.values()})
    crop = f"random windows of {config.crop_px} px" if config.crop_px else "whole images"
    return Card(
        data_set=config.set,
        split=f"trained on {result.trained_on} training images, scored on validation images",
        root=str(data.root),
        frames=len(result.predictions),
        unit="validation images",
        failed=result.failed,
        resolution=f"{', '.join(sizes)} px, not resized, padded to multiples of 64; scored at the labels' size",
        masks=f"all pixels but void (255); {len(data.classes)} classes: {', '.join(data.classes)}",
        head="frozen features, levels concatenated on the finest grid, standardised with the training "
        "features' mean and deviation, one 1x1 convolution; no augmentation, test on whole images",
        schedule=f"AdamW lr {config.lr:g}, weight decay {config.weight_decay:g}, {config.steps} steps, "
        f"linear warm-up {config.warmup_steps}, poly power {config.poly_power:g}, batch "
        f"{config.batch}, {crop}",
        aggregation="one confusion matrix over all pixels; mean over the classes that occur in truth or prediction, %",
        seeds=(seed,),
        config=dataclasses.asdict(config),
        weights_digest=subject.digest,
        model=subject.name,
        lineage=subject.lineage,
        versions=package_versions("torch", "numpy"),
    )


def _draw_pictures(
    data: ProbeData, result: ProbedModel, random: ProbedModel | None, count: int, out: Path
) -> tuple[Picture, ...]:
    if count == 0:
        return ()
    scored = [item for item in data.val if item.name in result.predictions]
    colours = class_colours(len(data.classes)).tolist()
    legend = tuple(
        (name, "#{:02x}{:02x}{:02x}".format(*colour)) for name, colour in zip(data.classes, colours, strict=True)
    )
    pictures = []
    for position, item in enumerate(evenly_spaced(scored, count)):
        image, labels = item.read()
        panels = [image, overlay_labels(image, labels), overlay_labels(image, result.predictions[item.name])]
        columns = ["image", "truth", "model"]
        if random is not None:
            panels.append(overlay_labels(image, random.predictions[item.name]))
            columns.append("random encoder")
        value = 100.0 * mean_iou(result.by_image[item.name])
        pictures.append(
            Picture(
                caption=f"{item.name}: mIoU {value:.1f} % in this image",
                path=write_png(out / f"{position:03d}.png", side_by_side(panels)),
                kind="segmentation",
                columns=tuple(columns),
                legend=legend,
            )
        )
    return tuple(pictures)
