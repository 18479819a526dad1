"""Whether tensors hold numbers only."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from avalanche_peftcl.errors import NotFiniteError, PEFTCLError
from avalanche_peftcl.functional.finite import (
    all_finite,
    check_decided,
    check_finite,
    not_finite,
    undecided,
)

VALUES = st.floats(width=32, allow_nan=True, allow_infinity=True)


@given(st.lists(st.lists(VALUES, max_size=4), max_size=4))
def test_all_finite_is_what_python_says(lists):
    expected = all(math.isfinite(x) for values in lists for x in values)
    assert bool(all_finite(torch.tensor(values) for values in lists)) is expected


@given(st.lists(st.lists(VALUES, min_size=3, max_size=3), min_size=1, max_size=4))
def test_a_row_is_decided_if_its_largest_value_is_a_number(rows):
    bad = sum(any(map(math.isnan, row)) or not math.isfinite(max(row)) for row in rows)
    assert int(undecided(torch.tensor(rows))) == bad


def test_values_that_fill_the_range_are_finite():
    """Their sum is not, so a sum would not do."""
    assert bool(all_finite([torch.full((9,), torch.finfo(torch.float32).max)]))


@pytest.mark.parametrize(
    "dtype",
    [torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.int64, torch.bool, torch.complex64],
)
def test_every_kind_of_number(dtype):
    assert bool(all_finite([torch.ones(3).to(dtype)]))
    if dtype.is_floating_point or dtype.is_complex:
        assert not bool(all_finite([torch.tensor([1.0, math.nan]).to(dtype)]))


def test_names_of_what_is_not_finite_in_order():
    pairs = [("a", torch.tensor(math.inf)), ("b", torch.ones(2)), ("c", torch.tensor(math.nan))]
    assert not_finite(pairs) == ["a", "c"]
    assert not_finite([]) == []


def test_the_errors_are_a_builtin_and_the_packages():
    with pytest.raises(NotFiniteError, match="the sums are not finite") as caught:
        check_finite([torch.ones(1), torch.tensor([math.nan])], "the sums")
    assert isinstance(caught.value, FloatingPointError)
    assert isinstance(caught.value, PEFTCLError)
    with pytest.raises(NotFiniteError, match="2 of 7 images of stream x are not"):
        check_decided(torch.tensor(2), 7, "stream x")
    check_finite([], "nothing")
    check_decided(torch.tensor(0), 7, "stream x")
