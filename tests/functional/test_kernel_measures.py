import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge

from avalanche_peftcl.functional import (
    kernel_alignment,
    kernel_drift,
    kernel_map,
    kernel_size,
    predicted_change,
    predicted_refit,
    ridge_coefficients,
    task_complexity,
)


def rows(n, width, *, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, width, generator=generator, dtype=torch.float64)


def test_size_is_that_of_its_eigenvalues():
    h = rows(6, 9)
    kernel = h @ h.T
    values = np.linalg.eigvalsh(kernel.numpy())
    found = kernel_size(kernel.float())
    np.testing.assert_allclose(found.trace, np.trace(kernel.numpy()), rtol=1e-6)
    np.testing.assert_allclose(found.smallest_eigenvalue, values[0], rtol=1e-4)
    np.testing.assert_allclose(found.condition, values[-1] / values[0], rtol=1e-4)


def test_a_singular_kernel_has_no_condition():
    h = rows(6, 3)
    assert kernel_size(h @ h.T).condition == math.inf


def test_map_is_of_norms_and_minds_no_scale_of_a_task():
    h, sizes = rows(9, 5), [4, 2, 3]
    kernel = h @ h.T
    parts = h.split(sizes)
    for i, a in enumerate(parts):
        for j, b in enumerate(parts):
            norm = np.linalg.norm
            own = norm((a @ a.T).numpy()) * norm((b @ b.T).numpy())
            expected = norm((a @ b.T).numpy()) / math.sqrt(own)
            assert float(kernel_map(kernel, sizes)[i, j]) == pytest.approx(expected, rel=1e-12)
    scale = torch.tensor([1.0] * 4 + [7.0] * 5).double()
    scaled = kernel_map(kernel * scale[:, None] * scale, sizes)
    torch.testing.assert_close(scaled, kernel_map(kernel, sizes), rtol=1e-12, atol=0)


def test_orthogonal_tasks_do_not_overlap():
    h = torch.block_diag(rows(3, 4), rows(2, 4, seed=1))
    torch.testing.assert_close(kernel_map(h @ h.T, [3, 2]), torch.eye(2).double())


def test_alignment_is_a_cosine_of_kernels():
    y = torch.eye(3).double()[torch.arange(9) % 3]
    h = rows(9, 4)
    kernel = h @ h.T
    flat, ideal = kernel.numpy().ravel(), (y @ y.T).numpy().ravel()
    expected = flat @ ideal / (np.linalg.norm(flat) * np.linalg.norm(ideal))
    assert kernel_alignment(kernel, y) == pytest.approx(expected, rel=1e-12)
    assert kernel_alignment(5 * y @ y.T, y) == pytest.approx(1, rel=1e-12)


def test_drift_is_relative():
    h = rows(5, 4)
    kernel = h @ h.T
    assert kernel_drift(kernel, kernel) == 0
    assert kernel_drift(3 * kernel, kernel) == pytest.approx(2, rel=1e-12)


@pytest.mark.parametrize("ridge", [0.0, 0.5])
def test_complexity_is_its_formula(ridge):
    h, residual = rows(6, 9), rows(6, 2, seed=1)
    kernel = h @ h.T
    inverse = np.linalg.inv(kernel.numpy() + ridge * np.eye(6))
    e = residual.numpy()
    expected = math.sqrt(np.trace(e.T @ inverse @ e) * np.trace(kernel.numpy())) / 6
    assert task_complexity(kernel, residual, ridge) == pytest.approx(expected, rel=1e-9)
    assert task_complexity(kernel, residual, ridge, n=3) == pytest.approx(2 * expected, rel=1e-9)


def test_without_ridge_a_singular_kernel_has_the_shortest_solution():
    h, y = rows(6, 3), rows(6, 2, seed=1)
    kernel = h @ h.T
    expected = np.linalg.pinv(kernel.numpy(), rcond=1e-10) @ y.numpy()
    np.testing.assert_allclose(ridge_coefficients(kernel, y, 0.0).numpy(), expected, atol=1e-8)


def test_forgetting_of_a_ridge_head_is_predicted_to_rounding():
    """The change of old scores that is measured after fitting again to old and new images."""
    old, new, penalty = rows(30, 7), rows(12, 7, seed=1), 2.5
    y_old, y_new = (
        torch.eye(4).double()[torch.arange(30) % 2],
        torch.eye(4).double()[2 + torch.arange(12) % 2],
    )

    def fitted(h, y):
        return torch.from_numpy(Ridge(alpha=penalty, fit_intercept=False).fit(h, y).coef_.T)

    before = fitted(old.numpy(), y_old.numpy())
    after = fitted(torch.cat([old, new]).numpy(), torch.cat([y_old, y_new]).numpy())
    measured = old @ (after - before)
    error = y_new - new @ before
    refit = predicted_refit(old.T @ old, penalty, new.T @ new, new.T @ error)
    torch.testing.assert_close(old @ refit, measured, rtol=1e-9, atol=1e-10)
    inverse = torch.linalg.inv(old.T @ old + penalty * torch.eye(7).double())
    by_kernel = predicted_change(old @ inverse @ new.T, new @ inverse @ new.T, error, 1.0)
    torch.testing.assert_close(by_kernel, measured, rtol=1e-9, atol=1e-10)


def test_forgetting_of_a_linear_head_that_trains_on_new_images_alone_is_predicted_to_rounding():
    """The head starts where it is, and ridge holds it there."""
    old, new, ridge = rows(8, 7), rows(12, 7, seed=1), 0.7
    start, y = rows(7, 3, seed=2), rows(12, 3, seed=3)
    judge = Ridge(alpha=ridge, fit_intercept=False).fit(new.numpy(), (y - new @ start).numpy())
    measured = old @ torch.from_numpy(judge.coef_.T)
    found = predicted_change(old @ new.T, new @ new.T, y - new @ start, ridge)
    torch.testing.assert_close(found, measured, rtol=1e-9, atol=1e-10)
