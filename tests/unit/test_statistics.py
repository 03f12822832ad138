"""The statistics against definitions, textbook values and simulated data."""

import itertools
import math
import random
from statistics import fmean

import numpy as np
import pytest
from scipy import stats

from bisam_ray.study import statistics
from bisam_ray.study.statistics import Estimate, detectable, effect, holm, needed, outlying, sign_flip


def test_the_interval_is_students():
    values = [0.3, 0.1, 0.4, 0.1, 0.5]
    found = Estimate.of(values)
    low, high = stats.t.interval(0.95, 4, fmean(values), stats.sem(values))
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))
    assert math.isnan(Estimate.of([0.1]).low)


@pytest.mark.parametrize("n", [2, 3, 5, 8])
def test_sign_flips_are_all_made(n):
    x = np.random.default_rng(n).normal(0.3, 1, n).tolist()
    flipped = [abs(sum(s * v for s, v in zip(signs, x, strict=True))) for signs in itertools.product((1, -1), repeat=n)]
    expected = fmean(value >= abs(sum(x)) - 1e-12 for value in flipped)
    assert sign_flip(x) == pytest.approx(expected)
    assert sign_flip([-v for v in x]) == sign_flip(x)


def test_many_replicates_are_flipped_at_random_and_agree_with_scipy():
    x = np.random.default_rng(0).normal(0.4, 1, 20)
    theirs = stats.permutation_test(
        (x,), np.mean, permutation_type="samples", n_resamples=50_000, rng=np.random.default_rng(1)
    ).pvalue
    assert sign_flip(x) == pytest.approx(theirs, abs=0.01)
    assert sign_flip(x) == sign_flip(x)


def test_a_missing_difference_leaves_no_p_value():
    assert math.isnan(sign_flip([math.nan, 1.0, 2.0]))


def test_ties_count_as_extreme():
    assert sign_flip([0.0, 0.0, 0.0]) == 1.0  # nothing was shown
    assert sign_flip([0.1 + 0.2, -0.3]) == 1.0  # equal but for rounding


def test_holm_is_the_textbooks_and_ignores_what_is_not_known():
    assert holm([0.01, 0.02, 0.03, 0.005]) == pytest.approx([0.03, 0.04, 0.04, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    found = holm([0.01, math.nan, 0.02])
    assert found[0] == pytest.approx(0.02)
    assert math.isnan(found[1])


def test_the_effect_is_hedges_g():
    values = [1.0, 2.0, 3.0, 4.0]
    assert effect(values) == pytest.approx(2.5 / np.std(values, ddof=1) * (1 - 3 / 11))
    assert effect([0.0, 0.0]) == 0
    assert effect([0.1, 0.1]) == math.inf


@pytest.mark.parametrize("n", [3, 5, 10, 20])
@pytest.mark.parametrize(
    "drawn",
    [
        lambda rng, shape: rng.normal(size=shape),
        lambda rng, shape: rng.laplace(size=shape),
        lambda rng, shape: rng.standard_t(3, size=shape),
        lambda rng, shape: rng.exponential(size=shape) - rng.exponential(size=shape),
    ],
    ids=["normal", "laplace", "t3", "exponential"],
)
def test_intervals_of_differences_hold_what_they_promise(n, drawn):
    rng = np.random.default_rng(1)
    covered = [found.low <= 0 <= found.high for found in (Estimate.of(x.tolist()) for x in drawn(rng, (4000, n)))]
    assert 0.93 <= fmean(covered) <= 0.98


@pytest.mark.parametrize(("n", "comparisons"), [(6, 1), (10, 1), (10, 8), (16, 24)])
def test_the_power_that_is_told_is_had(n, comparisons):
    """Fresh studies of just the detectable size are shown four times in five."""
    rng = np.random.default_rng(5)
    x = rng.normal(detectable(n, comparisons), 1, (600, n))
    found = fmean(sign_flip(row) <= statistics.LEVEL / comparisons for row in x)
    assert 0.73 < found < 0.87


def test_the_fewest_replicates_can_show_something_and_one_less_cannot():
    for comparisons in (1, 2, 4, 24, 100):
        n = needed(comparisons)
        assert 2 / 2**n * comparisons <= statistics.LEVEL < 2 / 2 ** (n - 1) * comparisons
        assert detectable(n - 1, comparisons) == math.inf


def test_a_collapsed_replicate_is_outlying():
    chance = random.Random(0)
    values = [0.95 + chance.gauss(0, 0.005) for _ in range(10)]
    assert outlying(values) == []
    assert outlying([*values[:9], 0.2]) == [9]
    assert outlying([1.0] * 9 + [0.1]) == [9]  # most agree to the last digit
    assert outlying([0.95] * 6 + [0.94]) == []
    alarms = [outlying([chance.gauss(0, 1) for _ in range(10)]) for _ in range(1000)]
    assert sum(map(bool, alarms)) <= 5
