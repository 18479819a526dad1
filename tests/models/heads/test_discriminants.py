"""Class Gaussians in closed form, with one covariance and with many."""

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal
from sklearn.covariance import ledoit_wolf, oas
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from avalanche_peftcl.errors import ConfigError, NotFiniteError
from avalanche_peftcl.models import (
    GaussianHead,
    LDAHead,
    LinearDrift,
    ShiftDrift,
    build_gaussian,
    export_spec,
)
from avalanche_peftcl.models.heads.posterior import log_posterior

D, R = 5, 3


def images(n=60, *, seed=0):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.multinomial(torch.tensor([0.5, 0.3, 0.2]), n, True, generator=generator)
    rows[:R] = torch.arange(R)
    mix = torch.randn(R, D, D, generator=torch.Generator().manual_seed(9))
    noise = torch.randn(n, 1, D, generator=generator) @ mix[rows]
    return 2 + torch.eye(R, D)[rows] + noise[:, 0], rows


def fit(head, features, rows, *, experiences=None, minibatch=100):
    head.grow(R)
    for numbers in [torch.arange(len(rows))] if experiences is None else experiences:
        for part in numbers.split(minibatch):
            head.observe(features[part], rows[part])
        head.settle()
    return head


def unbent(logits):
    """Return the log probabilities before they were bent."""
    return logits.double() / (1 + logits.double() / 900)


def centred(features, rows):
    z = features.double().numpy()
    means = np.stack([z[rows == row].mean(axis=0) for row in range(R)])
    return z - means[rows], means


@pytest.mark.parametrize("order", ["once", "by class", "minibatches of one", "met again"])
def test_it_is_scikit_learns_discriminant_analysis_in_any_order(order):
    features, rows = images()
    by_class = rows.argsort(stable=True)
    experiences, minibatch = {
        "once": (None, 100),
        "by class": (list(by_class.split(rows.bincount().tolist())), 7),
        "minibatches of one": (list(torch.arange(60).split(20)), 1),
        "met again": ([by_class[::2], by_class[1::2]], 11),
    }[order]
    head = fit(
        LDAHead(D, shrinkage=0.3), features, rows, experiences=experiences, minibatch=minibatch
    )
    there = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=0.3)
    there.fit(features.double().numpy(), rows.numpy())
    test, _ = images(30, seed=1)
    expected = torch.from_numpy(there.predict_log_proba(test.double().numpy()))
    torch.testing.assert_close(unbent(head(test)), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("pooling", [0.2, 1.0])
@pytest.mark.parametrize("shrinkage", ["oas", "ledoit_wolf", 0.4])
def test_gaussians_are_those_of_an_independent_computation(pooling, shrinkage):
    features, rows = images()
    apart, means = centred(features, rows)
    pooled, n = apart.T @ apart, len(rows)
    estimate = {"oas": oas, "ledoit_wolf": ledoit_wolf}.get(shrinkage, lambda *_, **__: (0, 0.4))
    share = estimate(apart, assume_centered=True)[1]
    head = fit(GaussianHead(D, pooling=pooling, shrinkage=shrinkage), features, rows)
    assert float(head.shrunk) == pytest.approx(share)
    test, _ = images(30, seed=1)
    scores = []
    for row in range(R):
        own = apart[rows == row]
        scatter = (1 - pooling) * own.T @ own + pooling * pooled
        covariance = scatter / ((1 - pooling) * len(own) + pooling * n)
        covariance = (1 - share) * covariance + share * np.trace(covariance) / D * np.eye(D)
        density = multivariate_normal(means[row], covariance)
        scores.append(density.logpdf(test.double().numpy()) + np.log(len(own) / n))
    expected = torch.from_numpy(np.stack(scores, axis=1)).log_softmax(dim=1)
    torch.testing.assert_close(unbent(head(test)), expected, rtol=1e-3, atol=1e-3)


def test_one_covariance_for_all_is_linear_discriminant_analysis():
    features, rows = images()
    pooled, linear = GaussianHead(D, pooling=1.0), LDAHead(D)
    one, other = (fit(head, features, rows)(features) for head in (pooled, linear))
    torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)


KINDS = [LDAHead, GaussianHead, lambda width: GaussianHead(width, shrinkage="ledoit_wolf")]


@pytest.mark.parametrize("kind", KINDS)
def test_images_that_are_taken_out_were_never_seen(kind):
    features, rows = images()
    head, gone = fit(kind(D), features, rows), (torch.arange(60) < 20) | (rows == 2)
    head.remove(features[gone], rows[gone])
    head.settle()
    other = fit(kind(D), features[~gone], rows[~gone])
    torch.testing.assert_close(head(features), other(features), rtol=1e-4, atol=1e-4)
    assert head(features)[:, 2].eq(-1000).all()
    head.remove(features[gone][:1], torch.tensor([2]))
    with pytest.raises(ConfigError, match=r"more images of rows \[2\] were removed"):
        head.settle()


@pytest.mark.parametrize("kind", KINDS[:2])
def test_drifts_move_means_and_covariances(kind):
    features, rows = images()
    generator = torch.Generator().manual_seed(0)
    linear = LinearDrift(torch.randn(3, 3, generator=generator), slice(1, 4))
    offsets = torch.randn(R, D, generator=generator)
    shift = ShiftDrift(lambda means: means + offsets)
    for drift, moved in ((linear, linear(features)), (shift, features + offsets[rows])):
        head = fit(kind(D), features, rows)
        head.move(drift)
        head.settle()
        other = fit(kind(D), moved, rows)
        torch.testing.assert_close(head(moved), other(moved), rtol=1e-3, atol=1e-3)


def test_fourth_moments_cannot_follow():
    with pytest.raises(ConfigError, match="where its shrinkage is 'ledoit_wolf'"):
        GaussianHead(D, shrinkage="ledoit_wolf").move(LinearDrift(torch.eye(D)))


@pytest.mark.parametrize("kind", KINDS)
def test_one_image_a_class_is_the_nearest_mean(kind):
    head, features = kind(D), 4 * torch.eye(3, D)
    fit(head, features, torch.arange(3))
    assert head(features + 0.1).argmax(dim=1).tolist() == [0, 1, 2]
    head = kind(D)
    fit(head, torch.zeros(1, D), torch.tensor([1]))  # no length either
    assert head(torch.zeros(1, D)).tolist() == [[-1000, 0, -1000]]


@pytest.mark.parametrize("kind", KINDS)
def test_features_that_are_no_numbers_are_refused(kind):
    head = kind(2)
    head.grow(1)
    head.observe(torch.tensor([[float("nan"), 0.0]]), torch.tensor([0]))
    with pytest.raises(NotFiniteError, match=r"covariances? (of classes )?are not finite"):
        head.settle()


def test_covariances_that_take_too_much_memory_are_refused():
    head = build_gaussian(in_features=768)
    with pytest.raises(
        ConfigError, match=r"each of 500 classes of features of width 768 takes 2.2"
    ):
        head.grow(500)
    with pytest.raises(ConfigError, match="width 20,000 are too wide"):
        LDAHead(20_000)
    assert export_spec(head).options["pooling"] == 0.5


def test_a_class_of_another_task_never_stands_above_one_that_may_be_predicted():
    scores = torch.tensor([[0.0, -1e6, -2e6, 7.0]])
    bent = log_posterior(scores, torch.tensor([True, True, True, False]))
    assert bent[0].diff()[:2].lt(0).all()
    assert bent[0, :3].gt(-900.1).all()
    assert float(bent[0, 3]) == -1000


def test_as_many_classes_as_it_says_fit():
    head = GaussianHead(768)
    head._check_memory(455)
    with pytest.raises(ConfigError, match="a covariance for each of 456 classes"):
        head.grow(456)
