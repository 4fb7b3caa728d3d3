"""What a classification leaves beside its score: predictions, confusion tables, hits and misses."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mcjepa.data_prep.storage import atomic_write
from mcjepa.evals.cards import Picture
from mcjepa.evals.classification.features import PooledFeatures
from mcjepa.evals.classification.images import ClassifyData
from mcjepa.evals.classification.settings import ClassifyConfig
from mcjepa.evals.pictures import side_by_side, write_png
from mcjepa.evals.progress import evenly_spaced

PANEL_PX = 160


def write_tables(
    predictions: Mapping[str, NDArray[np.int64]], data: ClassifyData, val: PooledFeatures, out: Path
) -> None:
    """Writes OUT/predictions.csv (a row an image) and OUT/confusion-CLASSIFIER.csv (rows truth, columns prediction)."""
    classes = data.classes
    rows: list[Sequence[object]] = [("image", "truth", *predictions)]
    for place, row in enumerate(val.rows):
        found = (classes[answers[place, 0]] for answers in predictions.values())
        rows.append((data.val.names[row], classes[val.labels[place]], *found))
    atomic_write(out / "predictions.csv", _csv(rows))
    for name, answers in predictions.items():
        counts = confusion(val.labels, answers[:, 0], len(classes))
        table = [("truth", *classes), *((label, *line) for label, line in zip(classes, counts.tolist(), strict=True))]
        atomic_write(out / f"confusion-{name}.csv", _csv(table))


def confusion(truth: NDArray[np.int64], prediction: NDArray[np.int64], classes: int) -> NDArray[np.int64]:
    """Numbers of images by (true class, predicted class), (K, K)."""
    return np.bincount(truth * classes + prediction, minlength=classes**2).reshape(classes, classes)


def _csv(rows: Iterable[Sequence[object]]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()


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
