"""Numbers of any-time curves against plain loops in NumPy."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from avalanche_peftcl.functional import (
    any_time_area,
    average_minimum_accuracy,
    minimum_since_learned,
    worst_case_accuracy,
)


@st.composite
def runs(draw):
    """Points of a run of some experiences, each trained for a while: x, A and the ends."""
    lengths = draw(st.lists(st.integers(1, 9), min_size=1, max_size=5))
    ends, every = np.cumsum(lengths), draw(st.integers(1, 4))
    seed = draw(st.integers(0, 2**31))
    rng = np.random.default_rng(seed)
    x = sorted({*range(every, int(ends[-1]) + 1, every), *ends.tolist()})
    x = x[: draw(st.integers(1, len(x)))]  # the run may not be complete
    table = rng.random((len(x), len(lengths)))
    for p, at in enumerate(x):
        training = int((ends < at).sum())
        table[p, training + 1 :] = math.nan
    learned = np.where(ends <= x[-1], ends, math.inf)
    return np.array(x), table, learned


def lowest(x, table, end, i):
    later = [table[p, i] for p in range(len(x)) if x[p] > end[i]]
    return min(later) if later else math.nan


@given(runs())
def test_numbers_are_those_of_plain_loops(run):
    x, table, end = run
    given_ = [torch.from_numpy(np.asarray(part, float)) for part in run]
    minima = minimum_since_learned(*given_).numpy()
    wanted = [lowest(x, table, end, i) for i in range(len(end))]
    np.testing.assert_array_equal(minima, wanted)

    current = max(i for i in range(len(end)) if not math.isnan(table[-1, i]))
    k, last = current + 1, table[-1, current]
    if k == 1:
        assert math.isnan(average_minimum_accuracy(*given_))
        assert worst_case_accuracy(*given_) == last
    else:
        average = sum(wanted[: k - 1]) / (k - 1)
        assert average_minimum_accuracy(*given_) == pytest.approx(average, rel=1e-14)
        # as the paper writes it
        worst = last / k + (1 - 1 / k) * average
        assert worst_case_accuracy(*given_) == pytest.approx(worst, rel=1e-14)


@given(runs())
def test_the_area_is_the_mean_over_all_iterations(run):
    x, table, _ = run
    curve = np.nanmean(table, axis=1)
    by_iteration = [curve[np.searchsorted(x, i)] for i in range(1, int(x[-1]) + 1)]
    found = any_time_area(torch.from_numpy(x), torch.from_numpy(curve))
    assert found == pytest.approx(np.mean(by_iteration), rel=1e-13)


@given(runs())
def test_no_number_is_above_the_average_accuracy_at_the_end(run):
    table = torch.from_numpy(run[1])
    parts = torch.from_numpy(run[0]), table, torch.from_numpy(run[2])
    assert worst_case_accuracy(*parts) <= float(table[-1].nanmean()) + 1e-15


def test_of_experiences_that_train_together_none_is_old():
    x, end = torch.tensor([5, 10]), torch.tensor([10.0, 10.0])
    table = torch.tensor([[0.2, 0.4], [0.5, 0.75]])
    assert minimum_since_learned(x, table, end).isnan().all()
    assert math.isnan(average_minimum_accuracy(x, table, end))
    assert worst_case_accuracy(x, table, end) == 0.625


def test_what_is_missing_makes_a_number_undefined():
    x, end = torch.tensor([1, 2, 3]), torch.tensor([1.0, 3.0])
    table = torch.tensor([[0.5, math.nan], [math.nan, 0.5], [0.5, 0.5]])
    assert minimum_since_learned(x, table, end).isnan().all()
    assert math.isnan(average_minimum_accuracy(x, table, end))
    assert math.isnan(worst_case_accuracy(x, table, end))
    assert math.isnan(any_time_area(x, torch.tensor([0.5, math.nan, 0.5])))


def test_without_points_nothing_is_defined():
    x, end = torch.empty(0), torch.tensor([math.inf, math.inf])
    table = torch.empty(0, 2)
    assert minimum_since_learned(x, table, end).isnan().all()
    for number in (average_minimum_accuracy, worst_case_accuracy):
        assert math.isnan(number(x, table, end))
    assert math.isnan(any_time_area(x, x))


@pytest.mark.parametrize("x", [[1, 1], [2, 1], [0, 1], [[1, 2]]])
def test_iterations_must_rise(x):
    with pytest.raises(ValueError, match="iterations must rise from above 0, not"):
        any_time_area(torch.tensor(x), torch.zeros(2))


def test_shapes_must_belong_together():
    with pytest.raises(ValueError, match=r"2 points have accuracies of shape \(3,\)"):
        any_time_area(torch.tensor([1, 2]), torch.zeros(3))
    with pytest.raises(ValueError, match=r"2 points on \(3,\) experiences .* shape \(2, 2\)"):
        worst_case_accuracy(torch.tensor([1, 2]), torch.zeros(2, 2), torch.zeros(3))
