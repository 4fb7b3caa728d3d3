"""Numbers, tables and files of a probe's score, from what its heads found."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath

import numpy as np
from numpy.typing import NDArray

from mcjepa.data_prep.storage import atomic_write
from mcjepa.evals.probe.metrics import accuracy_per_class, iou_per_class, mean_accuracy, mean_iou, pixel_accuracy
from mcjepa.evals.probe.probed import ProbedEncoder

SUMMARIES = {"miou": mean_iou, "pixel_accuracy": pixel_accuracy, "mean_accuracy": mean_accuracy}


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
    for label, values_of_class in zip(classes, by_seed.T, strict=True):
        finite = values_of_class[np.isfinite(values_of_class)]
        if finite.size:
            metrics[f"iou_{metric_name(label)}{suffix}"] = 100.0 * float(finite.mean())
    return metrics


def metric_name(label: str) -> str:
    """A class name as part of a metric's name: letters, digits and underscores, file suffix and folders cut off."""
    return re.sub(r"\W+", "_", PurePath(label).stem).lower()


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
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({k: "" if isinstance(v, float) and math.isnan(v) else v for k, v in row.items()})
    atomic_write(path, text.getvalue().encode())
