"""A trained head is aligned on drawn features; nothing else is touched."""

import numpy as np
import pytest
import torch
from avalanche.training import Naive
from avalanche.training.plugins import EvaluationPlugin

from avalanche_peftcl.errors import ConfigError, NotFiniteError
from avalanche_peftcl.models import CosineHead, FrozenBranch, LinearHead, PEFTModel, PrototypeHead
from avalanche_peftcl.testing import learnable_benchmark, toy_backbone, toy_benchmark
from avalanche_peftcl.testing.learnable import seeing_backbone
from avalanche_peftcl.training.naive import build_naive
from avalanche_peftcl.training.ntk_cl import build_ntk_cl
from avalanche_peftcl.training.pegp import build_pegp
from avalanche_peftcl.training.plugins import (
    DriftCompensationPlugin,
    FeatureReplayPlugin,
    GradientProjectionPlugin,
)

pytestmark = pytest.mark.filterwarnings("ignore:No loggers specified")

DIM = 32
SMALL = {"train_mb_size": 8, "eval_mb_size": 8, "train_epochs": 2, "mixed_precision": "no"}


def small(**options):
    return FeatureReplayPlugin(**({"samples_per_class": 32} | options))


def build(*plugins, **options):
    torch.manual_seed(0)
    given = {"backbone": toy_backbone(), "head": LinearHead, "lr": 0.05, "loss": "local"}
    return build_naive(plugins=list(plugins), **(given | SMALL | options))


def features(strategy, *experiences):
    data = [experience.dataset.eval() for experience in experiences]
    images = torch.stack([each[i][0] for each in data for i in range(len(each))])
    labels = torch.tensor([int(each[i][1]) for each in data for i in range(len(each))])
    with torch.no_grad():
        return strategy.model.eval().embed(images), labels


def accuracy(strategy, *experiences):
    z, labels = features(strategy, *experiences)
    with torch.no_grad():
        return float((strategy.model.head(z).argmax(1) == labels).float().mean())


# --- what it is for -------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [None, pytest.param(0.1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("head", [LinearHead, pytest.param(CosineHead, marks=pytest.mark.slow)])
@pytest.mark.parametrize("covariance", ["shared", pytest.param("class", marks=pytest.mark.slow)])
def test_an_aligned_head_knows_all_classes(head, covariance, temperature):
    """Without it a head that trains on new classes alone takes old ones for them."""
    benchmark, found = learnable_benchmark(classes_per_experience=(2, 2, 2)), []
    for plugins in ([], [small(covariance=covariance, epochs=10, lr=0.1, temperature=temperature)]):
        strategy = build(
            *plugins, backbone=seeing_backbone(), head=head, module=FrozenBranch(), loss="seen"
        )
        strategy.train(benchmark.train_stream)
        found.append(accuracy(strategy, *benchmark.test_stream))
    assert found[0] < 0.85
    assert found[1] > 0.95
    told = plugins[0].summary()["experiences"]
    assert [(each["experience"], each["classes"]) for each in told] == [(2, 4), (3, 6)]
    assert all(each["loss_after"] < each["loss_before"] for each in told)
    assert plugins[0].headline().startswith("feature replay: 6 classes, loss ")


def test_with_task_labels_a_class_competes_with_those_of_its_label():
    plugin = small(temperature=0.1)
    strategy = build(plugin)
    strategy.train(toy_benchmark("task").train_stream)
    labels = strategy.model.classes.keys[:, 0]
    rows = torch.tensor([0, 3, 5])
    logits = torch.randn(3, 6, generator=torch.Generator().manual_seed(0))
    expected = []
    for row, z in zip(rows.tolist(), logits, strict=True):
        among = (labels == labels[row]).nonzero()[:, 0].tolist()
        scaled = z[among] / (0.1 * z[among].norm())  # one experience a label: one group
        expected.append(-(scaled.log_softmax(0)[among.index(row)]))
    found = plugin._loss(logits, rows, labels)
    torch.testing.assert_close(found, torch.stack(expected).mean(), rtol=1e-5, atol=1e-5)


# --- what is kept ---------------------------------------------------------------------------------


@pytest.mark.parametrize("covariance", ["shared", "class"])
@pytest.mark.parametrize("scenario", ["class", "domain", "online"])
def test_gaussians_are_those_of_all_rows(scenario, covariance):
    """With classes met again and in chunks, against NumPy on the same rows."""
    options = {"experience_size": 5} if scenario == "online" else {}
    plugin, benchmark = small(covariance=covariance, epochs=1), toy_benchmark(scenario, **options)
    strategy = build(plugin, FrozenWatch(), module=FrozenBranch())
    strategy.train(benchmark.train_stream)
    z, labels = features(strategy, *benchmark.train_stream)
    z, labels = z.double().numpy(), labels.numpy()
    means, covariances = plugin.moments.gaussians()
    within = np.zeros((DIM, DIM))
    for c in range(6):
        rows = z[labels == c]
        np.testing.assert_allclose(means[c].numpy(), rows.mean(0), rtol=0, atol=1e-5)
        within += (len(rows) - 1) * np.cov(rows.T)
        if covariance == "class":
            np.testing.assert_allclose(covariances[c].numpy(), np.cov(rows.T), rtol=0, atol=1e-4)
    if covariance == "shared":
        expected = within / (len(z) - 6)
        np.testing.assert_allclose(covariances.numpy(), expected, rtol=0, atol=1e-4)
    floats = 6 * DIM + (DIM**2 if covariance == "shared" else 6 * DIM**2) + 6 * DIM + 6
    assert plugin.stored_floats == floats  # sums, products, and the head before its alignment


class FrozenWatch(GradientProjectionPlugin):
    """Does nothing; features of a frozen branch do not move, so rows can be read again."""

    remembers = ()

    def before_training_exp(self, strategy, **kwargs):
        pass

    def after_training_exp(self, strategy, **kwargs):
        pass


def test_what_is_kept_moves_with_a_drift_map():
    plugin, drift = small(), DriftCompensationPlugin()
    moved = []
    plugin.move_features = moved.append
    strategy = build(drift, plugin, lr=0.5)
    benchmark = toy_benchmark()
    strategy.train(benchmark.train_stream[0])
    assert len(moved) == 1  # whether it can
    del plugin.move_features
    before = plugin.moments.held["sums"].clone(), plugin.moments.held["grams"].clone()
    seen, move = [], plugin.move_features

    def listens(given):
        move(given)
        seen.append(
            (
                given.matrix,
                plugin.moments.held["sums"].clone(),
                plugin.moments.held["grams"].clone(),
            )
        )

    plugin.move_features = listens
    strategy.train(benchmark.train_stream[1])
    ((t, sums, grams),) = seen
    assert (t - torch.eye(DIM)).norm() > 0.1
    torch.testing.assert_close(sums, before[0] @ t)
    torch.testing.assert_close(grams, t.T @ before[1] @ t)
    assert len(drift.summary()["experiences"]) == 1


# --- what is left alone ---------------------------------------------------------------------------


def test_the_head_alone_changes_and_no_random_number_is_drawn():
    benchmark, held = toy_benchmark(), []
    for plugins in ([], [small(restore=False)]):
        strategy = build(*plugins)
        for experience in benchmark.train_stream[:2]:
            strategy.train(experience)
        held.append(
            (
                {k: v.clone() for k, v in strategy.model.state_dict().items()},
                torch.get_rng_state(),
                [p.grad for p in strategy.model.head.parameters()],
            )
        )
    (one, drawn, _), (other, also, grads) = held
    assert torch.equal(drawn, also)
    differing = {k for k, v in one.items() if not torch.equal(v, other[k])}
    assert differing == {"head.weight", "head.bias"}
    assert grads == [None, None]


@pytest.mark.parametrize("restore", [True, False])
def test_training_goes_on_with_the_head_of_before(restore):
    plugin, starts = small(restore=restore), []
    strategy = build(plugin)
    align = plugin.align

    def listens(network, **options):
        starts.append({n: p.detach().clone() for n, p in network.head.named_parameters()})
        return align(network, **options)

    plugin.align = listens
    benchmark = toy_benchmark()
    strategy.train(benchmark.train_stream[0])
    strategy.train(benchmark.train_stream[1])
    (unaligned,) = starts
    aligned = {n: p.detach().clone() for n, p in strategy.model.head.named_parameters()}
    assert not torch.equal(unaligned["weight"], aligned["weight"])
    strategy.experience = benchmark.train_stream[2]
    strategy.model.head.grow(6)
    plugin.before_training_exp(strategy)
    expected = unaligned if restore else aligned
    for name, p in strategy.model.head.named_parameters():
        assert torch.equal(p[:4], expected[name])
        assert not p[4:].any()


def test_drawn_features_follow_from_the_seed():
    benchmark, ends = toy_benchmark(), []
    for seed in (0, 0, 1):
        strategy = build(small(seed=seed))
        for experience in benchmark.train_stream[:2]:
            strategy.train(experience)
        ends.append(strategy.model.head.weight.detach().clone())
    assert torch.equal(ends[0], ends[1])
    assert not torch.equal(ends[0], ends[2])


# --- beside strategies ----------------------------------------------------------------------------


def test_beside_pegp_and_avalanches_own():
    benchmark = toy_benchmark()
    plugin = small()
    build_pegp(
        backbone=toy_backbone(), plugins=[plugin], head_epochs=0, n_samples=4, **SMALL
    ).train(benchmark.train_stream)
    assert len(plugin.summary()["experiences"]) == 2
    plugin = small()
    model = PEFTModel(toy_backbone(), FrozenBranch(), LinearHead(DIM))
    strategy = Naive(
        model=model,
        optimizer=torch.optim.SGD(model.head.parameters(), lr=0.01),
        train_mb_size=12,
        eval_mb_size=12,
        plugins=[plugin],
        evaluator=EvaluationPlugin(),
    )
    strategy.train(benchmark.train_stream)
    assert len(plugin.summary()["experiences"]) == 2


@pytest.mark.parametrize("covariance", ["shared", "class"])
def test_features_are_drawn_from_aged_and_jittered_gaussians(covariance, monkeypatch):
    """What the head trains on has the moments that SLCA's formulas say, up to six errors."""
    plugin = small(
        covariance=covariance, shrinkage=0.0, jitter=0.5, ageing=0.3, samples_per_class=4000,
        epochs=1,
    )  # fmt: skip
    strategy, drawn = build(plugin), []
    benchmark = toy_benchmark()
    strategy.train(benchmark.train_stream[0])
    strategy.model.head.register_forward_hook(lambda head, given, out: drawn.append(given[0]))
    strategy.train(benchmark.train_stream[1])
    features = next(z for z in drawn if len(z) == 4 * 4000)  # all at once, for the loss before
    means, covariances = plugin.moments.gaussians()
    for c in range(4):
        own = features[c * 4000 : (c + 1) * 4000].double()
        age = 1.0 if c >= 2 else 0.7 + 0.3 * 0.5
        expected = covariances if covariance == "shared" else covariances[c]
        expected = expected + 0.5 * torch.eye(DIM)
        six = 6 * expected.diagonal().max().sqrt() / 4000**0.5
        assert (own.mean(0) - age * means[c]).abs().max() < six
        bound = 6 * expected.diagonal().max() * (2 / 4000) ** 0.5
        assert (torch.cov(own.T) - expected).abs().max() < bound


def test_a_class_of_one_image():
    plugin = small(covariance="class", shrinkage=0.0)
    strategy = build(plugin)
    strategy.train(toy_benchmark(per_class=1).train_stream)
    assert strategy.model.head.weight.isfinite().all()


# --- what does not fit ----------------------------------------------------------------------------


def test_heads_that_are_not_trained_are_refused():
    with pytest.raises(ConfigError, match=r"a PEFTModel has .*PrototypeHead"):
        build(small(), head=PrototypeHead).train(toy_benchmark().train_stream[0])
    with pytest.raises(ConfigError, match="a NTKCLModel has CosineHead, PrototypeHead"):
        build_ntk_cl(backbone=toy_backbone(), plugins=[small()], **SMALL).train(
            toy_benchmark().train_stream[0]
        )


def test_memory_is_bounded(monkeypatch):
    monkeypatch.setattr("avalanche_peftcl.training.plugins.class_moments.MOST_ENTRIES", 3000)
    build(small()).train(toy_benchmark().train_stream)
    with pytest.raises(ConfigError, match=r"for each of 4 classes .* take covariance=.shared"):
        build(small(covariance="class")).train(toy_benchmark().train_stream)


def test_a_head_that_diverges_is_refused():
    with pytest.raises(NotFiniteError, match="parameters of the aligned head are not finite"):
        build(small(lr=1e38)).train(toy_benchmark().train_stream)


@pytest.mark.parametrize(
    "options",
    [{"jitter": -1}, {"ageing": 2}, {"weight_decay": -1},
     {"covariance": "full"}, {"shrinkage": 2}, {"epochs": 0}, {"samples_per_class": 0}, {"lr": 0},
     {"temperature": 0}],
)  # fmt: skip
def test_arguments_out_of_range(options):
    with pytest.raises(ConfigError):
        FeatureReplayPlugin(**options)
