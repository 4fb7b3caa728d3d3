"""What a report shows, as plain data; `page.py` turns it into one HTML file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from mcjepa.data_prep.card.charts import Curve
from mcjepa.evals.cards import Score
from mcjepa.evals.measures import kind_of, measure_of
from mcjepa.evals.report.comparison import Evaluated


@dataclass(frozen=True, kw_only=True)
class Tile:
    """One headline number beside what it has to beat."""

    title: str
    """What is measured, such as "Optical flow, EPE"."""

    value: float
    """The model's number."""

    unit: str
    """px, %, or nothing."""

    rivals: tuple[tuple[str, float], ...]
    """Baseline name and its number."""

    lower_is_better: bool
    """True for errors."""

    source: str
    """The score it comes from, such as flow/moving-photos."""


@dataclass(frozen=True, kw_only=True)
class DatasetSummary:
    """One dataset that the weights were trained on."""

    name: str
    """Its name in the recipe."""

    dataset_id: str
    """sha256 over its shards."""

    counts: Mapping[str, int | str]
    """Such as ok, filtered, quarantined, samples, shards, bytes; in the order to show."""


@dataclass(frozen=True, kw_only=True)
class QuarantinedInput:
    """An input that could not be used."""

    dataset: str
    """Dataset that it was meant for."""

    uri: str
    """The input."""

    reason: str
    """Why it was left out."""


@dataclass(frozen=True, kw_only=True)
class ReportContent:
    """Everything on the page."""

    title: str
    """Heading and window title."""

    summary: str = ""
    """One or two sentences below the heading."""

    tiles: tuple[Tile, ...] = ()
    """Headline numbers; `headline_tiles` makes them from scores."""

    curves: Mapping[str, Curve] = field(default_factory=dict)
    """`GROUP/NAME` to points; curves of one group stand together."""

    scores: tuple[Score, ...] = ()
    """Scores with cards, tables and pictures."""

    evaluations: tuple[Evaluated, ...] = ()
    """Evaluations to set side by side, such as all checkpoints of the run; with fewer than two only the paper's
    table is shown."""

    datasets: tuple[DatasetSummary, ...] = ()
    """Datasets of the training."""

    quarantined: tuple[QuarantinedInput, ...] = ()
    """Inputs that were left out, with reasons."""

    lineage: tuple[tuple[str, str], ...] = ()
    """(what, identity) from input to score: dataset ids, run ids, weights digest, …"""

    versions: tuple[tuple[str, str], ...] = ()
    """(package, version)."""

    commands: tuple[tuple[str, str], ...] = ()
    """(what it does, command line) to reproduce the page."""


_HEADLINES = {
    "flow": ("epe", "Optical flow: end-point error"),
    "probe": ("miou", "Linear probe: mean IoU"),
    "vos": ("jf", "Mask propagation: J&F"),
    "finetune": ("miou", "Fine-tuned with UperNet: mean IoU"),
    "classify": ("linear_top1", "Classification, linear: top-1"),
}
"""Kind of a score to its main metric and the title of its tile."""
_RIVAL_NAMES = {
    "zero": "zero flow",
    "random": "random encoder",
    "copy_first": "first mask copied",
    "majority": "most frequent class",
}


def rival_name(suffix: str) -> str:
    """A baseline's metric suffix as people read it.

    >>> rival_name("dis_medium")
    'DIS medium'
    """
    return _RIVAL_NAMES.get(suffix, suffix.replace("_", " ").replace("dis ", "DIS "))


def headline_tiles(scores: Sequence[Score]) -> tuple[Tile, ...]:
    """One tile for each score: its main metric beside the same metric of every baseline."""
    tiles = []
    for score in scores:
        metric, title = _HEADLINES.get(kind_of(score.name), ("", ""))
        if metric in score.metrics:
            named = ((rival_name(suffix), score.metrics.get(f"{metric}_{suffix}")) for suffix in score.rivals)
            measure = measure_of(metric)
            tiles.append(
                Tile(
                    title=title,
                    value=score.metrics[metric],
                    unit=measure.unit,
                    rivals=tuple((name, value) for name, value in named if value is not None),
                    lower_is_better=measure.better == "lower",
                    source=score.name,
                )
            )
    return tuple(tiles)
