import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.linalg import orth, subspace_angles
from torch.nn import functional as F

from avalanche_peftcl.functional.losses import (
    centroid_contrast,
    less_margin,
    pooled_nce,
    released_direction,
    released_orthogonality,
    span_energy,
    symmetric_cross_entropy,
)
from avalanche_peftcl.functional.subspace import orthonormal_basis


def loop_nce(z, labels, temperature):
    """The formula of the NCE, written out with loops."""
    z = z / np.linalg.norm(z, axis=1, keepdims=True)
    n = len(z)
    e = np.exp(z @ z.T / temperature)
    positive = sum(e[i, j] for i in range(n) for j in range(n) if i != j and labels[i] == labels[j])
    negative = sum(math.log(sum(e[i, j] for j in range(n) if j != i)) for i in range(n)) / n
    return -math.log(positive) + negative


@given(seed=st.integers(0, 1000), n=st.integers(3, 9), d=st.integers(2, 6))
def test_nce_is_its_formula(seed, n, d):
    generator = np.random.default_rng(seed)
    z, labels = generator.normal(size=(n, d)), generator.integers(0, 2, n)
    ours = pooled_nce(torch.tensor(z), torch.tensor(labels), temperature=0.5)
    assert ours.item() == pytest.approx(loop_nce(z, labels, 0.5), rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("n", [1, 4])
def test_nce_without_a_positive_pair_is_zero_with_zero_gradient(n):
    z = torch.randn(n, 3, requires_grad=True)
    loss = pooled_nce(z, torch.arange(n))
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(z.grad, torch.zeros_like(z))


def test_minimising_nce_draws_equal_classes_together():
    torch.manual_seed(0)
    z = torch.randn(8, 5, requires_grad=True)
    labels = torch.arange(8) % 2
    same = labels[:, None] == labels[None]

    def gap():
        s = F.normalize(z, dim=1) @ F.normalize(z, dim=1).T
        return (s[same].mean() - s[~same].mean()).item()

    before = gap()
    optimizer = torch.optim.SGD([z], lr=0.5)
    for _ in range(50):
        optimizer.zero_grad()
        pooled_nce(z, labels).backward()
        optimizer.step()
    assert gap() > before + 0.2


@given(seed=st.integers(0, 1000), d=st.integers(2, 8), k=st.integers(1, 8), rank=st.integers(1, 8))
def test_basis_is_orthonormal_and_spans(seed, d, k, rank):
    generator = np.random.default_rng(seed)
    matrix = generator.normal(size=(d, rank)) @ generator.normal(size=(rank, k))
    basis = orthonormal_basis(torch.tensor(matrix))
    reference = orth(matrix, rcond=1e-6)
    assert basis.shape == reference.shape
    torch.testing.assert_close(basis.T @ basis, torch.eye(basis.shape[1]).double())
    assert np.allclose(subspace_angles(basis.numpy(), reference), 0, atol=1e-6)


def test_basis_of_nothing_and_of_zeros_is_empty():
    assert orthonormal_basis(torch.zeros(5, 0)).shape == (5, 0)
    assert orthonormal_basis(torch.zeros(5, 3)).shape == (5, 0)
    with pytest.raises(ValueError, match=r"\(D, C\)"):
        orthonormal_basis(torch.zeros(5))


@given(seed=st.integers(0, 1000), k=st.integers(0, 4))
def test_span_energy_is_zero_exactly_when_orthogonal(seed, k):
    generator = torch.Generator().manual_seed(seed)
    old = torch.randn(6, k, generator=generator, dtype=torch.double)
    basis = orthonormal_basis(old)
    z = torch.randn(4, 6, generator=generator, dtype=torch.double)
    outside = (z - z @ basis @ basis.T).float()
    assert span_energy(outside, basis.float()).item() == pytest.approx(0, abs=1e-5)
    if k:
        inside = torch.randn(4, k, generator=generator, dtype=torch.double) @ old.T
        assert span_energy(inside.float(), basis.float()).item() == pytest.approx(4, rel=1e-4)


def test_released_orthogonality_is_a_signed_sum_outside_the_span():
    torch.manual_seed(0)
    prototypes, z = torch.randn(5, 12), torch.randn(3, 12)
    left = torch.linalg.svd(F.normalize(prototypes.T, dim=0), full_matrices=True)[0][:, :4]
    outside = (torch.eye(12) - left @ left.T) @ F.normalize(z, dim=1).T
    direction = released_direction(prototypes, columns=4)
    assert released_orthogonality(z, direction).item() == pytest.approx(
        outside.sum().item(), abs=1e-5
    )


def test_released_direction_of_the_first_experience_drops_the_first_coordinates():
    assert torch.equal(released_direction(torch.zeros(3, 50))[:40], torch.zeros(40))
    assert torch.equal(released_direction(torch.zeros(3, 50))[40:], torch.ones(10))


def test_losses_refuse_what_does_not_fit():
    with pytest.raises(ValueError, match="labels"):
        pooled_nce(torch.zeros(2, 3), torch.zeros(3))
    with pytest.raises(ValueError, match="temperature"):
        pooled_nce(torch.zeros(2, 3), torch.zeros(2), temperature=0)
    with pytest.raises(ValueError, match="3 dimensions"):
        span_energy(torch.zeros(2, 3), torch.zeros(4, 1))


def test_the_pooled_term_draws_one_close_pair_together_and_parts_a_distant_one():
    z = torch.eye(4)
    z[1] = torch.tensor([0.9, 0.0, 0.0, 0.19**0.5])  # of z[0]'s label; z[2] and z[3] are of another
    z[3] = torch.tensor([0.0, 0.99**0.5, 0.1, 0.0])
    z.requires_grad_()

    def cosines(x):
        x = F.normalize(x, dim=1)
        return (x[0] @ x[1]).item(), (x[2] @ x[3]).item()

    before = cosines(z)
    pooled_nce(z, torch.tensor([0, 0, 1, 1])).backward()
    after = cosines(z.detach() - 1e-3 * z.grad)
    assert after[0] > before[0] + 1e-4
    assert after[1] < before[1] - 1e-4


def test_pairs_of_one_label_end_closer_than_others_on_average_only():
    torch.manual_seed(0)
    z, labels = torch.randn(32, 16, requires_grad=True), torch.arange(32) % 4
    optimizer = torch.optim.SGD([z], lr=1.0)
    same = (labels[:, None] == labels) & ~torch.eye(32, dtype=torch.bool)
    other = labels[:, None] != labels

    def cosines():
        x = F.normalize(z.detach(), dim=1)
        return x @ x.T

    before = cosines()
    for _ in range(200):
        optimizer.zero_grad()
        pooled_nce(z, labels).backward()
        optimizer.step()
    after = cosines()
    margins = [(x[same].mean() - x[other].mean()).item() for x in (before, after)]
    assert margins[1] > margins[0] + 0.02
    assert (after[same] > 0.9).any()  # a few pairs are together
    assert (after[same] < before[same]).float().mean() > 0.4  # and many further apart


# --- the margin ---


@given(seed=st.integers(0, 1000), n=st.integers(1, 6), c=st.integers(1, 5), scale=st.floats(1, 30))
def test_cross_entropy_with_a_margin_is_cosface(seed, n, c, scale):
    generator = np.random.default_rng(seed)
    cosines, y = generator.uniform(-1, 1, (n, c)), generator.integers(0, c, n)
    margin = generator.uniform(0, 0.5)
    terms = []
    for row, own in zip(cosines, y, strict=True):
        top = math.exp(scale * (row[own] - margin))
        rest = sum(math.exp(scale * value) for k, value in enumerate(row) if k != own)
        terms.append(-math.log(top / (top + rest)))
    reduced = less_margin(torch.tensor(scale * cosines), torch.tensor(y), margin=scale * margin)
    ours = F.cross_entropy(reduced, torch.tensor(y))
    assert ours.item() == pytest.approx(sum(terms) / n, rel=1e-9, abs=1e-9)


def test_a_margin_may_have_a_gradient_and_logits_stay():
    logits, margin = torch.randn(3, 2, requires_grad=True), torch.tensor(0.5, requires_grad=True)
    before, targets = logits.detach().clone(), torch.tensor([0, 1, 1])
    less_margin(logits, targets, margin=margin).sum().backward()
    assert margin.grad.item() == -3
    assert torch.equal(logits.detach(), before)
    assert torch.equal(logits.grad, torch.ones(3, 2))


@pytest.mark.parametrize(("logits", "targets"), [((3,), (3,)), ((3, 2), (2,)), ((3, 2), (3, 1))])
def test_a_margin_of_other_shapes_is_refused(logits, targets):
    with pytest.raises(ValueError, match=r"logits must be \(B, C\) and targets \(B,\)"):
        less_margin(torch.zeros(logits), torch.zeros(targets, dtype=torch.long), margin=0.1)


# --- against noise in labels, and against other classes -----------------------------------------


def test_symmetric_cross_entropy_is_both_of_its_sums():
    rng = np.random.default_rng(0)
    logits, y = rng.normal(size=(7, 4)), rng.integers(0, 4, 7)
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    own = np.maximum(np.eye(4)[y], 1e-4)
    expected = np.mean(-0.5 * np.log(p[np.arange(7), y]) - 2.0 * (p * np.log(own)).sum(1))
    z, targets = torch.tensor(logits, requires_grad=True), torch.tensor(y)
    found = symmetric_cross_entropy(z, targets, weight=0.5, reverse_weight=2.0)
    np.testing.assert_allclose(found.item(), expected, rtol=1e-5)
    found.backward()
    assert z.grad.isfinite().all()
    plain = symmetric_cross_entropy(z, targets, reverse_weight=0.0)
    torch.testing.assert_close(plain, torch.nn.functional.cross_entropy(z.float(), targets))


def test_centroid_contrast_is_a_softmax_over_all_rows():
    rng = np.random.default_rng(1)
    features, centroids = rng.normal(size=(5, 3)), rng.normal(size=(2, 3))
    rows = np.concatenate([centroids, features])
    s = rows @ rows.T / 0.8
    expected = np.mean(np.log(np.exp(s).sum(1)) - np.diag(s))
    found = centroid_contrast(torch.tensor(features), torch.tensor(centroids))
    np.testing.assert_allclose(found.item(), expected, rtol=1e-5)


@pytest.mark.parametrize(
    "call",
    [
        lambda: symmetric_cross_entropy(torch.zeros(2, 3), torch.zeros(3, dtype=torch.long)),
        lambda: symmetric_cross_entropy(torch.zeros(1, 3), torch.zeros(1).long(), floor=1.0),
        lambda: symmetric_cross_entropy(torch.zeros(1, 3), torch.zeros(1).long(), weight=-1.0),
        lambda: centroid_contrast(torch.zeros(2, 3), torch.zeros(2, 4)),
        lambda: centroid_contrast(torch.zeros(2, 3), torch.zeros(2, 3), temperature=0.0),
    ],
)
def test_what_the_last_two_refuse(call):
    with pytest.raises(ValueError, match="must"):
        call()
