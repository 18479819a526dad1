"""Ridge regression that begins from the texts of class names."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from torch.nn import functional as F

from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.models import (
    RidgeHead,
    ZeroShotHead,
    ZeroShotRidgeHead,
    build_adapters,
    build_zero_shot_ridge,
)
from avalanche_peftcl.testing import HeadContract, toy_backbone
from avalanche_peftcl.training.closed_form import build_closed_form
from avalanche_peftcl.training.naive import build_naive
from avalanche_peftcl.training.pegp import build_pegp
from tests.models.heads.test_ridge import fit, images, orders
from tests.models.heads.test_zero_shot import WIDTH, benchmark, image_text

DIM, CLASSES = 6, 5


def texts(n_classes=CLASSES, *, dim=DIM, noise=1.0):
    """Return texts of the classes of :func:`images`, some way off their means."""
    means, off = (
        torch.randn(n_classes, dim, generator=torch.Generator().manual_seed(seed))
        for seed in (0, 9)
    )
    return F.normalize(means + noise * off, dim=1)


class Named(ZeroShotRidgeHead):
    """Starts its rows itself, so that it is grown as heads without names are."""

    table = texts()

    def grow(self, n_rows):
        known = len(self.rows)
        super().grow(n_rows)
        self.rows[known:] = self.table[known:n_rows]


def pictures(n, n_classes=CLASSES, *, seed=0, dim=DIM, noise=1.0):
    """Return features about the same class means as texts are."""
    means = torch.randn(n_classes, dim, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(100 + seed)
    rows = torch.arange(n) % n_classes
    return means[rows] + noise * torch.randn(n, dim, generator=generator), rows


class TestContract(HeadContract):
    def create_head(self, in_features):
        head = ZeroShotRidgeHead(in_features)
        means = torch.randn(4, in_features, generator=torch.Generator().manual_seed(0))
        head.texts = lambda names: F.normalize(means)[[int(n.split()[1]) % 4 for n in names]]
        return head


def parts(features, rows, table):
    """Return images, targets, scores of the texts and their weight, from images, not from sums."""
    h, t = features.double().numpy(), table.double().numpy()
    y = np.eye(len(t))[rows] - 1 / len(t)
    offset = h @ (t - t.mean(axis=0)).T
    beta = np.linalg.lstsq(offset.reshape(-1, 1), y.ravel(), rcond=None)[0][0]
    return h, y, offset, beta


def test_it_is_ridge_regression_of_what_the_texts_leave_in_any_order():
    features, rows = images(120, n_classes=CLASSES)
    test = images(30, n_classes=CLASSES, seed=1)[0].double().numpy()
    table = Named.table.double().numpy()
    h, y, offset, beta = parts(features, rows, Named.table)
    for experiences, minibatch in orders(rows).values():
        head = fit(Named(DIM), features, rows, experiences=experiences, minibatch=minibatch)
        b = float(head.share) * beta
        assert 0 < b <= beta * (1 + 1e-9)
        ridge = Ridge(alpha=float(head.penalty), fit_intercept=False, solver="svd")
        ridge.fit(h, y - b * offset)
        centre = table.mean(axis=0)
        scores = test @ (b * (table - centre)).T + ridge.predict(test)
        scores = (scores / beta + (test @ centre)[:, None]) / np.linalg.norm(test, axis=1)[:, None]
        logits = head(torch.from_numpy(test).float()).numpy()
        np.testing.assert_allclose(logits, scores, atol=2e-5 / beta)


def test_the_weight_of_the_texts_leaves_the_least_error_at_the_penalty_of_ridge():
    features, rows = pictures(60)
    head, alone = (
        fit(Named(DIM), features, rows),
        fit(RidgeHead(DIM, penalty="gcv"), features, rows),
    )
    assert torch.equal(head.penalty, alone.penalty)
    h, y, offset, beta = parts(features, rows, Named.table)
    hat = h @ np.linalg.solve(h.T @ h + float(head.penalty) * np.eye(DIM), h.T)

    def error(b):
        left = y - b * offset
        return np.square(left - hat @ left).sum()

    b = float(head.share) * beta
    assert 0 < b < beta
    assert error(b) <= min(error(b + step) for step in (-1e-3, 1e-3))


@pytest.mark.parametrize(("per_class", "margin"), [(2, 0.015), (40, -0.01)])
def test_few_images_are_helped_by_texts_and_many_are_not_hurt(per_class, margin):
    of_this_kind = {"dim": 24, "noise": 2.0}
    table, gained = texts(dim=24, noise=2.0), []
    for seed in range(8):
        features, rows = pictures(per_class * CLASSES, seed=seed, **of_this_kind)
        test, of = pictures(500, seed=50 + seed, **of_this_kind)
        right = []
        for head in (ZeroShotRidgeHead(24), RidgeHead(24, penalty="gcv"), ZeroShotHead(24)):
            head.texts = lambda names: table
            head.grow(CLASSES)
            head.start([""] * CLASSES)
            head.observe(features, rows)
            head.settle()
            right.append(float((head(test).argmax(dim=1) == of).float().mean()))
        gained.append(right[0] - max(right[1:]))
    assert sum(gained) / len(gained) > margin


def test_rows_without_an_image_have_their_zero_shot_logits():
    features, rows = pictures(60)
    zero_shot = ZeroShotHead(DIM)
    zero_shot.rows = Named.table.clone()
    head = Named(DIM)
    head.grow(CLASSES)
    assert torch.equal(head(features), zero_shot(features))
    seen = rows < 3
    head.observe(features[seen], rows[seen])
    head.settle()
    assert torch.equal(head(features)[:, 3:], zero_shot(features)[:, 3:])
    assert not torch.equal(head(features)[:, :3], zero_shot(features)[:, :3])
    gone = seen & (rows > 0)
    head.remove(features[gone], rows[gone])
    head.settle()  # one class is told from no other
    assert torch.equal(head(features), zero_shot(features))
    head.remove(features[rows == 0], rows[rows == 0])
    head.settle()
    assert torch.equal(head(features), zero_shot(features))
    assert not head.gram.any()


def test_texts_that_say_nothing_or_the_contrary_leave_the_ridge_regression():
    features, rows = pictures(60)
    test, _ = pictures(30, seed=1)
    alone = fit(RidgeHead(DIM, penalty=2.0), features, rows)
    for table in (-Named.table, torch.ones(CLASSES, DIM)):
        head = ZeroShotRidgeHead(DIM, penalty=2.0)
        head.grow(CLASSES)
        head.rows = table
        head.observe(features, rows)
        head.settle()
        head.scale.fill_(100.0)  # as of CLIP
        assert head(test).abs().max() < 900
        assert torch.equal(head(test).argmax(dim=1), alone(test).argmax(dim=1))


def test_a_penalty_that_is_given_is_taken_and_a_factor_multiplies_what_was_chosen():
    features, rows = pictures(60)
    assert float(fit(Named(DIM, penalty=3.5), features, rows).penalty) == 3.5
    chosen = fit(Named(DIM), features, rows).penalty
    times = fit(Named(DIM, penalty_factor=4.0), features, rows).penalty
    torch.testing.assert_close(times, 4 * chosen)


def ridge(backbone, **options):
    return lambda width: build_zero_shot_ridge(in_features=width, backbone=backbone, **options)


@pytest.mark.parametrize("strategy", ["closed_form", "naive", "pegp"])
def test_with_every_kind_of_strategy(strategy):
    backbone = image_text()
    made = {"backbone": backbone, "head": ridge(backbone, templates=["a {}"])}
    module = {"module": build_adapters(backbone=backbone, r=2), "train_epochs": 1}
    trained = {
        "closed_form": lambda: build_closed_form(**made),
        "naive": lambda: build_naive(**made, **module),
        "pegp": lambda: build_pegp(**made, **module, head_epochs=0, n_samples=4),
    }[strategy]()
    stream, counts = benchmark(["cat", "dog", "gnu", "owl", "bat", "cow"]), []
    for experience in stream.train_stream:
        trained.train(experience)
        counts.append(int(trained.network.head.counts.sum()))
    assert counts == [12, 24, 36]
    names = [stream.class_names[c] for c in trained.network.classes.keys[:, 1].tolist()]
    assert torch.equal(trained.network.head.rows, backbone.encode_text(names, ["a {}"]))
    assert trained.network.head.weight.abs().sum(dim=1).all()
    assert (trained.network.proxies is None) == (strategy == "closed_form")


@pytest.mark.parametrize(
    ("build", "told"),
    [
        (
            lambda: build_zero_shot_ridge(in_features=32, backbone=toy_backbone()),
            "a ViTBackbone has no text side",
        ),
        (
            lambda: build_zero_shot_ridge(in_features=2 * WIDTH, backbone=image_text()),
            "a zero_shot_ridge head reads the embedding of an image, of width 24, and not 48",
        ),
    ],
)
def test_what_cannot_be_used_is_told_in_a_line(build, told):
    with pytest.raises(ConfigError) as caught:
        build()
    assert str(caught.value).startswith(told)
