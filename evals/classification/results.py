"""What the classifiers found, and the numbers, tables and pictures of their score."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mcjepa.data_prep.storage import atomic_write
from mcjepa.evals.cards import Picture, csv_bytes
from mcjepa.evals.classification.features import PooledFeatures
from mcjepa.evals.classification.heads import TOP, LinearResult
from mcjepa.evals.classification.images import ClassifyData
from mcjepa.evals.classification.settings import ClassifyConfig
from mcjepa.evals.pictures import side_by_side, write_png
from mcjepa.evals.progress import evenly_spaced

PANEL_PX = 160
MAIN_K = 20


@dataclass(frozen=True, kw_only=True)
class ClassifiedModel:
    """What one encoder's features gave."""

    train: PooledFeatures
    val: PooledFeatures
    predictions: dict[str, NDArray[np.int64]]
    """`knn10`, …, `linear` to classes (N, min(5, K)) of the readable validation images."""
    linear: LinearResult | None


def main_classifier(result: ClassifiedModel) -> str:
    """The classifier that tables and pictures show."""
    if result.linear is not None:
        return "linear"
    return _main_knn(result)


def _main_knn(result: ClassifiedModel) -> str:
    preferred = f"knn{MAIN_K}"
    return preferred if preferred in result.predictions else next(iter(result.predictions))


def accuracies(result: ClassifiedModel, classes: int, suffix: str) -> dict[str, float]:
    """`NAME_top1` and, from six classes on, `NAME_top5` of every classifier, in %, with a suffix."""
    metrics = {}
    for name, found in result.predictions.items():
        hits = found == result.val.labels[:, None]
        metrics[f"{name}_top1{suffix}"] = 100.0 * float(hits[:, 0].mean())
        if classes > TOP:
            metrics[f"{name}_top5{suffix}"] = 100.0 * float(hits.any(1).mean())
    return metrics


def class_rows(data: ClassifyData, result: ClassifiedModel) -> Iterator[dict[str, object]]:
    """One row a class: numbers of images and accuracy by the main classifiers, %; NaN without validation images."""
    shown = dict.fromkeys((_main_knn(result), main_classifier(result)))
    for index, label in enumerate(data.classes):
        mine = result.val.labels == index
        row: dict[str, object] = {
            "class": label,
            "train_images": int((result.train.labels == index).sum()),
            "val_images": int(mine.sum()),
        }
        for name in shown:
            right = result.predictions[name][mine, 0] == index
            row[f"{name}_top1"] = 100.0 * float(right.mean()) if mine.any() else float("nan")
        yield row


def write_tables(
    predictions: Mapping[str, NDArray[np.int64]], data: ClassifyData, val: PooledFeatures, out: Path
) -> None:
    """Writes OUT/predictions.csv (a row an image) and OUT/confusion-CLASSIFIER.csv (rows truth, columns prediction)."""
    classes = data.classes
    rows: list[Sequence[object]] = []
    for place, row in enumerate(val.rows):
        found = (classes[answers[place, 0]] for answers in predictions.values())
        rows.append((data.val.names[row], classes[val.labels[place]], *found))
    atomic_write(out / "predictions.csv", csv_bytes(("image", "truth", *predictions), rows))
    for name, answers in predictions.items():
        counts = confusion(val.labels, answers[:, 0], len(classes))
        table = [(label, *line) for label, line in zip(classes, counts.tolist(), strict=True)]
        atomic_write(out / f"confusion-{name}.csv", csv_bytes(("truth", *classes), table))


def confusion(truth: NDArray[np.int64], prediction: NDArray[np.int64], classes: int) -> NDArray[np.int64]:
    """Numbers of images by (true class, predicted class), (K, K)."""
    return np.bincount(truth * classes + prediction, minlength=classes**2).reshape(classes, classes)


def draw_pictures(
    name: str,
    answers: NDArray[np.int64],
    data: ClassifyData,
    val: PooledFeatures,
    config: ClassifyConfig,
    out: Path,
) -> tuple[Picture, ...]:
    """A strip of hits and one of misses of one classifier, evenly spaced over the set, as the model sees them."""
    right = answers[:, 0] == val.labels
    pictures = []
    for kind, places in (("hits", np.flatnonzero(right)), ("misses", np.flatnonzero(~right))):
        chosen = evenly_spaced(places.tolist(), config.pictures) if config.pictures else []
        if not chosen:
            continue
        panels = [data.val.read(int(val.rows[place]), config) for place in chosen]
        said = [(data.classes[val.labels[place]], data.classes[answers[place, 0]]) for place in chosen]
        pictures.append(
            Picture(
                caption=f"{kind} of {name}: {len(places)} of {len(right)} images",
                path=write_png(out / f"{kind}.png", side_by_side(panels, panel_px=PANEL_PX)),
                kind="classification",
                columns=tuple(truth if truth == answer else f"{truth}, taken for {answer}" for truth, answer in said),
            )
        )
    return tuple(pictures)
