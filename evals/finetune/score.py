"""The score of a fine-tuned network: metrics, card, table by image, overlays."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mcjepa.data_prep.corpora.items import LabelledImage
from mcjepa.evals.cards import Card, Picture, Score, package_versions
from mcjepa.evals.finetune.checkpoint import Progress
from mcjepa.evals.finetune.settings import FinetuneConfig
from mcjepa.evals.pictures import class_colours, overlay_labels, side_by_side, write_png
from mcjepa.evals.probe.metrics import iou_per_class, mean_iou, pixel_accuracy
from mcjepa.evals.probe.results import metric_name
from mcjepa.evals.subject import Subject

if TYPE_CHECKING:
    from mcjepa.evals.finetune.finetune import FinetuneData


@dataclass(frozen=True, kw_only=True)
class FinetunedResult:
    """What the test found."""

    by_image: dict[str, NDArray[np.int64]]
    """Confusion matrix (K, K) of each validation image."""
    predictions: dict[str, NDArray[np.uint8]]
    """Labels (H, W) of the images that are shown."""
    failed: tuple[str, ...]
    """ "name: reason" of validation images that could not be read."""
    progress: Progress
    """Of the training."""

    @property
    def confusion(self) -> NDArray[np.int64]:
        """Over all images."""
        return np.sum(list(self.by_image.values()), axis=0)


def assemble_score(
    subject: Subject, data: FinetuneData, config: FinetuneConfig, seed: int, result: FinetunedResult, out: Path
) -> Score:
    """The score `finetune/SET`, with pictures written to `out`."""
    confusion = result.confusion
    return Score(
        name=f"finetune/{config.set}",
        metrics={
            **_metrics(confusion, data.classes),
            **{f"{name}_majority": value for name, value in _metrics(constant_prediction(confusion), ()).items()},
        },
        card=_card(subject, data, config, seed, result),
        rivals=("majority",),
        table=tuple(_rows(result)),
        pictures=tuple(_draw_pictures(data, result, out)),
    )


def constant_prediction(confusion: NDArray[np.int64]) -> NDArray[np.int64]:
    """The confusion matrix that predicting the truth's most frequent class everywhere would have."""
    truth = confusion.sum(1)
    constant = np.zeros_like(confusion)
    constant[:, int(truth.argmax())] = truth
    return constant


def _metrics(confusion: NDArray[np.int64], classes: Sequence[str]) -> dict[str, float]:
    metrics = {"miou": 100.0 * mean_iou(confusion), "pixel_accuracy": 100.0 * pixel_accuracy(confusion)}
    for label, value in zip(classes, iou_per_class(confusion) if classes else (), strict=True):
        if np.isfinite(value):
            metrics[f"iou_{metric_name(label)}"] = 100.0 * float(value)
    return metrics


def _rows(result: FinetunedResult) -> Iterator[dict[str, object]]:
    for name, confusion in result.by_image.items():
        yield {
            "image": name,
            "counted_pixels": int(confusion.sum()),
            "miou": 100.0 * mean_iou(confusion),
            "pixel_accuracy": 100.0 * pixel_accuracy(confusion),
        }


def _card(subject: Subject, data: FinetuneData, config: FinetuneConfig, seed: int, result: FinetunedResult) -> Card:
    long, short = config.image_scale
    height, width = config.crop_px
    return Card(
        data_set=config.set,
        split=f"fine-tuned on {_trained_on(data, config)} images of {config.train_split}, scored on {config.val_split}",
        root=str(data.root),
        frames=len(result.by_image),
        unit="validation images",
        failed=(*(f"training: {failure}" for failure in result.progress.failed), *result.failed),
        resolution=f"fitted into {long}x{short} px{_scales(config)}, {_test(config)}; scored at the labels' size",
        masks=f"all pixels but void (255); {len(data.classes)} classes: {', '.join(data.classes)}",
        head=f"whole encoder trained with UperNet: levels {', '.join(map(str, config.levels))}, LayerNorm on each, "
        f"{config.channels} channels, pools {', '.join(map(str, config.pool_scales))}, auxiliary FCN weight "
        f"{config.auxiliary_weight:g}; batch normalisation over {config.micro_batch} images",
        schedule=f"AdamW lr {config.lr:g}, {config.lr_decay:g} a {config.lr_decay_by} down, weight decay "
        f"{config.weight_decay:g} but on norms and biases, drop-path {config.drop_path:g}; {config.steps} steps of "
        f"{config.batch}, warm-up {config.warmup_steps}, poly {config.poly_power:g}; mmsegmentation's windows: "
        f"{height}x{width} px of images at 0.5 to 2 of their size, at most 3/4 of one class, mirrored, colours "
        f"distorted; {config.precision}",
        aggregation="one confusion matrix over all pixels; mean over the classes that occur in truth or prediction, "
        "%; `majority` is the best constant prediction",
        seeds=(seed,),
        config=dataclasses.asdict(config),
        weights_digest=subject.digest,
        model=subject.name,
        lineage=subject.lineage,
        versions=package_versions("torch", "numpy", "opencv-python-headless"),
    )


def _trained_on(data: FinetuneData, config: FinetuneConfig) -> int:
    return min(len(data.train), config.max_train or len(data.train))


def _scales(config: FinetuneConfig) -> str:
    factors = "" if config.test_scales == (1.0,) else f" times {', '.join(f'{f:g}' for f in config.test_scales)}"
    return f"{factors}{', and mirrored' if config.test_flip else ''}"


def _test(config: FinetuneConfig) -> str:
    height, width = config.crop_px
    return f"windows of {height}x{width} px overlapping by a third" if config.test == "slide" else "whole image"


def _draw_pictures(data: FinetuneData, result: FinetunedResult, out: Path) -> Iterator[Picture]:
    colours = class_colours(len(data.classes)).tolist()
    legend = tuple(
        (name, "#{:02x}{:02x}{:02x}".format(*colour)) for name, colour in zip(data.classes, colours, strict=True)
    )
    items: dict[str, LabelledImage] = {item.name: item for item in data.val}
    for position, (name, prediction) in enumerate(result.predictions.items()):
        image, labels = items[name].read()
        panels = [image, overlay_labels(image, labels), overlay_labels(image, prediction)]
        yield Picture(
            caption=f"{name}: mIoU {100.0 * mean_iou(result.by_image[name]):.1f} % in this image",
            path=write_png(out / f"{position:03d}.png", side_by_side(panels)),
            kind="finetune",
            columns=("image", "truth", "fine-tuned"),
            legend=legend,
        )
