"""SSIAT and SLCA++, each held against what its formulas say."""

import numpy as np
import pytest
import torch
from avalanche.core import SupervisedPlugin
from avalanche.training.plugins import EvaluationPlugin, LRSchedulerPlugin
from peftcl_adapters.slca_pp import build_slca_pp
from peftcl_adapters.ssiat import build_ssiat

from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.models import PrototypeHead
from avalanche_peftcl.testing import toy_backbone, toy_benchmark
from avalanche_peftcl.training.plugins import FeatureReplayPlugin

SETTINGS = {"mixed_precision": "no", "evaluator": EvaluationPlugin(), "align_samples": 16}
TRAINING = {"train_epochs": 2, "train_mb_size": 6, "lr": 0.05} | SETTINGS


def images(experience):
    """Return all images of an experience and their classes, as a test shows them."""
    pairs = [(x, y) for x, y, *_ in experience.dataset.eval()]
    return torch.stack([x for x, _ in pairs]), np.array([y for _, y in pairs])


def features(strategy, experience):
    with torch.no_grad():
        return strategy.model.eval().embed(images(experience)[0]).double().numpy()


def kept(strategy):
    """Return the plugin that keeps the Gaussians."""
    (plugin,) = [p for p in strategy.plugins if isinstance(p, FeatureReplayPlugin)]
    return plugin


class Epochs(SupervisedPlugin):
    """Notes the number of epochs and the learning rates of each."""

    remembers = ()

    def __init__(self):
        super().__init__()
        self.rates = []

    def before_training_exp(self, strategy, **kwargs):
        self.rates.append([])

    def before_training_epoch(self, strategy, **kwargs):
        self.rates[-1].append([group["lr"] for group in strategy.optimizer.param_groups])


@pytest.mark.parametrize("sigma", [4.0, 0.7])
def test_ssiat_moves_old_means_by_the_drift_of_images_near_them(sigma):
    benchmark = toy_benchmark()
    strategy = build_ssiat(backbone=toy_backbone(), sigma=sigma, later_epochs=0, **TRAINING)
    first, second = benchmark.train_stream[:2]
    strategy.train(first)
    old, scatter = (m.numpy().copy() for m in kept(strategy).moments.gaussians())
    a = features(strategy, second)
    strategy.train(second)
    b = features(strategy, second)
    means, covariances = (m.numpy() for m in kept(strategy).moments.gaussians())
    assert np.abs(b - a).max() > 1e-3
    for c in (0, 1):
        w = np.exp(-((a - old[c]) ** 2).sum(1) / (2 * sigma**2))
        expected = old[c] + (w[:, None] * (b - a)).sum(0) / w.sum()
        np.testing.assert_allclose(means[c], expected, rtol=0, atol=1e-4)
        np.testing.assert_allclose(covariances[c], scatter[c], rtol=0, atol=1e-4)
    classes = images(second)[1]
    for c in (2, 3):
        np.testing.assert_allclose(means[c], b[classes == c].mean(0), rtol=0, atol=1e-5)


def test_ssiat_trains_later_experiences_for_half_and_its_factor_stays():
    noted = Epochs()
    options = {"train_epochs": 4}
    strategy = build_ssiat(backbone=toy_backbone(), plugins=[noted], **(TRAINING | options))
    for experience in toy_benchmark().train_stream:
        strategy.train(experience)
        assert float(strategy.model.head.sigma) == 20
    cosine = [0.05 * (1 + np.cos(np.pi * e / n)) / 2 for n in (4, 2) for e in range(n)]
    found = [rate for part in noted.rates for (rate,) in part]
    np.testing.assert_allclose(found, [*cosine, *cosine[4:]], rtol=1e-6, atol=1e-12)


def test_ssiat_with_a_margin_is_cosface():
    """Both of its first steps have the loss of the formula, among the classes at hand."""
    losses = {}
    for margin in (0.0, 0.2):
        torch.manual_seed(0)
        strategy = build_ssiat(backbone=toy_backbone(), margin=margin, anneal=False, **TRAINING)
        noted = losses[margin] = []

        class First(SupervisedPlugin):
            remembers = ()

            def before_backward(self, strategy, noted=noted, **kwargs):
                noted.append((strategy.mb_row_logits.detach(), strategy.mb_rows, strategy.loss))

        strategy.plugins.append(First())
        strategy.train(toy_benchmark().train_stream[0])
    for margin, ((logits, rows, loss), *_) in losses.items():
        cosines = logits.double() / 20
        asked = cosines - margin * torch.nn.functional.one_hot(rows, logits.shape[1])
        expected = torch.nn.functional.cross_entropy(20 * asked, rows)
        torch.testing.assert_close(
            loss.detach().double().reshape(()), expected, rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize(("epochs", "after"), [(20, 18), (3, 3), (10, 9)])
def test_rates_of_slca_pp_fall_after_nine_tenths_of_the_epochs(epochs, after):
    strategy = build_slca_pp(backbone=toy_backbone(), **(TRAINING | {"train_epochs": epochs}))
    (schedule,) = (p.scheduler for p in strategy.plugins if isinstance(p, LRSchedulerPlugin))
    rate = schedule.lr_lambdas[0]
    assert [rate(after - 1), rate(after)] == [1.0, 0.1]


def test_slca_pp_trains_the_module_slower_and_leaves_old_rows():
    noted = Epochs()
    strategy = build_slca_pp(
        backbone=toy_backbone(), plugins=[noted], drop_after=1, **(TRAINING | {"train_epochs": 3})
    )
    starts, benchmark = [], toy_benchmark()

    class Rows(SupervisedPlugin):
        """Notes the head where an experience begins and before it is aligned."""

        remembers = ()

        def before_training_epoch(self, strategy, **kwargs):
            starts.append(strategy.model.head.weight.detach().clone())

        def after_training_exp(self, strategy, **kwargs):
            starts.append(strategy.model.head.weight.detach().clone())

    strategy.plugins.insert(0, Rows())
    for experience in benchmark.train_stream:
        strategy.train(experience)
    assert np.allclose(noted.rates, [[[0.005, 0.05], [0.0005, 0.005], [0.0005, 0.005]]] * 3)
    first, second, third = starts[3], starts[7], starts[11]  # each after training
    assert torch.equal(second[:2], first)
    assert torch.equal(third[:4], second)
    assert not torch.equal(strategy.model.head.weight[:4], second)  # it is aligned


def test_slca_pp_keeps_gaussians_of_features_and_trains_by_its_loss():
    benchmark, losses = toy_benchmark(), []
    strategy = build_slca_pp(backbone=toy_backbone(), reverse_weight=0.7, **TRAINING)

    class First(SupervisedPlugin):
        remembers = ()

        def before_backward(self, strategy, **kwargs):
            losses.append((strategy.mb_row_logits.detach(), strategy.mb_rows, strategy.loss))

    strategy.plugins.append(First())
    strategy.train(benchmark.train_stream[0])
    z, classes = features(strategy, benchmark.train_stream[0]), images(benchmark.train_stream[0])[1]
    means, covariances = kept(strategy).moments.gaussians()
    for c in (0, 1):
        np.testing.assert_allclose(means[c], z[classes == c].mean(0), rtol=0, atol=1e-5)
        np.testing.assert_allclose(covariances[c], np.cov(z[classes == c].T), rtol=0, atol=1e-4)
    for logits, rows, loss in losses:
        p = logits.double().softmax(1)
        own = p.gather(1, rows[:, None])[:, 0]
        expected = (-own.log() - 0.7 * np.log(1e-4) * (1 - own)).mean()
        torch.testing.assert_close(
            loss.detach().double().reshape(()), expected, rtol=1e-5, atol=1e-5
        )


def test_slca_pp_refuses_a_head_that_is_fitted():
    with pytest.raises(ConfigError, match="aligns a head that is trained, and a PrototypeHead"):
        build_slca_pp(backbone=toy_backbone(), head=PrototypeHead)
