from itertools import combinations
from math import inf, sqrt

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from avalanche_peftcl.compare.statistics import (
    Estimate,
    correlation,
    estimate,
    holm,
    paired_t_test,
)

# Student's sleep data, 1908: extra hours of sleep of ten patients after two drugs
FIRST = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]
SECOND = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]

samples = st.lists(st.integers(0, 1000).map(lambda i: i / 1000), min_size=2, max_size=8)


@given(samples)
def test_an_estimate_is_that_of_scipy(values):
    found = estimate(values)
    assert found.mean == pytest.approx(np.mean(values))
    assert found.standard_deviation == pytest.approx(np.std(values, ddof=1), abs=1e-15)
    if np.ptp(values) > 0:
        low, high = stats.t.interval(0.95, len(values) - 1, np.mean(values), stats.sem(values))
        assert (high - low) / 2 == pytest.approx(found.half_width)
    else:
        assert found.half_width == pytest.approx(0, abs=1e-15)
    assert found.count == len(values)


def test_an_estimate_by_hand():
    # s = 0.1, n = 3, t(0.975, 2) = 4.302653
    found = estimate([0.5, 0.6, 0.7])
    assert found.half_width == pytest.approx(4.302653 * 0.1 / sqrt(3))
    # t(0.95, 2) = 2.919986
    assert estimate([0.5, 0.6, 0.7], confidence=0.9).half_width == pytest.approx(0.168585, abs=1e-6)


def test_one_value_has_no_spread():
    assert estimate([0.3]) == Estimate(0.3, None, None, 1)
    with pytest.raises(ValueError, match="no mean of no values"):
        estimate([])


def test_the_paired_test_is_student_s():
    test = paired_t_test(FIRST, SECOND)
    assert test.statistic == pytest.approx(-4.0621, abs=1e-4)
    assert test.p_value == pytest.approx(0.002833, abs=1e-6)
    assert test.difference.mean == pytest.approx(-1.58)
    assert test.difference.half_width == pytest.approx((2.4598858 - 0.7001142) / 2, abs=1e-6)
    assert test.reason is None


def test_the_paired_test_by_hand():
    test = paired_t_test([0.9, 0.8, 0.7], [0.8, 0.75, 0.65])
    mean, deviation = 0.2 / 3, np.std([0.1, 0.05, 0.05], ddof=1)
    assert test.statistic == pytest.approx(mean / (deviation / sqrt(3)))
    # two degrees of freedom: p = 1 - t / sqrt(t^2 + 2)
    assert test.p_value == pytest.approx(1 - test.statistic / sqrt(test.statistic**2 + 2))


@pytest.mark.parametrize(
    ("first", "second", "reason", "count"),
    [
        ([], [], "no common seed", None),
        ([0.5], [0.4], "one common seed", 1),
        ([0.3, 0.1], [0.2, 0.0], "the same difference for every seed", 2),
        ([0.5, 0.5], [0.5, 0.5], "the same difference for every seed", 2),
    ],
)
def test_where_there_is_no_test_there_is_a_reason(first, second, reason, count):
    test = paired_t_test(first, second)
    assert (test.p_value, test.statistic, test.reason) == (None, None, reason)
    assert (test.difference and test.difference.count) == count


def test_pairs_need_both():
    with pytest.raises(ValueError, match="as many values of both: 1 and 2"):
        paired_t_test([0.1], [0.1, 0.2])


def test_holm_by_hand():
    # 4 * 0.005, 3 * 0.01, 2 * 0.03, and 1 * 0.04 raised to the one before
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([0.2]) == [0.2]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), max_size=7))
def test_holm_is_the_closed_test_of_bonferroni(p_values):
    """A hypothesis is rejected if Bonferroni rejects every set of hypotheses that holds it."""
    everyone = range(len(p_values))
    sets = [s for size in everyone for s in combinations(everyone, size + 1)]
    for i, corrected in enumerate(holm(p_values)):
        over = [len(s) * min(p_values[j] for j in s) for s in sets if i in s]
        assert corrected == pytest.approx(min(1.0, max(over, default=-inf)))


@given(
    st.lists(st.tuples(st.integers(-50, 50), st.integers(-50, 50)), min_size=4, max_size=12),
    st.sampled_from([0.5, 0.95]),
)
def test_a_correlation_and_its_interval_are_those_of_scipy(pairs, confidence):
    first, second = zip(*pairs, strict=True)
    found = correlation(first, second, confidence=confidence)
    if len(set(first)) == 1 or len(set(second)) == 1:
        assert found is None
        return
    expected = stats.pearsonr(first, second)
    interval = expected.confidence_interval(confidence)
    assert found.value == pytest.approx(expected.statistic, abs=1e-12)
    if abs(found.value) < 1 - 1e-9:  # at the ends artanh takes rounding for much
        assert (found.low, found.high) == pytest.approx(tuple(interval), abs=1e-6)
    assert found.low <= found.value <= found.high
    assert found.count == len(pairs)


def test_a_correlation_needs_four_pairs_that_vary():
    assert correlation([1, 2, 3], [1, 2, 3]) is None
    assert correlation([1e100, 2e100, 3e100, 4e100], [1, 2, 3, 4]).value == pytest.approx(1.0)
    assert correlation([0, 0, 0, 0], [1, 2, 3, 4]) is None
    assert correlation([0.1 + 0.2, 0.3, 0.3, 0.3], [1, 2, 3, 4]) is None  # but for rounding
    assert correlation([1, 2, 3, 4], [4, 3, 2, 1]).low == pytest.approx(-1.0)
