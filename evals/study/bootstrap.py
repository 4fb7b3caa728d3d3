"""Whether two models differ by more than the choice of the items they were scored on: the paired bootstrap.

Both models are scored on the same items, so the difference is taken item by item. Items are drawn again, with
replacement, as many as there are; the weighted mean difference of each draw gives its distribution, whose 2.5th and
97.5th percentiles are the interval (Efron and Tibshirani, 1993, chapter 13: the percentile interval; Koehn, 2004, for
its paired use). Items of one unit (the objects of a video) are drawn together. It says nothing of the spread between
trainings from other seeds.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 10_000
LEAST_UNITS = 6
"""Six differences of one sign have p = 2 / 2^6 = 0.031 by the exact test of signs, five 0.0625; the interval of
so few is too narrow."""
PERCENTILES = (2.5, 97.5)
CHUNK_DRAWS = 4_000_000
"""Numbers held at once."""


@dataclass(frozen=True)
class Interval:
    """A mean difference with its 95 % interval."""

    difference: float
    """Second minus first."""
    low: float
    high: float
    units: int
    """What was drawn: pairs, images, sequences."""

    @property
    def has_enough_units(self) -> bool:
        """Whether so many can show anything: of five, all of one sign are not yet significant."""
        return self.units >= LEAST_UNITS

    @property
    def is_more_than_chance(self) -> bool:
        """Whether there are enough units and the interval leaves zero out."""
        return self.has_enough_units and (self.low > 0 or self.high < 0)


def paired_bootstrap(
    first: Sequence[float],
    second: Sequence[float],
    weights: Sequence[float],
    units: Sequence[Hashable],
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """The weighted mean of `second` - `first` over the same items, with a 95 % interval; NaN ends with one unit.

    >>> found = paired_bootstrap([1.0, 2.0, 3.0] * 2, [2.0, 3.0, 4.0] * 2, [1.0] * 6, "abcdef")
    >>> (found.difference, found.low, found.high, found.units, found.is_more_than_chance)
    (1.0, 1.0, 1.0, 6, True)

    Args:
        first: values of the one by item.
        second: values of the other.
        weights: of the items, at least 0.
        units: what each item belongs to; items of one unit are drawn together.
        resamples: number of draws.
        seed: of the draws: the same numbers give the same interval.

    Raises:
        ValueError: the lengths differ, or nothing has a weight.
    """
    weight = np.asarray(weights, np.float64)
    if not len(first) == len(second) == len(weight) == len(units) or not weight.sum() > 0:
        found = f"{len(first)} and {len(second)} values, weights of {weight.sum():g}"
        raise ValueError(f"{found}; expected the same items, some with a weight")
    places = {unit: place for place, unit in enumerate(dict.fromkeys(units))}
    place = np.array([places[unit] for unit in units])
    gain = weight * (np.asarray(second, np.float64) - np.asarray(first, np.float64))
    sums, totals = (np.bincount(place, values, len(places)) for values in (gain, weight))
    difference = float(sums.sum() / totals.sum())
    if len(places) < 2:
        return Interval(difference, np.nan, np.nan, len(places))
    random = np.random.default_rng(seed)
    means: list[np.ndarray] = []
    chunk = max(1, CHUNK_DRAWS // len(places))
    for start in range(0, resamples, chunk):
        drawn = random.integers(0, len(places), (min(chunk, resamples - start), len(places)))
        weighed = totals[drawn].sum(1)
        means.append(np.divide(sums[drawn].sum(1), weighed, out=np.full(len(drawn), np.nan), where=weighed > 0))
    low, high = np.nanpercentile(np.concatenate(means), PERCENTILES)
    return Interval(difference, float(low), float(high), len(places))
