import numpy as np
import pytest
import torch
from peftcl_adapters.random_ridge import RandomRidgeHead, build_random_ridge
from peftcl_adapters.ridge import generalised_cross_validation, penalties, spectrum
from sklearn.linear_model import Ridge

from avalanche_peftcl.errors import ConfigError, NotFiniteError
from avalanche_peftcl.models import export_spec


def images(n, *, n_classes, seed=0, dim=6):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(n_classes, (n,), generator=generator)
    centres = torch.randn(n_classes, dim, generator=generator)
    return centres[rows] + torch.randn(n, dim, generator=generator), rows


def fit(head, features, rows, *, experiences, minibatch):
    """Show ``head`` the images of each experience, given by their numbers, in minibatches."""
    for numbers in experiences:
        head.grow(max(len(head.counts), 1 + int(rows[numbers].max())))
        for part in numbers.split(minibatch):
            head.observe(features[part], rows[part])
        head.settle()
    return head


@pytest.fixture
def fitted():
    """A head that was shown 40 images of 2 classes, and their features."""
    features, rows = images(40, n_classes=2)
    head = RandomRidgeHead(6, n_features=30, seed=0)
    return fit(head, features, rows, experiences=[torch.arange(40)], minibatch=40), features


@pytest.mark.parametrize("n_features", [20, 300])  # fewer and more than images
def test_it_is_ridge_regression_in_any_order(n_features):
    features, rows = images(120, n_classes=4)
    by_class = rows.argsort(stable=True)
    one_by_one = list(by_class.split(rows.bincount().tolist()))
    orders = {
        "a class at a time": (one_by_one, 7),
        "all at once": ([by_class], 120),
        "classes met again": ([by_class[::2], by_class[1::2]], 50),
        "shuffled": (list(torch.randperm(120).split(41)), 16),
    }
    test, _ = images(30, n_classes=4, seed=1)
    for experiences, minibatch in orders.values():
        head = RandomRidgeHead(6, n_features=n_features, seed=3)
        fit(head, features, rows, experiences=experiences, minibatch=minibatch)
        logits = head(test)
        ridge = Ridge(alpha=float(head.penalty), fit_intercept=False, solver="svd")
        ridge.fit(head.random_features(features).double(), torch.eye(4)[rows].double())
        expected = ridge.predict(head.random_features(test).double())
        np.testing.assert_allclose(logits.numpy(), expected, atol=2e-5)
        assert float(head.penalty) > 0
        assert torch.equal(head.counts, rows.bincount())


@pytest.mark.parametrize(("n", "n_features"), [(40, 12), (12, 40), (20, 20)])
def test_generalised_cross_validation_is_its_formula(n, n_features):
    generator = torch.Generator().manual_seed(0)
    h = torch.randn(n, n_features, generator=generator, dtype=torch.float64).relu()
    y = torch.eye(3).double()[torch.arange(n) % 3]
    there = spectrum(h.T @ h, h.T @ y, n=n)
    grid = penalties(there)[16:]  # below, the inverse of the brute force is one of rounding
    gcv = generalised_cross_validation(there, grid)
    for penalty, value in zip(grid, gcv, strict=True):
        hat = h @ torch.linalg.inv(h.T @ h + penalty * torch.eye(n_features)) @ h.T
        error = (y - hat @ y).square().sum() / n
        expected = error / (1 - hat.trace() / n) ** 2
        torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-8)
    assert bool(generalised_cross_validation(there, penalties(there)).isfinite().all())


def test_the_penalty_is_the_best_of_the_grid_and_grows_with_noise():
    features, rows = images(200, n_classes=3)
    shuffled = rows[torch.randperm(200, generator=torch.Generator().manual_seed(0))]
    chosen = []
    for targets in (rows, shuffled):
        head = RandomRidgeHead(6, n_features=50, seed=0)
        fit(head, features, targets, experiences=[torch.arange(200)], minibatch=64)
        head.solve()
        there = spectrum(head.gram, head.sums.T, n=200)
        grid = penalties(there)
        best = generalised_cross_validation(there, grid).min()
        mine = generalised_cross_validation(there, head.penalty[None])[0]
        torch.testing.assert_close(mine, best)
        chosen.append(float(head.penalty))
    assert chosen[0] < chosen[1]


def test_a_class_without_an_image_is_not_predicted(fitted):
    head, features = fitted
    before = head(features)
    head.grow(3)
    logits = head(features)
    assert torch.equal(logits[:, :2], before)
    assert bool((logits[:, 2] == -1000).all())


def test_solved_when_asked_for_and_saved_either_way(fitted):
    head, features = fitted
    assert not bool(head.weight.any())
    unsolved = {name: value.clone() for name, value in head.state_dict().items()}
    logits = head(features)
    for state in (unsolved, head.state_dict()):
        again = RandomRidgeHead(6, n_features=30)  # another projection, until it is loaded
        again.load_state_dict(state)
        assert torch.equal(again(features), logits)


def test_half_precision_of_the_network_does_not_reach_it(fitted):
    head, features = fitted
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = head(features)
    assert torch.equal(inside, head(features))


def test_the_seed_is_of_the_projection_and_of_nothing_else():
    state = torch.get_rng_state()
    one, two = (RandomRidgeHead(3, n_features=5, seed=1).projection for _ in range(2))
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(one, two)
    torch.manual_seed(0)
    drawn = RandomRidgeHead(3, n_features=5).projection
    torch.manual_seed(0)
    assert torch.equal(RandomRidgeHead(3, n_features=5).projection, drawn)
    assert not torch.equal(RandomRidgeHead(3, n_features=5).projection, drawn)


def test_features_that_are_no_numbers_are_refused():
    head = RandomRidgeHead(2, n_features=4)
    head.grow(1)
    head.observe(torch.tensor([[float("inf"), 0.0]]), torch.tensor([0]))
    with pytest.raises(NotFiniteError, match="the sums of random features"):
        head.settle()


def test_it_cannot_move_and_says_so():
    with pytest.raises(ConfigError, match="a RandomRidgeHead cannot move"):
        RandomRidgeHead(2, n_features=4).move(lambda z: z)


def test_it_is_built_again():
    spec = export_spec(build_random_ridge(in_features=3, n_features=8, seed=2))
    assert spec.to_json() == {
        "build": "peftcl_adapters.random_ridge:build_random_ridge",
        "options": {"in_features": 3, "n_features": 8, "seed": 2},
    }
