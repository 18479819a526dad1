"""Factors of covariances and normalised logits, against NumPy and loops."""

import numpy as np
import pytest
import torch

from avalanche_peftcl.functional import aged_means, covariance_factor, normalised_logits

EPS = torch.finfo(torch.float64).eps


def covariances(n, count=3, width=6):
    rows = torch.randn(
        count, n, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    rows = rows - rows.mean(dim=1, keepdim=True)
    return rows.mT @ rows / max(1, n - 1)


@pytest.mark.parametrize("shrinkage", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("n", [1, 3, 50])
def test_factors_give_the_shrunk_covariance(n, shrinkage):
    """Of full rank, of less, and of a class of one image."""
    given = covariances(n)
    factors = covariance_factor(given, shrinkage=shrinkage)
    for covariance, factor in zip(given.numpy(), factors.numpy(), strict=True):
        expected = (1 - shrinkage) * covariance
        expected = expected + shrinkage * np.trace(covariance) / 6 * np.eye(6)
        scale = max(1.0, np.trace(covariance))
        np.testing.assert_allclose(factor @ factor.T, expected, rtol=0, atol=100 * EPS * scale)
    alone = torch.stack([covariance_factor(each, shrinkage=shrinkage) for each in given])
    torch.testing.assert_close(alone, factors, rtol=0, atol=100 * EPS)


def test_drawn_rows_have_the_covariance():
    given = covariances(50, count=1)[0]
    factor = covariance_factor(given, shrinkage=0.0)
    noise = torch.randn(200_000, 6, generator=torch.Generator().manual_seed(1)).double()
    found = torch.cov((noise @ factor.mT).T)
    bound = 6 * given.diagonal().max() * (2 / 200_000) ** 0.5  # six standard errors
    assert (found - given).abs().max() < bound


def test_the_given_covariance_stays_as_it_is():
    given = covariances(3)
    kept = given.clone()
    covariance_factor(given, shrinkage=0.5)
    assert torch.equal(given, kept)


def test_normalised_logits_against_a_loop():
    logits = torch.randn(5, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    groups = torch.tensor([0, 0, 1, 2, 2, 2, 1])
    expected = []
    for row in logits.numpy():
        lengths = [np.linalg.norm(row[groups.numpy() == g]) for g in (0, 1, 2)]
        expected.append(row / (0.2 * np.mean(lengths)))
    found = normalised_logits(logits, groups, temperature=0.2)
    np.testing.assert_allclose(found.numpy(), np.stack(expected), rtol=1e-6)  # 1e-7 is added


def test_longer_logits_are_the_same():
    logits = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    groups = torch.tensor([0, 0, 1, 1])
    one, other = (normalised_logits(scale * logits, groups) for scale in (1.0, 50.0))
    torch.testing.assert_close(one, other)
    zero = torch.zeros(2, 4, requires_grad=True)
    normalised_logits(zero, groups).sum().backward()
    assert zero.grad.isfinite().all()


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda: covariance_factor(torch.eye(2), shrinkage=1.5), "shrinkage must be"),
        (lambda: normalised_logits(torch.ones(2, 3), torch.zeros(2)), "groups"),
        (
            lambda: normalised_logits(torch.ones(2, 3), torch.zeros(3), temperature=0),
            "temperature must be positive",
        ),
    ],
)
def test_what_is_refused(call, told):
    with pytest.raises(ValueError, match=told):
        call()


def test_jitter_stands_on_the_diagonal():
    given = covariances(3)
    factors = covariance_factor(given, shrinkage=0.0, jitter=0.01)
    expected = given + 0.01 * torch.eye(6, dtype=torch.float64)
    torch.testing.assert_close(factors @ factors.mT, expected, rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match="jitter must not be negative"):
        covariance_factor(given, shrinkage=0.0, jitter=-1.0)


def test_means_of_older_classes_are_shorter():
    """As SLCA's code says: 0.9 m + 0.1 (t_c + 1) / (t + 1) m."""
    rng = np.random.default_rng(0)
    means, born = rng.normal(size=(4, 3)), np.array([0, 0, 1, 2])
    expected = 0.9 * means + 0.1 * ((born + 1) / 3)[:, None] * means
    found = aged_means(torch.tensor(means), torch.tensor(born), share=0.1)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12)
    assert torch.equal(found[3], torch.tensor(means[3]))


@pytest.mark.parametrize(("n", "share"), [(3, 0.1), (2, 1.5)])
def test_means_that_cannot_age(n, share):
    with pytest.raises(ValueError, match="must be"):
        aged_means(torch.zeros(2, 3), torch.zeros(n), share=share)
