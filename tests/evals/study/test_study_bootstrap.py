"""The paired bootstrap: against scipy's, items of one unit, what it refuses, and that it repeats."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from mcjepa.evals.study.bootstrap import paired_bootstrap


def test_the_interval_of_a_weighted_mean_is_scipys() -> None:
    random = np.random.default_rng(3)
    first, noise = random.gamma(2.0, 1.0, 60), random.normal(-0.1, 0.4, 60)
    second, weights = first + noise, random.uniform(0.5, 2.0, 60)

    def difference(a: np.ndarray, b: np.ndarray, w: np.ndarray, axis: int) -> np.ndarray:
        return np.asarray((w * (b - a)).sum(axis) / w.sum(axis))

    theirs = stats.bootstrap(
        (first, second, weights), difference, paired=True, vectorized=True, n_resamples=10_000, method="percentile",
        random_state=1,
    ).confidence_interval  # fmt: skip
    ours = paired_bootstrap(first.tolist(), second.tolist(), weights.tolist(), range(60))
    width = theirs.high - theirs.low
    assert ours.difference == pytest.approx(np.average(noise, weights=weights))
    assert ours.low == pytest.approx(theirs.low, abs=0.04 * width)
    assert ours.high == pytest.approx(theirs.high, abs=0.04 * width)
    assert ours.units == 60 and ours == paired_bootstrap(first.tolist(), second.tolist(), weights.tolist(), range(60))


def test_items_of_one_unit_are_drawn_together() -> None:
    """Ten copies of every item tell nothing new: the interval stays, where ten times the items would narrow it."""
    values = np.random.default_rng(0).normal(0.0, 1.0, 20)
    once = paired_bootstrap([0.0] * 20, values.tolist(), [1.0] * 20, range(20))
    names = [place for place in range(20) for _ in range(10)]
    copied = paired_bootstrap([0.0] * 200, values.repeat(10).tolist(), [1.0] * 200, names)
    apart = paired_bootstrap([0.0] * 200, values.repeat(10).tolist(), [1.0] * 200, range(200))
    assert (copied.low, copied.high, copied.units) == (pytest.approx(once.low), pytest.approx(once.high), 20)
    assert apart.high - apart.low < 0.4 * (once.high - once.low)


def test_few_units_of_one_sign_are_no_evidence() -> None:
    """Five of one sign: p = 0.0625 by the exact test of signs (scipy's binomtest); six: 0.031."""
    for count, enough in ((2, False), (5, False), (6, True)):
        found = paired_bootstrap([0.0] * count, [1.0 + 0.01 * n for n in range(count)], [1.0] * count, range(count))
        assert found.low > 0 and found.is_more_than_chance is enough
        assert bool(stats.binomtest(count, count).pvalue < 0.05) is enough


def test_one_unit_has_no_interval_and_unpaired_items_are_refused() -> None:
    found = paired_bootstrap([1.0, 2.0], [3.0, 3.0], [1.0, 1.0], "aa")
    assert found.difference == 1.5 and math.isnan(found.low) and not found.is_more_than_chance
    for first, weights in (([1.0], [1.0, 1.0]), ([1.0, 2.0], [0.0, 0.0])):
        with pytest.raises(ValueError, match="expected the same items"):
            paired_bootstrap(first, [1.0, 2.0], weights, "ab")
