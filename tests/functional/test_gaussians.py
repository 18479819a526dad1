import numpy as np
import pytest
import torch
from sklearn.covariance import ledoit_wolf, oas, shrunk_covariance

from avalanche_peftcl.functional import (
    centred_fourth_moment,
    ledoit_wolf_shrinkage,
    oas_shrinkage,
    shrink,
    within_scatter,
)


def sums(z, rows):
    targets = torch.eye(4).double()[rows]
    return targets.T @ z, rows.bincount(minlength=4)


@pytest.fixture(params=[(60, 5), (12, 20), (4, 3)], ids=str)
def data(request):
    """Rows of three of four classes, far from zero, and the same about their class means."""
    n, width = request.param
    generator = torch.Generator().manual_seed(0)
    z = 3 + torch.randn(n, width, generator=generator, dtype=torch.float64)
    z = z * torch.linspace(0.2, 2, width)
    rows = torch.arange(n) % 3
    means = torch.stack([z[rows == row].mean(dim=0) for row in range(3)])
    return z, rows, z - means[rows]


def test_scatter_is_that_about_the_means(data):
    z, rows, centred = data
    torch.testing.assert_close(within_scatter(z.T @ z, *sums(z, rows)), centred.T @ centred)


def test_shrunk_covariances_are_scikit_learns(data):
    z, rows, centred = data
    n = len(z)
    plain = within_scatter(z.T @ z, *sums(z, rows)) / n
    expected, share = oas(centred.numpy(), assume_centered=True)
    assert float(oas_shrinkage(plain, n)) == pytest.approx(share)
    np.testing.assert_allclose(shrink(plain, oas_shrinkage(plain, n)), expected)
    np.testing.assert_allclose(shrink(plain, 0.3), shrunk_covariance(plain.numpy(), 0.3))
    square = z.square().sum(dim=1)
    fourth, _ = sums(square.square()[:, None], rows)
    cubed, _ = sums(square[:, None] * z, rows)
    grams = torch.stack([z[rows == r].T @ z[rows == r] for r in range(4)])
    moment = centred_fourth_moment(fourth[:, 0], cubed, grams, *sums(z, rows))
    torch.testing.assert_close(moment, centred.square().sum(dim=1).square().sum())
    expected, share = ledoit_wolf(centred.numpy(), assume_centered=True)
    assert float(ledoit_wolf_shrinkage(plain, n, moment)) == pytest.approx(share)
    np.testing.assert_allclose(shrink(plain, ledoit_wolf_shrinkage(plain, n, moment)), expected)


def test_no_scatter_at_all_shrinks_to_the_end_or_not_at_all_but_to_numbers():
    nothing = torch.zeros(3, 3).double()
    assert float(oas_shrinkage(nothing, 1)) == 1
    assert float(ledoit_wolf_shrinkage(nothing, 1, torch.zeros(()).double())) == 0
