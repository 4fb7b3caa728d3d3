"""Pictures of a probe's score: overlays of truth and predictions, and the confusion matrix."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from mcjepa.data_prep.corpora.items import LabelledImage
from mcjepa.evals.cards import Picture
from mcjepa.evals.pictures import class_colours, overlay_labels, side_by_side, write_png
from mcjepa.evals.probe.metrics import iou_per_class
from mcjepa.evals.probe.probed import ProbedEncoder

NAMED_CLASSES = 40
"""More classes than this are drawn without names and numbers."""
CELL_PX, SMALL_CELL_PX, LETTER_PX = 44, 6, 8
FONT, FONT_SCALE = cv2.FONT_HERSHEY_SIMPLEX, 0.4
WHITE, BLACK, GREY = (255, 255, 255), (0, 0, 0), (225, 225, 225)


def draw_overlays(
    items: Sequence[LabelledImage],
    result: ProbedEncoder,
    random: ProbedEncoder | None,
    classes: Sequence[str],
    out: Path,
) -> list[Picture]:
    """Image, truth, prediction and the random encoder's prediction side by side, of the first seed's head."""
    colours = class_colours(len(classes)).tolist()
    legend = tuple((name, "#{:02x}{:02x}{:02x}".format(*colour)) for name, colour in zip(classes, colours, strict=True))
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
                legend=legend,
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
