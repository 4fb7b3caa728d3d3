"""Several evaluations side by side: checkpoints of one run, or models of several.

Two numbers stand beside each other only if they came about in the same way. What their cards differ in (protocol, data,
items, seeds; never the weights) is named.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mcjepa.evals.cards import Score

PROTOCOL = (
    "data_set",
    "split",
    "frames",
    "failed",
    "resolution",
    "masks",
    "head",
    "schedule",
    "aggregation",
    "seeds",
    "config",
)
"""Fields of a card that must be equal for two numbers to be compared."""

IRRELEVANT = frozenset(
    {"root", "sets", "pictures", "masks", "overlays", "baselines", "random_baseline", "encode_batch", "tile_cells"}
    | {"workers", "cache", "cache_gib", "keep_features", "checkpoint_steps", "checkpoint_every", "micro_batch"}
)
"""Settings of a card's `config` that change no number of the model's."""

MAIN_METRICS = ("epe", "fl_all", "miou", "jf", "j_mean", "f_mean", "linear_top1", "knn20_top1")
"""Metrics that are drawn over the training."""

LOWER_IS_BETTER = ("epe", "fl_", "over_", "j_decay", "f_decay")
NEITHER = ("pixels",)


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """One column: a set of weights and its scores."""

    label: str
    """Name of the column, such as step-000001200."""
    scores: tuple[Score, ...]
    """Its scores."""

    @property
    def step(self) -> int | None:
        """Training step of the weights, where their lineage has one."""
        steps = {score.card.lineage.get("step") for score in self.scores}
        step = steps.pop() if len(steps) == 1 else None
        return step if isinstance(step, int) else None


@dataclass(frozen=True, kw_only=True)
class ComparedMetric:
    """One row: a metric over all columns."""

    name: str
    """Metric."""
    values: tuple[float, ...]
    """By column; NaN where it is missing."""
    best: frozenset[int]
    """Columns with the best value, where that means something."""


@dataclass(frozen=True, kw_only=True)
class ComparedScore:
    """One benchmark over all columns."""

    name: str
    """Score, such as flow/sintel-clean."""
    metrics: tuple[ComparedMetric, ...]
    """Its metrics; those of baselines are left out."""
    differences: tuple[str, ...]
    """What the cards differ in; with any, the numbers must not be compared."""


def compare_scores(evaluations: Sequence[Evaluated]) -> tuple[ComparedScore, ...]:
    """All scores that at least one of the evaluations has, in the order of their first appearance."""
    names = list(dict.fromkeys(score.name for evaluated in evaluations for score in evaluated.scores))
    return tuple(_compare_score(name, evaluations) for name in names)


def _compare_score(name: str, evaluations: Sequence[Evaluated]) -> ComparedScore:
    found = [next((s for s in evaluated.scores if s.name == name), None) for evaluated in evaluations]
    metrics = dict.fromkeys(m for score in found if score for m in score.metrics if not _is_rival(score, m))
    differences = card_differences([score for score in found if score])
    return ComparedScore(
        name=name,
        metrics=tuple(_compare_metric(metric, found, not differences) for metric in metrics),
        differences=differences,
    )


def _is_rival(score: Score, metric: str) -> bool:
    return any(metric.endswith(f"_{rival}") for rival in score.rivals)


def _compare_metric(name: str, found: Sequence[Score | None], comparable: bool) -> ComparedMetric:
    values = tuple(score.metrics.get(name, math.nan) if score else math.nan for score in found)
    finite = [value for value in values if math.isfinite(value)]
    best: frozenset[int] = frozenset()
    if comparable and len(finite) > 1 and not any(word in name for word in NEITHER):
        target = min(finite) if name.startswith(LOWER_IS_BETTER) else max(finite)
        best = frozenset(index for index, value in enumerate(values) if value == target)
    return ComparedMetric(name=name, values=values, best=best)


def card_differences(scores: Sequence[Score]) -> tuple[str, ...]:
    """What the protocols of scores differ in, as `field: one value | another`.

    >>> card_differences([])
    ()
    """
    cards = [score.card.to_dict() for score in scores]
    found = []
    for name in PROTOCOL:
        if name == "config":
            keys = dict.fromkeys(key for card in cards for key in card["config"] if key not in IRRELEVANT)
            found += [_difference(f"config.{key}", [card["config"].get(key) for card in cards]) for key in keys]
        else:
            found.append(_difference(name, [card[name] for card in cards]))
    return tuple(text for text in found if text)


def _difference(name: str, values: Sequence[Any]) -> str:
    seen = dict.fromkeys(str(_plain(value)) for value in values)
    return f"{name}: {' | '.join(seen)}" if len(seen) > 1 else ""


def _plain(value: Any) -> Any:
    """Tuples as lists: a card that was read from JSON has the latter."""
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    return {key: _plain(item) for key, item in value.items()} if isinstance(value, Mapping) else value


def metric_curves(evaluations: Sequence[Evaluated]) -> dict[str, list[tuple[float, float]]]:
    """`SCORE/METRIC` of the main metrics over the training steps, as points (step, value).

    Empty with fewer than two steps; scores whose cards differ are left out.
    """
    ordered = sorted((e for e in evaluations if e.step is not None), key=lambda e: e.step or 0)
    if len({e.step for e in ordered}) < 2:
        return {}
    drawn: dict[str, list[tuple[float, float]]] = {}
    for score in compare_scores(ordered):
        if not score.differences:
            for metric in (metric for metric in score.metrics if metric.name in MAIN_METRICS):
                points = [(float(e.step or 0), v) for e, v in zip(ordered, metric.values, strict=True)]
                drawn[f"{score.name}/{metric.name}"] = points
    return drawn
