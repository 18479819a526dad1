import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from avalanche_peftcl.functional.averaging import released_copy, running_mean_, segment


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=12))
def test_running_mean_is_the_arithmetic_mean(values):
    mean = torch.full((1,), 123.0, dtype=torch.double)
    for n, value in enumerate(values):
        running_mean_([mean], [torch.tensor([value], dtype=torch.double)], count=n)
    assert mean.item() == pytest.approx(sum(values) / len(values), abs=1e-9)


def test_running_mean_of_a_tensor_with_itself_scales_it_as_the_release_does():
    t = 3
    weight = torch.ones(1, dtype=torch.double)
    running_mean_([weight], [weight], count=t)
    assert weight.item() == pytest.approx(t * (t + 2) / (t + 1) ** 2)  # 0.9375


@pytest.mark.parametrize(("n_copies", "share"), [(2, 0.556), (3, 0.667)])
def test_released_later_copies_keep_a_share_of_their_start(n_copies, share):
    copies = {i: torch.ones(1, dtype=torch.double) for i in range(n_copies + 1)}
    for t in range(9):  # the last of ten experiences is left out
        i = released_copy(t, n_experiences=10, n_copies=n_copies)
        running_mean_([copies[i]], [torch.zeros(1, dtype=torch.double)], count=t)
    assert copies[1].item() == pytest.approx(share, abs=1e-3)


def test_released_copy_can_be_the_adapters_that_train():
    assert released_copy(3, n_experiences=5, n_copies=3) == 0
    assert released_copy(9, n_experiences=11, n_copies=3) == 0


@given(st.integers(1, 30), st.integers(1, 3))
def test_segments_cover_the_stream_in_order(n_experiences, n_copies):
    if n_copies > n_experiences:
        with pytest.raises(ValueError, match="n_copies"):
            segment(0, n_experiences=n_experiences, n_copies=n_copies)
        return
    cut = [segment(t, n_experiences=n_experiences, n_copies=n_copies) for t in range(n_experiences)]
    copies = [copy for copy, _ in cut]
    assert copies == sorted(copies, reverse=True)
    assert set(copies) == set(range(1, n_copies + 1))
    sizes = [copies.count(c) for c in set(copies)]
    assert max(sizes) - min(sizes) <= 1
    assert all(count == copies[:t].count(copy) for t, (copy, count) in enumerate(cut))


def test_averaging_refuses_what_makes_no_sense():
    with pytest.raises(ValueError, match="count"):
        running_mean_([], [], count=-1)
    with pytest.raises(ValueError, match="n_copies"):
        released_copy(0, n_experiences=2, n_copies=3)
    with pytest.raises(ValueError, match="from 0 to 4"):
        segment(5, n_experiences=5, n_copies=1)
