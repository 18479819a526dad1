"""Bases that hold the mean of features, and the energy of what varies about it."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.linalg import subspace_angles

from avalanche_peftcl.functional.subspace import extend_basis, extend_centred_basis, gram


def statistics(rows):
    rows = torch.as_tensor(rows)
    return gram(rows)[0], rows.double().sum(0), len(rows)


def extend(rows, threshold, basis=None):
    basis = torch.zeros(rows.shape[1], 0, dtype=torch.float64) if basis is None else basis
    return extend_centred_basis(basis, *statistics(rows), threshold=threshold)


def reference(rows, threshold, basis):
    """What the rule says, by singular values of rows: no Gram, no streaming."""
    mean = rows.mean(axis=0)
    away = mean - basis @ (basis.T @ mean)
    columns = [*basis.T]
    if np.linalg.norm(away) > 1e-6 * np.linalg.norm(rows):
        columns.append(away / np.linalg.norm(away))
    centred = rows - mean
    held = np.array(columns).T
    energy = np.square(centred).sum()
    _, values, right = np.linalg.svd(centred - centred @ held @ held.T)
    left = np.square(values).sum()
    for value, direction in zip(values, right, strict=False):
        if left <= (1 - threshold) * energy * (1 + 1e-9) or value**2 <= 1e-12 * energy:
            break
        columns.append(direction)
        left -= value**2
    return np.array(columns).T, 1 - left / energy


@given(
    seed=st.integers(0, 10_000),
    n=st.integers(2, 20),
    d=st.integers(2, 7),
    threshold=st.integers(0, 97).map(lambda i: i / 97.3),
    k=st.integers(0, 1),
)
def test_the_mean_comes_first_and_then_singular_vectors_of_centred_rows(seed, n, d, threshold, k):
    generator = np.random.default_rng(seed)
    rows = generator.normal(size=(n, d)) * generator.uniform(0.5, 2, d) + 30 * np.eye(d)[0]
    basis = np.linalg.qr(generator.normal(size=(d, k)))[0].reshape(d, k)
    ours, held = extend(rows, threshold, torch.tensor(basis))
    expected, share = reference(rows, threshold, basis)
    assert ours.shape == expected.shape
    assert subspace_angles(ours.numpy(), expected).max() < 1e-6
    assert held == pytest.approx(share, abs=1e-9)
    np.testing.assert_allclose(ours.T @ ours, np.eye(ours.shape[1]), atol=1e-12)
    mean = torch.tensor(rows.mean(axis=0))  # protected whatever the threshold
    torch.testing.assert_close(ours @ (ours.T @ mean), mean, atol=1e-10, rtol=0)


def test_a_mean_that_holds_the_energy_leaves_nothing_of_the_rest_out():
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(200, 12, generator=generator, dtype=torch.float64) + 20
    uncentred, _ = extend_basis(torch.zeros(12, 0).double(), gram(rows)[0], threshold=0.9)
    centred, held = extend(rows, 0.9)
    assert uncentred.shape[1] == 1
    assert centred.shape[1] > 8
    assert held >= 0.9


def test_no_threshold_adds_the_mean_alone_and_no_mean_nothing():
    rows = torch.tensor([[1.0, 2.0, 0.0], [3.0, 0.0, 1.0]])
    basis, _ = extend(rows, 0.0)
    mean = rows.mean(0).double()
    torch.testing.assert_close(basis[:, 0].abs(), mean / mean.norm(), atol=1e-12, rtol=0)
    assert extend(torch.cat([rows, -rows]), 0.0)[0].shape == (3, 0)  # the mean is zero


def test_rows_that_are_all_alike_give_their_mean():
    for rows in (torch.full((50, 3), 0.1), torch.ones(7, 1)):
        basis, held = extend(rows, 1.0)
        assert basis.shape == (rows.shape[1], 1)
        assert held == 1.0
        assert extend(rows, 1.0, basis)[0].shape == basis.shape  # it is not added again


def test_nothing_is_held_wholly():
    basis = torch.zeros(3, 0)
    nothing = torch.zeros(3, 3).double(), torch.zeros(3).double(), 0
    assert extend_centred_basis(basis, *nothing, threshold=1.0) == (basis, 1.0)


def test_statistics_of_two_streams_are_summed():
    rows = torch.randn(9, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 2
    parts = [statistics(rows[:2]), statistics(rows[2:])]
    summed = [a + b for a, b in zip(*parts, strict=True)]
    streamed, _ = extend_centred_basis(torch.zeros(4, 0).double(), *summed, threshold=0.8)
    whole, _ = extend(rows, 0.8)
    assert subspace_angles(streamed.numpy(), whole.numpy()).max() < 1e-6


def test_the_sum_must_fit():
    with pytest.raises(ValueError, match=r"sum of rows must be \(3,\), not \(2,\)"):
        extend_centred_basis(torch.zeros(3, 0), torch.eye(3), torch.zeros(2), 4, threshold=0.5)
    with pytest.raises(ValueError, match=r"threshold must lie in \[0, 1\]"):
        extend_centred_basis(torch.zeros(3, 0), torch.eye(3), torch.zeros(3), 4, threshold=2.0)
