"""The paper's table with rows of ours: MC-JEPA (Bardes, Ponce, LeCun 2023), tables 1 and 2.

EPE in px on the training sets of Sintel and KITTI-2015 (there the mean of the pairs' own means, as the field's programs
report it: its frames have different numbers of known pixels), mIoU in % of the frozen probe and of fine-tuning, and the
mean of J and F in % on DAVIS-2017. The rows are as the paper and one secondary account report them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mcjepa.evals.cards import MODEL, Score
from mcjepa.evals.probe.settings import PROTOCOL_OF_SET, PROTOCOLS
from mcjepa.evals.vos.settings import PROTOCOL_FIELDS, VosConfig

MOST_NAMED = 3


@dataclass(frozen=True)
class Column:
    """One benchmark of the table."""

    title: str
    """Heading."""
    score: str
    """Name of our score."""
    metric: str
    """Its metric."""
    items: int
    """Items of the whole benchmark, in the card's unit; a score over fewer is no row to compare with."""
    factor: float = 1.0
    """What our metric is multiplied by to have the paper's unit."""
    lower_is_better: bool = False
    """True for errors."""


COLUMNS = (
    Column("Sintel clean, EPE", "flow/sintel-clean", "epe", 1041, lower_is_better=True),
    Column("Sintel final, EPE", "flow/sintel-final", "epe", 1041, lower_is_better=True),
    Column("KITTI-2015, EPE", "flow/kitti2015", "epe_mean_of_pairs", 200, lower_is_better=True),
    Column("VOC frozen", "probe/voc2012", "miou", 1449),
    Column("VOC fine-tuned", "finetune/voc2012", "miou", 1449),
    Column("Cityscapes frozen", "probe/cityscapes", "miou", 500),
    Column("Cityscapes fine-tuned", "finetune/cityscapes", "miou", 500),
    Column("ADE20K frozen", "probe/ade20k", "miou", 2000),
    Column("ADE20K fine-tuned", "finetune/ade20k", "miou", 2000),
    Column("DAVIS-2017, J&F", "vos/davis2017", "jf", 1939, 100.0),
)

_N = math.nan
PAPER: tuple[tuple[str, tuple[float, ...]], ...] = (
    ("UFlow (PWC)", (2.50, 3.39, 2.71, _N, _N, _N, _N, _N, _N, _N)),
    ("ARFlow (PWC)", (2.79, 3.73, 2.85, _N, _N, _N, _N, _N, _N, _N)),
    ("UPFlow (PWC)", (2.33, 2.67, 2.45, _N, _N, _N, _N, _N, _N, _N)),
    ("SMURF (RAFT)", (1.71, 2.58, 2.00, _N, _N, _N, _N, _N, _N, _N)),
    ("VICReg (CNX-T)", (_N, _N, _N, 60.1, 77.8, 59.8, 76.3, 28.6, 41.1, 58.1)),
    ("VICRegL (CNX-T)", (_N, _N, _N, 66.8, 79.7, 64.9, 78.3, 30.6, 44.1, 66.7)),
    ("MoCo v3 (ViT-S)", (_N, _N, _N, 57.1, 75.9, 56.5, 74.0, 23.7, 39.8, _N)),
    ("DINO (ViT-S)", (_N, _N, _N, 65.2, 79.5, 64.8, 78.1, 30.5, 43.5, 69.9)),
    ("M-JEPA (CNX-T)", (2.98, 3.82, 3.01, _N, _N, _N, _N, _N, _N, _N)),
    ("MC-JEPA (CNX-T)", (2.81, 3.51, 2.67, 67.1, 79.9, 65.5, 78.4, 30.8, 44.2, 70.5)),
)


@dataclass(frozen=True)
class PaperCell:
    """One number of ours in the table."""

    value: float
    """In the paper's unit; NaN where we have none."""
    note: str = ""
    """Why it cannot be compared with the column: parts of the benchmark only, items that failed, another protocol."""


def our_row(scores: Sequence[Score]) -> tuple[PaperCell, ...]:
    """Our numbers in the order of `COLUMNS`; what was scored on less than the benchmark says so."""
    by_name = {score.name: score for score in scores}
    return tuple(_cell(by_name.get(column.score), column) for column in COLUMNS)


def _cell(score: Score | None, column: Column) -> PaperCell:
    if score is None or column.metric not in score.metrics:
        return PaperCell(math.nan)
    value, card = score.metrics[column.metric] * column.factor, score.card
    if card.failed:
        return PaperCell(value, f"{len(card.failed)} failed")
    if card.frames != column.items:
        return PaperCell(value, f"{card.frames} of {column.items} {card.unit}")
    departures = _departures(score)
    more = ", …" if len(departures) > MOST_NAMED else ""
    return PaperCell(value, f"another protocol: {', '.join(departures[:MOST_NAMED])}{more}" if departures else "")


def _departures(score: Score) -> list[str]:
    """Settings in which a score departs from the protocol that its column's numbers are published in."""
    kind, _, data_set = score.name.partition("/")
    config, published = score.card.config, dict[str, Any]()
    if kind == "probe":
        published = {**PROTOCOLS[PROTOCOL_OF_SET[data_set]], "max_train": 0}
    elif kind == "finetune":
        published = {"max_train": 0}
    elif kind == "vos" and score.card.source == MODEL:
        published = {name: getattr(VosConfig(), name) for name in PROTOCOL_FIELDS}
    found = ((name, config.get(name, value), value) for name, value in published.items())
    return [f"{name} {ours}" for name, ours, theirs in found if _plain(ours) != _plain(theirs)]


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
