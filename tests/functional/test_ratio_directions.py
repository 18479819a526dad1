"""Directions by the ratio of energies, against SciPy's generalised eigenproblem."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.linalg import eigh, subspace_angles

from avalanche_peftcl.functional.ratio_directions import complement, ratio_directions


def grams(seed, d, *, old_rows=None):
    generator = np.random.default_rng(seed)
    new = generator.normal(size=(2 * d, d)) * generator.uniform(0.2, 3, d)
    old = generator.normal(size=(old_rows or 2 * d, d)) * generator.uniform(0.2, 3, d)
    return torch.tensor(new.T @ new), torch.tensor(old.T @ old)


@given(
    seed=st.integers(0, 10_000),
    d=st.integers(1, 9),
    ridge=st.sampled_from([1e-6, 1e-3, 0.1, 10.0]),
    data=st.data(),
)
def test_they_span_the_first_solutions_of_scipy(seed, d, ridge, data):
    old_rows = data.draw(st.integers(1, 2 * d))  # fewer than dimensions: S_old is singular
    new, old = grams(seed, d, old_rows=old_rows)
    k = data.draw(st.integers(0, d))
    ours = ratio_directions(new, old, n_directions=k, ridge=ridge)
    level = ridge * np.trace(old.numpy()) / d
    values, vectors = eigh(new.numpy(), old.numpy() + level * np.eye(d))
    assert ours.shape == (d, k)
    np.testing.assert_allclose(ours.T @ ours, np.eye(k), atol=1e-10)
    if 0 < k < d and values[d - k] < values[d - k - 1] * (1 + 1e-3):
        return  # which of two is the last of the first is a matter of rounding
    if k:
        assert subspace_angles(ours.numpy(), vectors[:, d - k :]).max() < 1e-5


@given(seed=st.integers(0, 1000), d=st.integers(2, 8))
def test_no_other_directions_have_a_larger_ratio(seed, d):
    new, old = grams(seed, d)
    u = ratio_directions(new, old, n_directions=1, ridge=1e-9)[:, 0]
    best = (u @ new @ u) / (u @ old @ u)
    tried = torch.randn(200, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    tried = torch.cat([tried, torch.eye(d, dtype=torch.float64)])
    ratios = ((tried @ new) * tried).sum(1) / ((tried @ old) * tried).sum(1)
    assert best >= ratios.max() * (1 - 1e-6)


def test_scales_of_the_grams_do_not_matter():
    new, old = grams(3, 6)
    one = ratio_directions(new, old, n_directions=2)
    other = ratio_directions(1e8 * new, 1e-8 * old, n_directions=2)
    assert subspace_angles(one.numpy(), other.numpy()).max() < 1e-6


def test_what_no_old_feature_has_comes_first():
    new = torch.diag(torch.tensor([5.0, 5.0, 1.0]))
    old = torch.diag(torch.tensor([3.0, 2.0, 0.0]))
    first, second = ratio_directions(new, old, n_directions=2).T
    assert first.abs().argmax() == 2
    assert second.abs().argmax() == 1
    # without old features it is the energy of the new ones
    alone = ratio_directions(torch.diag(torch.tensor([1.0, 9.0, 4.0])), 0 * old, n_directions=2)
    assert alone.abs().sum(1)[0] == 0


@given(seed=st.integers(0, 1000), d=st.integers(1, 9), data=st.data())
def test_a_complement_is_all_that_is_orthogonal(seed, d, data):
    k = data.draw(st.integers(0, d))
    basis = torch.tensor(np.linalg.qr(np.random.default_rng(seed).normal(size=(d, k)))[0])
    rest = complement(basis.reshape(d, k))
    assert rest.shape == (d, d - k)
    whole = torch.cat([basis.reshape(d, k), rest], dim=1)
    torch.testing.assert_close(whole @ whole.T, torch.eye(d).double(), atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((torch.eye(3), torch.eye(2), 1, 0.1), r"both Grams must be \(D, D\)"),
        ((torch.zeros(3, 2), torch.zeros(3, 2), 1, 0.1), r"both Grams must be \(D, D\)"),
        ((torch.eye(3), torch.eye(3), 4, 0.1), r"n_directions must lie in \[0, 3\], not be 4"),
        ((torch.eye(3), torch.eye(3), -1, 0.1), r"n_directions must lie in \[0, 3\], not be -1"),
        ((torch.eye(3), torch.eye(3), 1, 0.0), "ridge must be positive, not 0.0"),
        ((torch.eye(3), torch.eye(3), 1, float("nan")), "ridge must be positive, not nan"),
        ((torch.eye(3) * torch.inf, torch.eye(3), 1, 0.1), "not finite"),
    ],
)
def test_what_cannot_be_solved_is_refused(arguments, words):
    new, old, n, ridge = arguments
    with pytest.raises(ValueError, match=words):
        ratio_directions(new, old, n_directions=n, ridge=ridge)
