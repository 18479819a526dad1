"""Regressions in closed form: of the features, of random ones, and of a kernel."""

import math

import numpy as np
import pytest
import torch
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import Ridge

from avalanche_peftcl.errors import ConfigError, NotFiniteError
from avalanche_peftcl.functional import median_distance
from avalanche_peftcl.functional import ridge as formulas
from avalanche_peftcl.models import (
    ExactKernelRidgeHead,
    GaussianHead,
    KernelRidgeHead,
    LDAHead,
    LinearDrift,
    RandomRidgeHead,
    RidgeHead,
    ShiftDrift,
    build_kernel_ridge,
    build_random_ridge,
    export_spec,
)
from avalanche_peftcl.models.heads import exact_kernel_ridge, regression


def images(n, *, n_classes, seed=0, dim=6):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(n_classes, (n,), generator=generator)
    centres = torch.randn(n_classes, dim, generator=generator)
    return centres[rows] + torch.randn(n, dim, generator=generator), rows


def fit(head, features, rows, *, experiences=None, minibatch=40):
    """Show ``head`` the images of each experience, given by their numbers, in minibatches."""
    for numbers in [torch.arange(len(rows))] if experiences is None else experiences:
        head.grow(max(len(head.counts), 1 + int(rows[numbers].max())))
        for part in numbers.split(minibatch):
            head.observe(features[part], rows[part])
        head.settle()
    return head


def orders(rows):
    """Return experiences and sizes of minibatches: orders of the same stream."""
    by_class, generator = rows.argsort(stable=True), torch.Generator().manual_seed(0)
    one_by_one = list(by_class.split(rows.bincount().tolist()))
    return {
        "a class at a time": (one_by_one, 7),
        "all at once": ([by_class], len(rows)),
        "classes met again": ([by_class[::2], by_class[1::2]], 50),
        "online chunks": (list(torch.arange(len(rows)).split(15)), 1),
        "shuffled": (list(torch.randperm(len(rows), generator=generator).split(41)), 16),
    }


MAKE = {
    "ridge": lambda: RidgeHead(6),
    "scale free": lambda: RidgeHead(6, penalty="scale_free", penalty_factor=0.5),
    "given": lambda: RidgeHead(6, penalty=3.5),
    "fewer random features than images": lambda: RandomRidgeHead(6, n_features=20, seed=3),
    "more random features than images": lambda: RandomRidgeHead(6, n_features=300, seed=3),
    "kernel": lambda: KernelRidgeHead(6, n_features=50, bandwidth=2.0, seed=3),
}


@pytest.fixture
def fitted():
    """A head that was shown 40 images of 2 classes, and their features."""
    features, rows = images(40, n_classes=2)
    return fit(RandomRidgeHead(6, n_features=30, seed=0), features, rows), features


@pytest.mark.parametrize("kind", MAKE)
def test_it_is_ridge_regression_in_any_order(kind):
    features, rows = images(120, n_classes=4)
    test, _ = images(30, n_classes=4, seed=1)
    for experiences, minibatch in orders(rows).values():
        head = fit(MAKE[kind](), features, rows, experiences=experiences, minibatch=minibatch)
        ridge = Ridge(alpha=float(head.penalty), fit_intercept=False, solver="svd")
        ridge.fit(head.regressors(features).double(), torch.eye(4)[rows].double())
        expected = ridge.predict(head.regressors(test).double())
        np.testing.assert_allclose(head(test).numpy(), expected, atol=2e-5)
        assert float(head.penalty) > 0
        assert torch.equal(head.counts, rows.bincount())


def test_a_penalty_that_is_given_is_taken_and_a_factor_multiplies_what_was_chosen():
    features, rows = images(60, n_classes=3)
    assert float(fit(RidgeHead(6, penalty=3.5), features, rows).penalty) == 3.5
    for criterion in ("gcv", "scale_free"):
        chosen = fit(RidgeHead(6, penalty=criterion), features, rows).penalty
        times = fit(RidgeHead(6, penalty=criterion, penalty_factor=4.0), features, rows).penalty
        torch.testing.assert_close(times, 4 * chosen)


@pytest.mark.parametrize("criterion", ["gcv", "scale_free"])
def test_the_penalty_is_the_best_of_the_grid_and_grows_with_noise(criterion):
    of = {
        "gcv": formulas.generalised_cross_validation,
        "scale_free": formulas.scale_free_cross_validation,
    }[criterion]
    features, rows = images(200, n_classes=3)
    shuffled = rows[torch.randperm(200, generator=torch.Generator().manual_seed(0))]
    chosen = []
    for targets in (rows, shuffled):
        head = RandomRidgeHead(6, n_features=50, seed=0, penalty=criterion)
        fit(head, features, targets, minibatch=64)
        there = formulas.spectrum(head.gram, head.sums.T, n=200)
        best = of(there, formulas.penalties(there)).min()
        torch.testing.assert_close(of(there, head.penalty[None])[0], best)
        chosen.append(float(head.penalty))
    assert chosen[0] < chosen[1]


@pytest.mark.parametrize("criterion", ["gcv", "scale_free"])
@pytest.mark.parametrize("n", [1, 2])
def test_one_image_or_one_a_class_is_enough(criterion, n):
    features = 3 * torch.eye(4)[:n]
    head = fit(RidgeHead(4, penalty=criterion), features, torch.arange(n))
    assert math.isfinite(float(head.penalty))
    assert head(features).argmax(dim=1).tolist() == list(range(n))


def test_a_class_without_an_image_is_not_predicted(fitted):
    head, features = fitted
    before = head(features)
    head.grow(3)
    logits = head(features)
    assert torch.equal(logits[:, :2], before)
    assert bool((logits[:, 2] == -1000).all())


def test_it_is_solved_where_it_settles_once_and_never_in_a_prediction(fitted, monkeypatch):
    head, features = fitted
    solved = []
    monkeypatch.setattr(
        "avalanche_peftcl.models.heads.regression.spectrum",
        lambda *args, **kwargs: solved.append(0) or formulas.spectrum(*args, **kwargs),
    )
    head.observe(features, torch.arange(40) % 2)
    before = head(features)
    assert not solved
    unsolved = {name: value.clone() for name, value in head.state_dict().items()}
    head.settle()
    head.settle()
    assert len(solved) == 1
    assert not torch.equal(head(features), before)
    again = RandomRidgeHead(6, n_features=30)  # another projection, until it is loaded
    again.load_state_dict(unsolved)
    again.settle()
    assert torch.equal(again(features), head(features))


@pytest.mark.parametrize("kind", MAKE)
def test_images_that_are_taken_out_were_never_seen(kind):
    features, rows = images(90, n_classes=4)
    head = fit(MAKE[kind](), features, rows)
    gone = rows == 1
    gone[:30] = True
    head.remove(features[gone], rows[gone])
    head.settle()
    other = MAKE[kind]()
    other.grow(4)
    fit(other, features[~gone], rows[~gone])
    torch.testing.assert_close(head(features), other(features), atol=1e-4, rtol=1e-4)
    assert head(features)[:, 1].eq(-1000).all()
    head.remove(features[~gone], rows[~gone])
    head.settle()
    assert head(features).eq(-1000).all()
    assert not head.weight.any()


def test_more_than_there_is_cannot_be_taken_out(fitted):
    head, features = fitted
    head.remove(features, torch.zeros(40, dtype=torch.long))
    with pytest.raises(ConfigError, match=r"more images of rows \[0\] were removed"):
        head.settle()


@pytest.mark.parametrize("columns", [None, slice(2, 5)])
def test_a_linear_drift_gives_the_sums_of_moved_rows_and_its_inverse_takes_it_back(columns):
    features, rows = images(50, n_classes=3)
    head = fit(RidgeHead(6), features, rows)
    before = head(features)
    width = 3 if columns else 6
    matrix = torch.randn(width, width, generator=torch.Generator().manual_seed(0)).double()
    drift = LinearDrift(matrix, columns)
    head.move(drift)
    moved = drift(features.double())
    torch.testing.assert_close(head.gram, moved.T @ moved)
    torch.testing.assert_close(head.sums, torch.eye(3).double()[rows].T @ moved)
    head.move(LinearDrift(torch.linalg.inv(matrix), columns))
    head.settle()
    torch.testing.assert_close(head(features), before, atol=1e-4, rtol=1e-4)


def test_another_drift_moves_means_and_keeps_the_scatter():
    features, rows = images(50, n_classes=3)
    head = fit(RidgeHead(6), features, rows)
    shift = torch.randn(3, 6, generator=torch.Generator().manual_seed(0)).double()
    head.move(ShiftDrift(lambda means: means + shift))
    moved = features.double() + shift[rows]
    torch.testing.assert_close(head.gram, moved.T @ moved)
    torch.testing.assert_close(head.sums, torch.eye(3).double()[rows].T @ moved)


def test_half_precision_of_the_network_does_not_reach_it(fitted):
    head, features = fitted
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = head(features)
        again = fit(RandomRidgeHead(6, n_features=30, seed=0), *images(40, n_classes=2))
    assert torch.equal(inside, head(features))
    assert torch.equal(again.gram, head.gram)


@pytest.mark.parametrize(
    ("kind", "drawn"), [(RandomRidgeHead, "projection"), (KernelRidgeHead, "phases")]
)
def test_the_seed_is_of_the_random_features_and_of_nothing_else(kind, drawn):
    state = torch.get_rng_state()
    one, two = (getattr(kind(3, n_features=5, seed=1), drawn) for _ in range(2))
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(one, two)
    torch.manual_seed(0)
    first = getattr(kind(3, n_features=5), drawn)
    torch.manual_seed(0)
    assert torch.equal(getattr(kind(3, n_features=5), drawn), first)
    assert not torch.equal(getattr(kind(3, n_features=5), drawn), first)


@pytest.mark.parametrize(
    "head",
    [
        RidgeHead(2),
        RandomRidgeHead(2, n_features=4),
        KernelRidgeHead(2, n_features=4),
        KernelRidgeHead(2, n_features=4, bandwidth=1.0),
        ExactKernelRidgeHead(2),
    ],
)
def test_features_that_are_no_numbers_are_refused(head):
    head.grow(1)
    head.observe(torch.tensor([[float("nan"), 0.0]]), torch.tensor([0]))
    with pytest.raises(NotFiniteError, match=r"of a (kernel )?regression are not finite"):
        head.settle()


@pytest.mark.parametrize(
    "head", [RandomRidgeHead(2, n_features=4), KernelRidgeHead(2, n_features=4)]
)
def test_random_features_cannot_move_and_say_so(head):
    with pytest.raises(ConfigError, match=f"a {type(head).__name__} cannot move"):
        head.move(LinearDrift(torch.eye(2)))


def test_features_that_are_too_wide_are_refused():
    with pytest.raises(ConfigError, match=r"width 20,000 are too wide: .* 3.0 GiB"):
        RidgeHead(20_000)


def test_it_is_built_again():
    spec = export_spec(build_random_ridge(in_features=3, n_features=8, seed=2))
    assert spec.to_json() == {
        "build": "avalanche_peftcl.models.heads.random_ridge:build_random_ridge",
        "options": {
            "in_features": 3,
            "n_features": 8,
            "seed": 2,
            "penalty": "gcv",
            "penalty_factor": 1.0,
        },
    }


# --- kernels -------------------------------------------------------------------------------------


def kernel_regression(head, features, rows, test):
    gamma = 1 / (2 * float(head.bandwidth) ** 2)
    there = KernelRidge(alpha=float(head.penalty), kernel="rbf", gamma=gamma)
    there.fit(features.double().numpy(), torch.eye(4).double()[rows].numpy())
    return torch.from_numpy(there.predict(test.double().numpy()))


def test_the_exact_kernel_is_scikit_learns_in_any_order():
    features, rows = images(60, n_classes=4)
    test, _ = images(20, n_classes=4, seed=1)
    for experiences, minibatch in orders(rows).values():
        head = ExactKernelRidgeHead(6, bandwidth=2.0)
        for numbers in experiences:
            head.grow(max(len(head.weight), 1 + int(rows[numbers].max())))
            for part in numbers.split(minibatch):
                head.observe(features[part], rows[part])
            head.settle()
        expected = kernel_regression(head, features, rows, test)
        torch.testing.assert_close(head(test).double(), expected, atol=1e-4, rtol=0)


@pytest.mark.slow
def test_random_features_approach_the_kernel():
    features, rows = images(60, n_classes=4)
    test, _ = images(20, n_classes=4, seed=1)
    apart = []
    for n_features in (100, 10_000):
        head = KernelRidgeHead(6, n_features=n_features, bandwidth=2.0, seed=0, penalty=1.0)
        fit(head, features, rows)
        apart.append((head(test) - kernel_regression(head, features, rows, test)).square().mean())
    assert apart[1].sqrt() < 0.01
    assert 20 < apart[0] / apart[1] < 500  # of order 1 / M, which is a hundredth


def test_leave_one_out_of_the_exact_kernel_is_what_its_penalty_is_chosen_by():
    features, rows = images(30, n_classes=3)
    head = ExactKernelRidgeHead(6, bandwidth=2.0)
    head.grow(3)
    head.observe(features, rows)
    head.settle()
    squared = torch.cdist(features.double(), features.double()).square()
    kernel, targets = torch.exp(-squared / 8), torch.eye(3).double()[rows]
    grid = formulas.penalties(formulas.kernel_spectrum(kernel, targets))[16:]
    errors = []
    for penalty in grid:
        left = torch.eye(30) - kernel @ torch.linalg.inv(kernel + penalty * torch.eye(30))
        errors.append((left @ targets).square().mean() / (left.trace() / 30) ** 2)
    torch.testing.assert_close(head.penalty, grid[int(torch.stack(errors).argmin())])


def test_the_bandwidth_is_the_median_of_the_first_experience_and_stays():
    features, rows = images(40, n_classes=2)
    expected = float(torch.pdist(features).median())
    for head in (KernelRidgeHead(6, n_features=20), ExactKernelRidgeHead(6)):
        head.grow(2)
        for part in torch.randperm(40).split(7):
            head.observe(features[part], rows[part])
        head.settle()
        assert float(head.bandwidth) == pytest.approx(expected)
        head.observe(9 * features, rows)
        head.settle()
        assert float(head.bandwidth) == pytest.approx(expected)


def test_an_exact_kernel_lets_go_of_images_and_refuses_strangers():
    features, rows = images(40, n_classes=3)
    head = ExactKernelRidgeHead(6, bandwidth=2.0)
    head.grow(3)
    head.observe(features, rows)
    head.settle()
    head.remove(features[:15], rows[:15])
    assert head(features).isfinite().all()  # before it settles too
    head.settle()
    other = ExactKernelRidgeHead(6, bandwidth=2.0)
    other.grow(3)
    other.observe(features[15:], rows[15:])
    other.settle()
    assert torch.equal(head(features), other(features))
    with pytest.raises(ConfigError, match="an image of row 0 that is to be removed"):
        head.remove(features[:1], torch.tensor([0]))


def test_more_images_than_fit_are_refused(monkeypatch):
    monkeypatch.setattr(exact_kernel_ridge, "MOST_IMAGES", 3)
    head = build_kernel_ridge(in_features=2, exact=True)
    head.grow(1)
    with pytest.raises(ConfigError, match="keeps at most 3 images, not 4"):
        head.observe(torch.ones(4, 2), torch.zeros(4, dtype=torch.long))


def test_the_median_minds_no_order_and_equal_rows_have_one_too():
    rows = torch.randn(2_500, 3, generator=torch.Generator().manual_seed(0))
    some, all_ = median_distance(rows), float(torch.pdist(rows.double()).median())
    assert median_distance(rows.flip(0)) == some
    assert some == pytest.approx(all_, rel=0.05)
    assert median_distance(torch.ones(3, 4)) == 2
    assert median_distance(torch.zeros(1, 4)) == 1


# --- what a file holds ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        *MAKE.values(),
        lambda: KernelRidgeHead(6, n_features=50),
        lambda: LDAHead(6),
        lambda: GaussianHead(6),
    ],
)
def test_without_its_statistics_a_head_predicts_the_same_and_learns_no_further(make):
    features, rows = images(40, n_classes=3)
    torch.manual_seed(0)
    head, new = fit(make(), features, rows), make()
    state = head.state_dict()
    assert set(head.statistics) < set(state)
    new.load_state_dict(
        {name: value for name, value in state.items() if name not in head.statistics}
        | {name: value for name, value in new.state_dict().items() if name in head.statistics}
    )
    assert torch.equal(new(features), head(features))
    new.settle()
    assert torch.equal(new(features), head(features))
    new.grow(5)
    # on some processors a product's columns round by how many there are
    torch.testing.assert_close(new(features)[:, :3], head(features), rtol=1e-5, atol=1e-5)
    for learn in (new.observe, new.remove):
        with pytest.raises(ConfigError, match="from an exported file can predict but not learn on"):
            learn(features, rows)


@pytest.mark.parametrize("criterion", ["gcv", "scale_free"])
def test_of_penalties_that_are_equally_good_the_middle_one_is_taken(criterion, monkeypatch):
    values = torch.ones(65).double()
    values[[3, 40, 60]] = torch.tensor([0.5 * (1 - 1e-14), 0.5, 0.5 * (1 + 1e-14)]).double()
    monkeypatch.setitem(regression._CRITERIA, criterion, lambda there, grid: values)
    there = formulas.spectrum(torch.eye(2).double(), torch.eye(2).double(), n=2)
    chosen = regression.choose_penalty(there, criterion)
    torch.testing.assert_close(chosen, formulas.penalties(there)[40])
