import time

import pytest
import torch

from avalanche_peftcl.functional import (
    generalised_cross_validation,
    kernel_spectrum,
    penalties,
    scale_free_cross_validation,
    spectrum,
)


def rows(n, width, *, seed=0):
    generator = torch.Generator().manual_seed(seed)
    h = torch.randn(n, width, generator=generator, dtype=torch.float64).relu()
    return h, torch.eye(3).double()[torch.arange(n) % 3]


@pytest.mark.parametrize(("n", "width"), [(40, 12), (12, 40), (20, 20)])
@pytest.mark.parametrize("as_kernel", [False, True])
def test_criteria_are_their_formulas(n, width, as_kernel):
    h, y = rows(n, width)
    there = kernel_spectrum(h @ h.T, y) if as_kernel else spectrum(h.T @ h, h.T @ y, n=n)
    grid = penalties(there)[16:]  # below, the inverse of the brute force is one of rounding
    gcv = generalised_cross_validation(there, grid)
    free = scale_free_cross_validation(there, grid)
    for i, penalty in enumerate(grid):
        hat = h @ torch.linalg.inv(h.T @ h + penalty * torch.eye(width)) @ h.T
        leverage = hat.trace() / n
        expected = (y - hat @ y).square().sum() / n / (1 - leverage) ** 2
        torch.testing.assert_close(gcv[i], expected, rtol=1e-4, atol=1e-8)
        left_out = (hat @ y - leverage * y) / (1 - leverage)
        inner = (y * left_out).sum()
        expected = 1 - inner * inner.abs() / n / left_out.square().sum()
        torch.testing.assert_close(free[i], expected, rtol=1e-4, atol=1e-6)
    for criterion in (generalised_cross_validation, scale_free_cross_validation):
        assert bool(criterion(there, penalties(there)).isfinite().all())


def test_scores_whose_factor_is_free_ask_for_no_less_shrinkage_than_they_need():
    """Multiplying all scores changes nothing: GCV sees it, the other does not."""
    h, y = rows(40, 12)
    there = spectrum(h.T @ h, h.T @ y, n=40)
    large = penalties(there)[-8:]  # scores fall as 1 / penalty, their direction stays
    free = scale_free_cross_validation(there, large)
    torch.testing.assert_close(free, free[-1].expand(8), rtol=0, atol=1e-5)
    assert generalised_cross_validation(there, large).diff().gt(0).all()


@pytest.mark.parametrize("rank", [30, 5])
def test_a_gram_of_few_images_has_the_same_spectrum_in_less_time_than_the_whole(rank):
    h, y = rows(30, 200)
    h = h[torch.arange(30) % rank]
    gram, targets = h.T @ h, h.T @ y
    quick = spectrum(gram, targets, n=30)
    values, vectors = torch.linalg.eigh(gram)
    assert quick.values.shape == (rank,)
    eps = torch.finfo(torch.float64).eps
    bound = 200 * eps * float(values[-1])
    torch.testing.assert_close(quick.values, values[-rank:], rtol=0, atol=bound)
    for penalty in (1e-6 * values[-1], values[-1]):
        weight = quick.solve(penalty)
        inverse = vectors / (values + penalty) @ vectors.T
        tolerance = 100 * bound / float(penalty)
        torch.testing.assert_close(h @ weight, h @ inverse @ targets, rtol=0, atol=tolerance)


@pytest.mark.slow
def test_the_range_of_few_images_is_found_much_quicker():
    h = torch.randn(150, 2_000, dtype=torch.float64)
    gram, targets = h.T @ h, h.T @ torch.eye(10).double()[torch.arange(150) % 10]
    start = time.perf_counter()
    spectrum(gram, targets, n=150)
    quick = time.perf_counter() - start
    start = time.perf_counter()
    torch.linalg.eigh(gram)
    assert quick < (time.perf_counter() - start) / 2


def test_the_random_columns_touch_no_generator_and_are_the_same_each_time():
    h, y = rows(5, 60)
    state = torch.get_rng_state()
    one, two = (spectrum(h.T @ h, h.T @ y, n=5) for _ in range(2))
    assert torch.equal(one.vectors, two.vectors)
    assert torch.equal(torch.get_rng_state(), state)
