"""Several evaluations side by side: checkpoints of one run, or models of several.

Two numbers stand beside each other only if the same items were scored in the same way. What differs in that is named,
by the data of the cards and the rows, never by their wording: the set, the items, and the settings that count
(`evals.measures`). How a model is run is compared between models only: estimates that are files have no such settings.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mcjepa.evals.cards import MODEL, Score
from mcjepa.evals.measures import IMMATERIAL, ITEM_MEANS, ITEM_NAMES, ItemMean, kind_of, measure_of
from mcjepa.evals.study.bootstrap import Interval, paired_bootstrap

MAIN_METRICS = ("epe", "fl_all", "miou", "jf", "j_mean", "f_mean", "linear_top1", "knn20_top1")
"""Metrics that are drawn over the training."""

PRESETS = ("protocol",)
"""Settings that only name others."""


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
    better: str
    """Which end is better: lower, higher or neither."""
    values: tuple[float, ...]
    """By column; NaN where it is missing."""
    best: frozenset[int]
    """Columns with the best value, where that means something."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A column against the first one that has the score, over the same items."""

    column: int
    """Which column."""
    reference: int
    """Against which."""
    metric: str
    """Of which metric."""
    mean: ItemMean
    """How the items give it."""
    interval: Interval
    """Of the mean difference."""

    def sentence(self, labels: Sequence[str]) -> str:
        """The difference for people, with what it does and does not say."""
        found, better = self.interval, measure_of(self.metric).better
        name = self.metric if self.mean.exact else f"{self.metric} (mean of the {self.mean.unit}s' own)"
        where = f"{labels[self.column]} - {labels[self.reference]}: {name} {found.difference:+.4g}"
        if math.isnan(found.low):
            return f"{where}, one {self.mean.unit}: no interval"
        said = "within chance" if found.has_enough_units else f"too few {self.mean.unit}s for a verdict"
        if found.is_more_than_chance:
            good = (found.difference < 0) == (better == "lower")
            said = f"{'better' if good else 'worse'} by more than chance"
        return f"{where}, 95 % {found.low:+.4g} to {found.high:+.4g} over {found.units} {self.mean.unit}s: {said}"


@dataclass(frozen=True, kw_only=True)
class ComparedScore:
    """One benchmark over all columns."""

    name: str
    """Score, such as flow/sintel-clean."""
    metrics: tuple[ComparedMetric, ...]
    """Its metrics; those of baselines are left out."""
    differences: tuple[str, ...]
    """What was scored, or how, in which the columns differ; with any, the numbers must not be compared."""
    seeds: tuple[int, ...]
    """By column: how many seeds of a head stand behind its numbers; 1 where nothing is random, 0 where it lacks."""
    against_first: tuple[Difference, ...] = ()
    """Differences with their intervals, where the columns are comparable."""


def compare_scores(evaluations: Sequence[Evaluated]) -> tuple[ComparedScore, ...]:
    """All scores that at least one of the evaluations has, in the order of their first appearance."""
    names = list(dict.fromkeys(score.name for evaluated in evaluations for score in evaluated.scores))
    return tuple(_compare_score(name, evaluations) for name in names)


def _compare_score(name: str, evaluations: Sequence[Evaluated]) -> ComparedScore:
    found = [next((s for s in evaluated.scores if s.name == name), None) for evaluated in evaluations]
    metrics = dict.fromkeys(m for score in found if score for m in score.metrics if not _is_rival(score, m))
    differences = protocol_differences([score for score in found if score])
    return ComparedScore(
        name=name,
        metrics=tuple(_compare_metric(metric, found, not differences) for metric in metrics),
        differences=differences,
        seeds=tuple(max(1, len(score.card.seeds)) if score else 0 for score in found),
        against_first=() if differences else tuple(_against_first(name, found)),
    )


def _is_rival(score: Score, metric: str) -> bool:
    return any(metric.endswith(f"_{rival}") for rival in score.rivals)


def _compare_metric(name: str, found: Sequence[Score | None], comparable: bool) -> ComparedMetric:
    values = tuple(score.metrics.get(name, math.nan) if score else math.nan for score in found)
    finite = [value for value in values if math.isfinite(value)]
    better = measure_of(name).better
    best: frozenset[int] = frozenset()
    if comparable and len(finite) > 1 and better != "neither":
        target = min(finite) if better == "lower" else max(finite)
        best = frozenset(index for index, value in enumerate(values) if value == target)
    return ComparedMetric(name=name, better=better, values=values, best=best)


def _against_first(name: str, found: Sequence[Score | None]) -> list[Difference]:
    columns = [(place, score) for place, score in enumerate(found) if score is not None and score.table]
    if len(columns) < 2:
        return []
    (reference, first), *others = columns
    differences = []
    for column, score in others:
        for mean in ITEM_MEANS.get(kind_of(name), ()):
            interval = _interval(first, score, mean)
            if interval is not None:
                differences.append(
                    Difference(column=column, reference=reference, metric=mean.metric, mean=mean, interval=interval)
                )
    return differences


def _interval(first: Score, second: Score, mean: ItemMean) -> Interval | None:
    """None where a table has no such columns, or a value that counts is no number."""
    values: tuple[list[float], list[float]] = ([], [])
    weights, units = [], []
    for rows in zip(first.table, second.table, strict=True):
        weight = float(rows[0].get(mean.weight, 1.0)) if mean.weight else 1.0
        pair = [_mean_of(row, mean.columns) for row in rows]
        if any(math.isnan(value) for value in pair):
            if mean.weight and weight > 0:
                return None
            continue
        for kept, value in zip(values, pair, strict=True):
            kept.append(value)
        weights.append(weight)
        units.append(rows[0].get(mean.unit))
    return paired_bootstrap(*values, weights, units) if sum(weights) > 0 else None


def _mean_of(row: Mapping[str, Any], columns: Sequence[str]) -> float:
    found = [row.get(column) for column in columns]
    numbers = [float(value) for value in found if isinstance(value, (int, float)) and math.isfinite(value)]
    return math.fsum(numbers) / len(numbers) if len(numbers) == len(columns) else math.nan


def protocol_differences(scores: Sequence[Score]) -> tuple[str, ...]:
    """What was scored, or how, in which scores of one name differ, as `field: one value | another`.

    >>> protocol_differences([])
    ()
    """
    if len(scores) < 2:
        return ()
    found = [
        _difference("data_set", [score.card.data_set for score in scores]),
        _difference(scores[0].card.unit, [score.card.frames for score in scores]),
        _difference("failed", [sorted(failed.split(":")[0] for failed in score.card.failed) for score in scores]),
        _item_difference(scores),
    ]
    models = [score.card.config for score in scores if score.card.source == MODEL]
    keys = dict.fromkeys(key for config in models for key in config if key not in (*IMMATERIAL, *PRESETS))
    found += [_difference(f"config.{key}", [config.get(key) for config in models]) for key in keys]
    return tuple(text for text in found if text)


def _item_difference(scores: Sequence[Score]) -> str:
    """In which items, or in which of their facts (sizes, pixels that count), the tables differ."""
    names = ITEM_NAMES.get(kind_of(scores[0].name), ())
    items = [[tuple(row.get(name) for name in names) for row in score.table] for score in scores]
    odd = next((other for other in items[1:] if other != items[0]), None)
    if odd is None:
        return ""
    first, second = set(items[0]), set(odd)
    here, there = [one for one in items[0] if one not in second], [one for one in odd if one not in first]
    if not here and not there:
        return "items: in another order, or some of them twice"
    one, other = (" ".join(map(str, found[0])) if found else "none of its own" for found in (here, there))
    return f"items ({', '.join(names)}): {len(here)} and {len(there)} differ, such as {one} | {other}"


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

    Empty with fewer than two steps; scores whose protocols differ are left out.
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
