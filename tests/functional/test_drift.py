"""Drift maps against loops, closed forms and each other."""

import numpy as np
import pytest
import torch

from avalanche_peftcl.functional import (
    gaussian_kernel_drift,
    linear_drift,
    nearest_neighbour_drift,
    smoothed_ridge_drift,
)
from avalanche_peftcl.functional.drift import _regress

EPS = torch.finfo(torch.float64).eps


def rows(n, width, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, width, generator=generator, dtype=torch.float64)


def error(n, width, condition=1e3):
    """Rounding of a solve with ``n`` rows whose system is conditioned so or better."""
    return EPS * max(n, width) * condition


# --- linear ---------------------------------------------------------------------------------------


def test_a_linear_drift_is_undone_exactly():
    a, old, true = rows(40, 6), rows(5, 6, 1), rows(6, 6, 2)
    found = linear_drift(a, a @ true, ridge=0.0)
    torch.testing.assert_close(old @ found, old @ true, rtol=0, atol=error(40, 6))


def test_sums_of_old_rows_move_as_the_rows_do():
    a, old, true, targets = rows(40, 6), rows(9, 6, 1), rows(6, 6, 2), rows(9, 3, 3)
    found = linear_drift(a, a @ true, ridge=0.0)
    moved = old @ true
    close = {"rtol": 0, "atol": error(40, 6, 1e5)}
    torch.testing.assert_close(found.T @ (old.T @ old) @ found, moved.T @ moved, **close)
    torch.testing.assert_close(found.T @ (old.T @ targets), moved.T @ targets, **close)


@pytest.mark.parametrize("ridge", [0.0, 1e-3, 10.0])
@pytest.mark.parametrize("n", [0, 1, 4, 40])
def test_features_that_stay_give_the_identity_to_the_bit(n, ridge):
    a = rows(n, 6).float()
    found = linear_drift(a, a.clone(), ridge=ridge)
    assert torch.equal(found, torch.eye(6, dtype=torch.float64))


def test_directions_without_images_stay():
    a = rows(20, 6)
    a[:, 4:] = 0
    found = linear_drift(a, 2 * a, ridge=1e-9)
    expected = torch.diag(torch.tensor([2.0, 2, 2, 2, 1, 1], dtype=torch.float64))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-8)  # the penalty is 1e-9


@pytest.mark.parametrize(("n", "width"), [(3, 8), (7, 8), (8, 8), (30, 8)])
def test_linear_against_numpy(n, width):
    a, b, ridge = rows(n, width).numpy(), rows(n, width, 1).numpy(), 0.3
    mu = ridge * np.sum(a**2) / width
    expected = np.eye(width) + np.linalg.solve(a.T @ a + mu * np.eye(width), a.T @ (b - a))
    found = linear_drift(torch.from_numpy(a), torch.from_numpy(b), ridge=ridge)
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=error(n, width))


def test_it_is_the_least_of_what_it_minimises():
    a, b, ridge = rows(12, 5), rows(12, 5, 1), 0.2
    found = linear_drift(a, b, ridge=ridge)
    m = (found - torch.eye(5).double()).requires_grad_()
    mu = ridge * a.square().sum() / 5
    ((b - a - a @ m).square().sum() + mu * m.square().sum()).backward()
    assert m.grad.abs().max() < error(12, 5)


def test_relative_to_the_scale_of_features():
    a, b = rows(12, 5), rows(12, 5, 1)
    one, other = linear_drift(a, b, ridge=0.2), linear_drift(1e3 * a, 1e3 * b, ridge=0.2)
    torch.testing.assert_close(one, other, rtol=0, atol=error(12, 5))


# --- primal and dual ------------------------------------------------------------------------------


@pytest.mark.parametrize("ridge", [1e-3, 1.0])
def test_the_small_system_and_the_large_one_agree(ridge):
    """Rows of zeros change no regression, but make the dual system the larger one."""
    a, b = rows(5, 9), rows(5, 9, 1)
    more = torch.cat([a, torch.zeros(10, 9)]), torch.cat([b, torch.zeros(10, 9)])
    dual, primal = _regress(a, b, ridge), _regress(*more, ridge)
    torch.testing.assert_close(dual, primal, rtol=0, atol=error(15, 9, 9e3 / ridge))


# --- smoothed -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "width"), [(4, 6), (30, 6)])
def test_smoothed_against_a_loop_over_images(n, width):
    a, b, ridge, tau = rows(n, width).numpy(), rows(n, width, 1).numpy(), 0.1, 2.0
    cross, gram = np.zeros((width, width)), np.zeros((width, width))
    for old, new in zip(a, b, strict=True):  # in the paper's columns
        cross += np.outer(new, old)
        gram += np.outer(old, old)
    gamma = ridge * np.trace(gram) / width
    w = np.exp(-n / (tau * width))
    operator = (1 - w) * cross @ np.linalg.inv(gram + gamma * np.eye(width)) + w * np.eye(width)
    found = smoothed_ridge_drift(
        torch.from_numpy(a), torch.from_numpy(b), ridge=ridge, tau=tau
    ).numpy()
    h = rows(3, width, 2).numpy()
    expected = np.stack([operator @ each for each in h])
    np.testing.assert_allclose(h @ found, expected, rtol=0, atol=error(n, width))


def test_few_images_move_little():
    a, b = rows(2, 6), rows(2, 6, 1)
    identity = torch.eye(6, dtype=torch.float64)
    found = [smoothed_ridge_drift(a, b, ridge=0.1, tau=tau) for tau in (1e-2, 1e6)]
    assert (found[0] - identity).norm() > 0.5
    assert (found[1] - identity).norm() < 1e-5
    assert torch.equal(smoothed_ridge_drift(a[:0], b[:0], ridge=0.1, tau=1.0), identity)


# --- means ----------------------------------------------------------------------------------------


def brute(a, b, means, score):
    moved = []
    for m in means:
        weights = np.array([np.exp(score(m, old)) for old in a])
        shift = sum(w * (new - old) for w, old, new in zip(weights, a, b, strict=True))
        moved.append(m + shift / weights.sum())
    return np.stack(moved)


def test_nearest_neighbours_against_brute_force():
    a, b, means = rows(11, 4), rows(11, 4, 1), rows(3, 4, 2)

    def score(m, old):
        return m @ old / np.linalg.norm(m) / np.linalg.norm(old) / 0.1

    expected = brute(a.numpy(), b.numpy(), means.numpy(), score)
    found = nearest_neighbour_drift(a, b, means)
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=error(11, 4))


def test_gaussian_kernel_against_brute_force():
    a, b, means = rows(11, 4), rows(11, 4, 1), rows(3, 4, 2)

    def score(m, old):
        return -np.sum((m - old) ** 2) / (2 * 1.5**2)

    expected = brute(a.numpy(), b.numpy(), means.numpy(), score)
    found = gaussian_kernel_drift(a, b, means, sigma=1.5)
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=error(11, 4))


@pytest.mark.parametrize(
    "rule",
    [
        lambda a, b, m: nearest_neighbour_drift(a, b, m, temperature=0.1),
        lambda a, b, m: gaussian_kernel_drift(a, b, m, sigma=1e-3),
    ],
)
def test_means_stay_where_images_stay_and_where_there_are_none(rule):
    a, means = rows(7, 4), rows(3, 4, 2)
    assert torch.equal(rule(a, a.clone(), means), means)
    assert torch.equal(rule(a[:0], a[:0], means), means)
    shift = torch.ones(4, dtype=torch.float64)  # all images alike: whatever the weights
    torch.testing.assert_close(rule(a, a + shift, means), means + shift)


# --- what does not fit ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda a: linear_drift(a, a[:2], ridge=1.0), "of the same images"),
        (lambda a: linear_drift(a[0], a[0], ridge=1.0), "of the same images"),
        (lambda a: linear_drift(a, a, ridge=-1.0), "ridge must not be negative"),
        (lambda a: smoothed_ridge_drift(a, a, ridge=1.0, tau=0.0), "tau must be positive"),
        (lambda a: nearest_neighbour_drift(a, a, a, temperature=0.0), "temperature must be"),
        (lambda a: gaussian_kernel_drift(a, a, a, sigma=0.0), "sigma must be positive"),
        (lambda a: gaussian_kernel_drift(a, a, a[:, :1], sigma=1.0), r"means must be \(R, D\)"),
    ],
)
def test_what_is_refused(call, told):
    with pytest.raises(ValueError, match=told):
        call(rows(3, 4))
