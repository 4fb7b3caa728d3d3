"""Paired tests over a few seeds, and what so few can show.

Two arms have the same seeds: the same initial weights, the same order of samples. The differences d_i by seed are
tested against a mean of zero in two ways, both two-sided:

    t       mean(d) / (std(d) / sqrt(n)) with n - 1 degrees of freedom; assumes normal differences
    exact   all 2^n assignments of signs to the differences; the share whose |mean| is at least the observed one.
            It assumes nothing but symmetry, and its smallest value is 2 / 2^n: 0.25 for three seeds, 0.031 for six

Several tests at once are corrected by Holm's method (Holm, 1979).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

MOST_FOR_EXACT = 20
"""2^20 assignments of signs are still quick."""


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation (n - 1; NaN for a single value)."""

    mean: float
    deviation: float
    count: int


@dataclass(frozen=True)
class PairedTest:
    """A difference of two arms over their common seeds."""

    difference: float
    """Mean of first minus second."""
    low: float
    high: float
    """95 % interval of the mean by Student's t."""
    count: int
    """Common seeds."""
    p_t: float
    """Of the paired t test."""
    p_exact: float
    """Of the exact test of signs."""
    least_p_exact: float
    """The smallest that so many seeds can give."""


def spread(values: Sequence[float]) -> Spread:
    """Mean and deviation of values.

    >>> spread([1.0, 2.0, 3.0])
    Spread(mean=2.0, deviation=1.0, count=3)
    """
    count = len(values)
    mean = math.fsum(values) / count if count else math.nan
    if count < 2:
        return Spread(mean, math.nan, count)
    return Spread(mean, math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (count - 1)), count)


def exact_sign_p(differences: Sequence[float]) -> float:
    """Two-sided p of the exact test: the share of sign assignments with as large a |sum|, the observed one included.

    >>> exact_sign_p([1.0, 2.0, 3.0]), exact_sign_p([1.0, -1.0])
    (0.25, 1.0)

    Raises:
        ValueError: there are too many differences to try all signs.
    """
    if len(differences) > MOST_FOR_EXACT:
        raise ValueError(f"{len(differences)} differences, expected at most {MOST_FOR_EXACT} for an exact test")
    sizes = [abs(d) for d in differences]
    observed = abs(math.fsum(differences))
    least = observed - 1e-9 * max(observed, max(sizes, default=0.0))  # sums in another order round otherwise
    signs = itertools.product((1.0, -1.0), repeat=len(sizes))
    as_large = sum(abs(math.fsum(s * d for s, d in zip(each, sizes, strict=True))) >= least for each in signs)
    return as_large / 2 ** len(sizes)


_SAME = 1e-9
"""Of the largest difference: a spread that is rounding."""


def paired_test(first: Sequence[float], second: Sequence[float]) -> PairedTest:
    """Tests whether two arms differ, value by value of the same seeds.

    Differences that are all the same, as of scores that count few items, have no spread that a t test could use: its
    p is NaN unless they are 0. The exact test stands.

    Raises:
        ValueError: there are not as many values of one as of the other, or none.
    """
    if len(first) != len(second) or not first:
        raise ValueError(f"{len(first)} values against {len(second)}, expected pairs")
    differences = [a - b for a, b in zip(first, second, strict=True)]
    found = spread(differences)
    count = found.count
    error = found.deviation / math.sqrt(count)
    if count < 2:
        low = high = p_t = math.nan
    elif error <= _SAME * max(map(abs, differences)):
        low = high = found.mean
        p_t = 1.0 if found.mean == 0 else math.nan
    else:
        from scipy import stats

        half = float(stats.t.ppf(0.975, count - 1)) * error
        low, high = found.mean - half, found.mean + half
        p_t = float(2 * stats.t.sf(abs(found.mean / error), count - 1))
    return PairedTest(found.mean, low, high, count, p_t, exact_sign_p(differences), min(1.0, 2.0 ** (1 - count)))


def holm(p_values: Sequence[float]) -> list[float]:
    """p values corrected for being several, in their order; NaN stays and does not count.

    >>> [round(p, 3) for p in holm([0.01, 0.04, 0.03])]
    [0.03, 0.06, 0.06]
    """
    known = sorted((p, place) for place, p in enumerate(p_values) if not math.isnan(p))
    corrected = [math.nan] * len(p_values)
    largest = 0.0
    for rank, (p, place) in enumerate(known):
        largest = max(largest, min(1.0, p * (len(known) - rank)))
        corrected[place] = largest
    return corrected
