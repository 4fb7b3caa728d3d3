"""The card beside every score: the protocol, the weights and the data that make the number comparable."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Card:
    """What a reader must know before comparing a score with another one."""

    data_set: str
    """Name of the evaluation set."""

    split: str
    """Part of the set that was scored."""

    root: str
    """Folder it was read from."""

    frames: int
    """Items that entered the score: pairs, images or video frames (see `unit`)."""

    unit: str = "frames"
    """What `frames` counts."""

    failed: tuple[str, ...] = ()
    """Items that could not be scored, each "name: reason"; with any, the score is incomplete."""

    resolution: str
    """Image sizes that were scored, and how images were resized or padded for the model."""

    masks: str
    """Which pixels count."""

    head: str = "none"
    """What was trained on top of the weights, if anything."""

    schedule: str = "none"
    """How that head was trained."""

    aggregation: str
    """How the items' values become one number."""

    seeds: tuple[int, ...] = ()
    """Random seeds."""

    config: Mapping[str, Any] = field(default_factory=dict)
    """The evaluation's settings, every field."""

    weights_digest: str = ""
    """sha256 of the weights file."""

    model: str = ""
    """The model and its size."""

    lineage: Mapping[str, Any] = field(default_factory=dict)
    """Where the weights come from: run, step, dataset ids; the weights folder's own record."""

    versions: Mapping[str, str] = field(default_factory=dict)
    """Packages that the number may depend on."""

    @property
    def complete(self) -> bool:
        """False if any item is missing from the score."""
        return not self.failed

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON and MLflow; `complete` is spelled out."""
        return asdict(self) | {"complete": self.complete}


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One picture file of a score."""

    caption: str
    """One line under the picture."""

    path: Path
    """PNG file."""

    kind: str
    """flow, features, segmentation or vos: the report groups by it."""

    columns: tuple[str, ...] = ()
    """Headings of the panels from left to right."""

    legend: tuple[tuple[str, str], ...] = ()
    """(name, colour as #rrggbb) of what the colours stand for."""


@dataclass(frozen=True, kw_only=True)
class Score:
    """One evaluation's result: numbers, the protocol, the table by item and the pictures."""

    name: str
    """`KIND/SET`, such as flow/sintel-clean; also its folder below the evaluation's."""

    metrics: Mapping[str, float]
    """Metric name to value; baselines' values carry the baseline's name as a suffix (`epe_zero`)."""

    card: Card
    """How the numbers came about."""

    rivals: tuple[str, ...] = ()
    """Suffixes of the baselines' metrics, such as `zero`; the report turns them into columns."""

    table: tuple[Mapping[str, Any], ...] = ()
    """One row an item, all with the same keys."""

    pictures: tuple[Picture, ...] = ()
    """Pictures, in the order to show them."""

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON: values that are not finite become None, paths become text."""
        return {
            "name": self.name,
            "metrics": {name: finite_or_none(value) for name, value in self.metrics.items()},
            "card": self.card.to_dict(),
            "rivals": list(self.rivals),
            "table": [{key: finite_or_none(value) for key, value in row.items()} for row in self.table],
            "pictures": [asdict(picture) | {"path": str(picture.path)} for picture in self.pictures],
        }


def finite_or_none(value: Any) -> Any:
    """JSON has no NaN and no infinity: such a number becomes None, anything else stays."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def package_versions(*packages: str) -> dict[str, str]:
    """Installed versions of packages by distribution name; one that is not installed is left out."""
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for package in packages:
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found
