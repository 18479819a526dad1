"""Bases that grow with features: their span, their size, and what they protect."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.linalg import null_space, subspace_angles, svd

from avalanche_peftcl.functional.subspace import (
    extend_basis,
    gram,
    remove_component,
)

SEEDS = st.integers(0, 10_000)
SIZES = st.integers(1, 9)
THRESHOLDS = st.integers(0, 997).map(lambda i: i / 997)


def orthonormal(generator, size, count):
    return np.linalg.qr(generator.normal(size=(size, count)))[0]


def make_rows(seed, n, d, rank, dtype=torch.float64):
    """Return N rows of exactly this rank, all of whose singular values lie between 1 and 5."""
    generator = np.random.default_rng(seed)
    values = np.sort(generator.uniform(1, 5, rank))[::-1]
    left, right = orthonormal(generator, n, rank), orthonormal(generator, d, rank)
    return torch.tensor(left * values @ right.T, dtype=dtype)


def empty(d, dtype=torch.float64):
    return torch.zeros(d, 0, dtype=dtype)


def basis_of(rows, threshold=1.0, basis=None):
    basis = empty(rows.shape[-1]) if basis is None else basis
    return extend_basis(basis, gram(rows)[0], threshold=threshold)


def assert_orthonormal(basis, atol=1e-12):
    torch.testing.assert_close(
        basis.mT @ basis, torch.eye(basis.shape[1]).to(basis), rtol=0, atol=atol
    )


def assert_same_span(ours, reference):
    assert ours.shape == reference.shape
    if ours.shape[1]:
        assert subspace_angles(np.asarray(ours), np.asarray(reference)).max() < 1e-6


@st.composite
def matrices(draw):
    """Draw a seed, numbers of rows and of dimensions of either order, and a rank."""
    n, d = draw(SIZES), draw(SIZES)
    return draw(SEEDS), n, d, draw(st.integers(1, min(n, d)))


# --- extending a basis ---


@given(case=matrices(), threshold=THRESHOLDS)
def test_basis_is_the_leading_right_singular_vectors(case, threshold):
    rows = make_rows(*case)
    basis, held = basis_of(rows, threshold)
    left, values, _ = svd(rows.numpy().T)
    share = np.concatenate([[0], (values**2).cumsum() / (values**2).sum()])
    size = int((share < threshold - 1e-9).sum())  # the smallest that reaches the threshold
    assert_orthonormal(basis)
    assert_same_span(basis, left[:, :size])
    assert held == pytest.approx(share[size])


@given(matrices())
def test_projector_is_symmetric_and_idempotent_with_eigenvalues_up_to_one(case):
    basis, _ = basis_of(make_rows(*case).repeat(2, 1))  # every feature twice
    projector = basis @ basis.mT
    torch.testing.assert_close(projector, projector.mT)
    torch.testing.assert_close(projector @ projector, projector)
    assert torch.linalg.eigvalsh(projector).max() < 1 + 1e-12


@given(matrices())
def test_what_is_left_is_the_null_space_of_the_features(case):
    rows = make_rows(*case)
    basis, held = basis_of(rows)
    assert held == pytest.approx(1, abs=1e-12)
    outside = null_space(rows.numpy(), rcond=1e-9)
    complement = torch.eye(case[2]).double() - basis @ basis.mT
    torch.testing.assert_close(complement, torch.tensor(outside @ outside.T), rtol=0, atol=1e-9)
    update = torch.randn(3, case[2], generator=torch.Generator().manual_seed(0)).double()
    torch.testing.assert_close(
        rows @ remove_component(update, basis).mT, torch.zeros(case[1], 3).double()
    )


@given(old=matrices(), n=SIZES, share=THRESHOLDS, threshold=THRESHOLDS)
def test_extension_keeps_the_old_span_and_reaches_the_threshold(old, n, share, threshold):
    d = old[2]
    first = basis_of(make_rows(*old), share)[0]
    rows = make_rows(old[0] + 1, n, d, min(n, d))
    basis, held = basis_of(rows, threshold, first)
    assert_orthonormal(basis)
    assert first.shape[1] <= basis.shape[1] <= d
    torch.testing.assert_close(remove_component(first.mT, basis), torch.zeros_like(first.mT))
    r, m = rows.numpy().T @ rows.numpy(), basis.numpy()
    assert held == pytest.approx(np.trace(m.T @ r @ m) / np.trace(r))
    assert held >= threshold - 1e-8
    if basis.shape[1] > first.shape[1]:  # and no direction was needless: the last is the weakest
        assert held - (rows @ basis[:, -1]).square().sum() / np.trace(r) < threshold


@given(seed=SEEDS, d=st.integers(2, 9), dtype=st.sampled_from([torch.float32, torch.float64]))
def test_extension_covers_old_and_new_features(seed, d, dtype):
    old, new = make_rows(seed, d, d, 1, dtype), make_rows(seed + 1, 2 * d, d, d // 2, dtype)
    basis = empty(d, dtype)
    for rows in (old, new, old, new, torch.cat([old, new])):  # seen again, nothing is added
        basis, _ = basis_of(rows, 1.0, basis)
    assert basis.dtype == dtype
    assert basis.shape == (d, 1 + d // 2)
    assert_orthonormal(basis, atol=1e-6)
    for rows in (old, new):
        left = remove_component(rows, basis)
        torch.testing.assert_close(left, torch.zeros_like(rows), rtol=0, atol=1e-5)


@given(case=matrices(), old=SEEDS, low=THRESHOLDS, high=THRESHOLDS)
def test_a_larger_threshold_never_gives_a_smaller_basis(case, old, low, high):
    low, high = sorted((low, high))
    first = basis_of(make_rows(old, 1, case[2], 1))[0]
    small, held_small = basis_of(make_rows(*case), low, first)
    large, held_large = basis_of(make_rows(*case), high, first)
    assert small.shape[1] <= large.shape[1]
    assert held_small <= held_large + 1e-12


@given(seed=SEEDS, d=SIZES)
def test_threshold_zero_adds_nothing_and_a_full_basis_is_never_exceeded(seed, d):
    rows = make_rows(seed, d, d, d)
    assert basis_of(rows, 0.0)[0].shape == (d, 0)
    basis = empty(d)
    for task in range(3):
        basis, held = basis_of(make_rows(seed + task, d, d, d), 1.0, basis)
    assert basis.shape == (d, d)
    assert_orthonormal(basis)
    assert held == pytest.approx(1)


@pytest.mark.parametrize("rows", [torch.zeros(0, 3), torch.zeros(4, 3)])
@pytest.mark.parametrize("size", [0, 2])
def test_no_features_leave_the_basis_as_it_is(rows, size):
    basis = torch.eye(3, size)
    ours, held = basis_of(rows, 1.0, basis)
    assert torch.equal(ours, basis)
    assert held == 1.0


def test_a_single_row_gives_its_direction():
    basis, held = basis_of(torch.tensor([[0.0, 3.0, 4.0]]), 0.5)
    torch.testing.assert_close(basis.abs(), torch.tensor([[0.0], [0.6], [0.8]]).double())
    assert held == pytest.approx(1)


def test_a_share_reached_exactly_is_reached():
    assert basis_of(torch.eye(10) * 0.1, 0.7)[0].shape == (10, 7)


def test_directions_of_rounding_are_not_added():
    rows = torch.diag(torch.tensor([1.0, 1e-4, 1e-6])).double()
    assert basis_of(rows)[0].shape == (3, 2)
    assert extend_basis(empty(3), gram(rows)[0], threshold=1, tolerance=1e-14)[0].shape == (3, 3)
    # nor many of them that together are more than rounding
    assert basis_of(torch.diag(torch.tensor([1.0] + [7e-6] * 9)))[0].shape == (10, 1)


def test_a_basis_stays_orthonormal_and_within_d_columns_where_rounding_is_let_in():
    rotation = torch.tensor(orthonormal(np.random.default_rng(0), 20, 20))
    strong, weak = rotation[:10], rotation[10:15] * 2e-5  # each weak one 4e-11 of the energy
    basis, _ = basis_of(strong)
    basis, _ = extend_basis(basis, gram(torch.cat([strong, weak]))[0], threshold=1, tolerance=1e-12)
    assert basis.shape == (20, 15)
    assert_orthonormal(basis)
    for seed in range(3):
        matrix = gram(make_rows(seed, 20, 20, 20))[0]
        basis, _ = extend_basis(basis, matrix, threshold=1, tolerance=0)
    assert basis.shape == (20, 20)
    assert_orthonormal(basis)


def test_a_basis_that_is_slightly_off_is_not_extended_by_its_own_span():
    basis, _ = basis_of(make_rows(0, 6, 6, 3))
    matrix = gram(make_rows(1, 9, 3, 3) @ basis.mT)[0]
    assert extend_basis(basis * (1 + 4e-5), matrix, threshold=1)[0].shape == (6, 3)


@pytest.mark.parametrize(
    ("basis", "matrix", "threshold", "words"),
    [
        (torch.zeros(3), torch.eye(3), 0.5, r"\(D, K\)"),
        (torch.zeros(3, 0), torch.eye(2), 0.5, r"\(D, D\)"),
        (torch.zeros(3, 0), torch.eye(3)[None], 0.5, "one at a time"),
        (torch.zeros(3, 0), torch.eye(3), 1.1, "threshold"),
        (torch.zeros(3, 0), torch.eye(3), float("nan"), "threshold"),
        (torch.zeros(3, 0), torch.eye(3) * torch.inf, 0.5, "not finite"),
        (torch.zeros(3, 0).half(), torch.eye(3), 0.5, "float32 or float64"),
        (torch.zeros(3, 1), torch.eye(3), 0.5, "orthonormal"),
    ],
)
def test_extend_basis_refuses(basis, matrix, threshold, words):
    with pytest.raises(ValueError, match=words):
        extend_basis(basis, matrix, threshold=threshold)


@given(seed=SEEDS, n=st.integers(1, 20), d=SIZES, size=st.integers(1, 20))
def test_neither_the_order_of_samples_nor_the_batches_matter(seed, n, d, size):
    rows = make_rows(seed, n, d, min(n, d))
    shuffled = rows[torch.randperm(n, generator=torch.Generator().manual_seed(seed))]
    total = torch.zeros(1, d, d, dtype=torch.float64)
    for batch in shuffled.split(size):
        total += gram(batch)
    torch.testing.assert_close(total, gram(rows))
    streamed, held = extend_basis(empty(d), total[0], threshold=0.8)
    at_once, held_at_once = basis_of(rows, 0.8)
    assert_same_span(streamed, at_once)
    assert held == pytest.approx(held_at_once)


# --- what a basis protects ---


@given(matrices())
def test_remove_component_leaves_the_complement_and_nothing_else(case):
    basis, _ = basis_of(make_rows(*case))
    outside = torch.tensor(null_space(basis.numpy().T)).mT
    torch.testing.assert_close(remove_component(outside, basis), outside)
    torch.testing.assert_close(remove_component(basis.mT, basis), torch.zeros_like(basis.mT))
    x = torch.randn(4, case[2], generator=torch.Generator().manual_seed(0)).double()
    once = remove_component(x, basis)
    torch.testing.assert_close(remove_component(once, basis), once)


def test_the_span_of_a_sum_protects_neither_summand_but_the_stack_protects_both():
    x, prompt = torch.tensor([[5.0, 1.0, 0.0]]), torch.tensor([[-5.0, 1.0, 0.0]])
    update = torch.tensor([[1.0, 2.0, 3.0]])
    summed = remove_component(update, basis_of(x + prompt, basis=torch.zeros(3, 0))[0])
    assert (x + prompt) @ summed.mT == 0
    assert (x @ summed.mT).item() == 5
    assert (prompt @ summed.mT).item() == -5
    stacked = remove_component(update, basis_of(torch.cat([x, prompt]))[0])
    torch.testing.assert_close(stacked, torch.tensor([[0.0, 0.0, 3.0]]))
