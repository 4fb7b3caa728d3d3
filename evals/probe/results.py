"""What the heads of a probe found, and the numbers, tables and pictures of its score."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

import cv2
import numpy as np
from numpy.typing import NDArray

from mcjepa.data_prep.corpora.items import LabelledImage
from mcjepa.data_prep.storage import atomic_write
from mcjepa.evals.cards import Picture, csv_bytes
from mcjepa.evals.pictures import class_legend, overlay_labels, side_by_side, write_png
from mcjepa.evals.probe.metrics import accuracy_per_class, iou_per_class, mean_accuracy, mean_iou, pixel_accuracy

SUMMARIES = {"miou": mean_iou, "pixel_accuracy": pixel_accuracy, "mean_accuracy": mean_accuracy}
NAMED_CLASSES = 40
"""More classes than this are drawn without names and numbers."""
CELL_PX, SMALL_CELL_PX, LETTER_PX = 44, 6, 8
FONT, FONT_SCALE = cv2.FONT_HERSHEY_SIMPLEX, 0.4
WHITE, BLACK, GREY = (255, 255, 255), (0, 0, 0), (225, 225, 225)


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
    sizes: tuple[str, ...] = ()
    """Sizes of the scored images, WIDTHxHEIGHT."""
    channels: int = 0
    """Channels of the concatenated levels."""


def metrics_of(result: ProbedEncoder, classes: Sequence[str], suffix: str = "") -> dict[str, float]:
    """`miou`, `pixel_accuracy`, `mean_accuracy` and `iou_CLASS`, all in %; with several seeds each is their mean.

    The first three then also have `NAME_std`, the standard deviation of the seeds (n - 1). A class's value is the mean
    over the seeds in which it occurs in truth or prediction.
    """
    metrics: dict[str, float] = {}
    for name, measure in SUMMARIES.items():
        values = [100.0 * measure(head.confusion) for head in result.heads]
        metrics[f"{name}{suffix}"] = float(np.mean(values))
        if len(values) > 1:
            metrics[f"{name}_std{suffix}"] = float(np.std(values, ddof=1))
    by_seed = np.stack([iou_per_class(head.confusion) for head in result.heads])
    for name, values_of_class in zip(metric_names(classes), by_seed.T, strict=True):
        finite = values_of_class[np.isfinite(values_of_class)]
        if finite.size:
            metrics[f"iou_{name}{suffix}"] = 100.0 * float(finite.mean())
    return metrics


BASELINES = ("_random", "_majority")
"""Ends of the metrics of baselines."""


def metric_names(classes: Sequence[str]) -> list[str]:
    """Class names as parts of metrics' names: letters, digits and underscores, file suffix and folders cut off.

    Where that leaves two the same, or makes one end like a baseline's, the class's number follows.

    >>> metric_names(["sky/a.png", "a b", "a-b", "car"]), metric_names(["a_1", "x", "A", "a"])
    (['a', 'a_b_1', 'a_b_2', 'car'], ['a_1', 'x', 'a_2', 'a_3'])
    """
    plain = [re.sub(r"\W+", "_", PurePath(label).stem).lower() for label in classes]
    numbered = [f"{name}_{number}" for number, name in enumerate(plain)]
    odd = [plain.count(name) > 1 or f"_{name}".endswith(BASELINES) for name in plain]
    names = [longer if wrong else name for name, longer, wrong in zip(plain, numbered, odd, strict=True)]
    return names if len(set(names)) == len(names) else numbered


def image_rows(result: ProbedEncoder, random: ProbedEncoder | None) -> list[dict[str, object]]:
    """One row a validation image; with several seeds values are their means."""
    rows = []
    for name, (counted, _, _) in result.heads[0].by_image.items():
        row: dict[str, object] = {"image": name, "counted_pixels": counted}
        for place, column in ((1, "miou"), (2, "pixel_accuracy")):
            row[column] = float(np.mean([head.by_image[name][place] for head in result.heads]))
        if random is not None:
            row["miou_random"] = float(np.mean([head.by_image[name][1] for head in random.heads]))
        rows.append(row)
    return rows


def write_tables(
    out: Path, classes: Sequence[str], seeds: Sequence[int], result: ProbedEncoder, random: ProbedEncoder | None
) -> None:
    """Writes classes.csv, confusion.csv (summed over the seeds) and seeds.csv into `out`."""
    confusion = total_confusion(result)
    _write_csv(out / "classes.csv", _class_rows(classes, confusion, random))
    counts = [
        {"truth": name, **dict(zip(classes, row, strict=True))}
        for name, row in zip(classes, confusion.tolist(), strict=True)
    ]
    _write_csv(out / "confusion.csv", counts)
    by_seed = []
    for place, seed in enumerate(seeds):
        row: dict[str, object] = {"seed": seed}
        for name, measure in SUMMARIES.items():
            row[name] = 100.0 * measure(result.heads[place].confusion)
            if random is not None:
                row[f"{name}_random"] = 100.0 * measure(random.heads[place].confusion)
        by_seed.append(row)
    _write_csv(out / "seeds.csv", by_seed)


def total_confusion(result: ProbedEncoder) -> NDArray[np.int64]:
    """Confusion matrix (K, K) summed over the seeds."""
    return np.asarray(np.sum([head.confusion for head in result.heads], axis=0), np.int64)


def _class_rows(
    classes: Sequence[str], confusion: NDArray[np.int64], random: ProbedEncoder | None
) -> list[dict[str, object]]:
    iou, accuracy = iou_per_class(confusion), accuracy_per_class(confusion)
    theirs = iou_per_class(total_confusion(random)) if random is not None else None
    rows = []
    for index, name in enumerate(classes):
        row: dict[str, object] = {
            "class": name,
            "iou": 100.0 * iou[index],
            "accuracy": 100.0 * accuracy[index],
            "true_pixels": int(confusion[index].sum()),
            "predicted_pixels": int(confusion[:, index].sum()),
        }
        if theirs is not None:
            row["iou_random"] = 100.0 * theirs[index]
        rows.append(row)
    return rows


def _write_csv(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Rows as CSV; a value that does not exist (a class that occurs nowhere) is an empty cell."""
    values = (["" if isinstance(v, float) and math.isnan(v) else v for v in row.values()] for row in rows)
    atomic_write(path, csv_bytes(list(rows[0]), values))


def draw_overlays(
    items: Sequence[LabelledImage],
    result: ProbedEncoder,
    random: ProbedEncoder | None,
    classes: Sequence[str],
    out: Path,
) -> list[Picture]:
    """Image, truth, prediction and the random encoder's prediction side by side, of the first seed's head."""
    pictures = []
    shown = [item for item in items if item.name in result.heads[0].predictions]
    for position, item in enumerate(shown):
        image, labels = item.read()
        panels = [image, overlay_labels(image, labels), overlay_labels(image, result.heads[0].predictions[item.name])]
        columns = ["image", "truth", "model"]
        if random is not None:
            panels.append(overlay_labels(image, random.heads[0].predictions[item.name]))
            columns.append("random encoder")
        value = result.heads[0].by_image[item.name][1]
        pictures.append(
            Picture(
                caption=f"{item.name}: mIoU {value:.1f} % in this image",
                path=write_png(out / f"{position:03d}.png", side_by_side(panels)),
                kind="segmentation",
                columns=tuple(columns),
                legend=class_legend(classes),
            )
        )
    return pictures


def draw_confusion(confusion: NDArray[np.int64], classes: Sequence[str], out: Path) -> Picture:
    """The confusion matrix as a picture file."""
    return Picture(
        caption="confusion matrix in % of each true class's pixels: a row is the truth, a column the prediction; "
        "beside the names the class's IoU in %",
        path=write_png(out / "confusion.png", confusion_picture(confusion, classes)),
        kind="segmentation",
        columns=("rows: truth, columns: prediction",),
    )


def confusion_picture(confusion: NDArray[np.int64], classes: Sequence[str]) -> NDArray[np.uint8]:
    """Rows in % of their sum as shades of blue, RGB; rows of classes that do not occur are grey."""
    count, named = len(classes), len(classes) <= NAMED_CLASSES
    truth = confusion.sum(1, keepdims=True)
    parts = np.divide(confusion, truth, out=np.zeros(confusion.shape), where=truth > 0)
    cell = CELL_PX if named else SMALL_CELL_PX
    iou = iou_per_class(confusion)
    labels = [
        f"{name[:18]} {100 * value:.0f}" if value == value else name[:18]
        for name, value in zip(classes, iou, strict=True)
    ]
    left = 12 + LETTER_PX * max(map(len, labels)) if named else 8
    top = 28 if named else 8
    picture = np.full((top + count * cell + 8, left + count * cell + 8, 3), 255, np.uint8)
    for row in range(count):
        for column in range(count):
            y, x = top + row * cell, left + column * cell
            part = float(parts[row, column])
            colour = _shade(part) if truth[row, 0] else GREY
            cv2.rectangle(picture, (x, y), (x + cell - 2, y + cell - 2), colour, -1)
            if named and truth[row, 0] and part >= 0.005:
                _write(picture, f"{100 * part:.0f}", (x + 10, y + cell // 2 + 4), WHITE if part > 0.5 else BLACK)
        if named:
            _write(picture, labels[row], (4, top + row * cell + cell // 2 + 4), BLACK)
            _write(picture, classes[row][:5], (left + row * cell + 2, top - 10), BLACK)
    return picture


def _shade(part: float) -> tuple[int, int, int]:
    """White for 0 to dark blue for 1."""
    red, green, blue = (round(255 + part * (dark - 255)) for dark in (8, 48, 107))
    return red, green, blue


def _write(picture: NDArray[np.uint8], text: str, place: tuple[int, int], colour: tuple[int, int, int]) -> None:
    plain = text.encode("ascii", "replace").decode()
    cv2.putText(picture, plain, place, FONT, FONT_SCALE, colour, 1, cv2.LINE_AA)
