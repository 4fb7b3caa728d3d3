"""Paired tests over seeds: by hand, against scipy, and what few seeds cannot show."""

from __future__ import annotations

import doctest
import itertools
import math

import numpy as np
import pytest
from scipy import stats

from mcjepa.evals.study import statistics, table
from mcjepa.evals.study.statistics import exact_sign_p, holm, paired_test, spread


@pytest.mark.parametrize("module", [statistics, table])
def test_examples_hold(module: object) -> None:
    assert doctest.testmod(module).failed == 0  # type: ignore[arg-type]


def test_spread_of_three_values_by_hand() -> None:
    found = spread([2.0, 4.0, 9.0])
    assert (found.mean, found.count) == (5.0, 3)
    assert found.deviation == pytest.approx(math.sqrt((9 + 1 + 16) / 2))


def test_one_seed_has_no_deviation_and_shows_nothing() -> None:
    found = paired_test([1.0], [5.0])
    assert found.difference == -4.0 and math.isnan(found.p_t) and found.p_exact == found.least_p_exact == 1.0


def test_the_t_test_and_its_interval_are_those_of_scipy() -> None:
    generator = np.random.default_rng(3)
    for count in (2, 3, 5, 12):
        first, second = generator.normal(1, 2, count), generator.normal(0, 1, count)
        ours, theirs = paired_test(list(first), list(second)), stats.ttest_rel(first, second)
        interval = theirs.confidence_interval(0.95)
        assert ours.p_t == pytest.approx(theirs.pvalue)
        assert (ours.low, ours.high) == pytest.approx((interval.low, interval.high))


def test_the_exact_test_is_that_of_scipy() -> None:
    generator = np.random.default_rng(5)
    for count in (3, 6, 8):
        d = generator.normal(0.5, 1, count)
        theirs = stats.permutation_test(
            (d,), lambda x, axis: x.mean(axis), permutation_type="samples", n_resamples=np.inf, vectorized=True
        )
        assert exact_sign_p(list(d)) == pytest.approx(theirs.pvalue)


def test_three_seeds_cannot_go_below_a_quarter_by_the_exact_test() -> None:
    found = paired_test([10.0, 11.0, 12.0], [1.0, 1.5, 2.5])
    assert found.p_exact == found.least_p_exact == 0.25 and found.p_t < 0.01


def test_the_exact_test_counts_sums_that_only_rounding_tells_apart() -> None:
    differences = [0.1, 0.2, 0.3]
    for order in itertools.permutations(differences):
        assert exact_sign_p(list(order)) == 0.25
    assert exact_sign_p([0.1, 0.2, -0.3]) == 1.0


def test_equal_differences_have_no_spread_for_t_and_equal_arms_are_not_different() -> None:
    counted = paired_test([68.75, 75.0, 81.25], [62.5, 68.75, 75.0])  # one image of 16 more, three times
    assert math.isnan(counted.p_t) and counted.p_exact == 0.25
    rounded = paired_test([0.3, 0.7, 1.1], [0.1, 0.5, 0.9])
    assert math.isnan(rounded.p_t) and holm([rounded.p_t, 0.04])[1] == 0.04
    same = paired_test([1.0, 2.0], [1.0, 2.0])
    assert same.p_t == same.p_exact == 1.0 and (same.low, same.high) == (0.0, 0.0)


def test_too_many_differences_for_all_signs_and_unpaired_values_are_refused() -> None:
    with pytest.raises(ValueError, match="at most 20"):
        exact_sign_p([1.0] * 21)
    with pytest.raises(ValueError, match="expected pairs"):
        paired_test([1.0, 2.0], [1.0])


def test_holm_by_hand_with_a_test_that_has_no_p() -> None:
    corrected = holm([0.02, math.nan, 0.5, 0.01])
    assert corrected[0] == pytest.approx(0.04) and math.isnan(corrected[1])
    assert corrected[2:] == pytest.approx([0.5, 0.03])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
