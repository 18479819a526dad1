"""MOS: its merging against NumPy, on a copy; its search for a set of adapters ends."""

import numpy as np
import pytest
import torch
from avalanche.core import SupervisedPlugin
from avalanche.training.plugins import EvaluationPlugin
from peftcl_adapters.adapter_sets import MergedBranch
from peftcl_adapters.mos import build_mos

from avalanche_peftcl.models import forward_branches
from avalanche_peftcl.testing import (
    blind_backbone,
    learnable_benchmark,
    toy_backbone,
    toy_benchmark,
)
from avalanche_peftcl.training.plugins import FeatureReplayPlugin

SETTINGS = {"mixed_precision": "no", "evaluator": EvaluationPlugin(), "align_samples": 16}
TRAINING = {"r": 8, "train_epochs": 2, "train_mb_size": 6, "lr": 0.1, "align_epochs": 2} | SETTINGS

LONGER = {"train_epochs": 12, "train_mb_size": 8, "r": 16, "lr": 0.5}
LONGER |= {"head_lr_scale": 1.0, "contrast_weight": 0.0}


def weights(model):
    """Return the weights of each set by name, as NumPy has them."""
    return [{k: v.double().numpy().copy() for k, v in s.state_dict().items()} for s in model.sets]


def images(stream):
    return torch.stack([x for each in stream for x, *_ in each.dataset.eval()])


@pytest.fixture(scope="module")
def trained():
    """MOS after three experiences, and the sets as they were after each."""
    torch.manual_seed(0)
    benchmark, states = toy_benchmark(), []
    strategy = build_mos(backbone=toy_backbone(), **TRAINING)
    for experience in benchmark.train_stream:
        strategy.train(experience)
        states.append(weights(strategy.model))
    return strategy, benchmark, states


def test_a_set_ends_as_its_copy_merged_with_those_before(trained):
    """0.9 of the set that was trained and 0.1 of the mean of those before, which stay."""
    *_, (one, two, three) = trained
    for name, value in one[0].items():
        assert np.array_equal(two[0][name], value)
        assert np.array_equal(three[0][name], value)
        merged = 0.9 * two[1][name] + 0.1 * value
        np.testing.assert_allclose(three[1][name], merged, rtol=0, atol=1e-7)
        assert name.endswith(("bias", "begun")) or not np.array_equal(
            three[2][name], three[1][name]
        )


def test_the_newest_set_runs_merged_and_running_it_changes_nothing(trained):
    strategy, benchmark, (*_, three) = trained
    model, test = strategy.model.eval(), images(benchmark.test_stream)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        found = model.read(test)[:, 32:]
    for _ in range(3):
        strategy.eval(benchmark.test_stream)
        model.train()(test)
        model.eval()
    after = model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    copy = {k: 0.9 * three[2][k] + 0.1 * (three[0][k] + three[1][k]) / 2 for k in three[2]}
    newest = model.sets.newest
    newest.load_state_dict({name: torch.tensor(value) for name, value in copy.items()})
    with torch.no_grad():
        (expected,) = forward_branches(model.backbone, [newest], test)
    newest.load_state_dict({n: torch.tensor(v) for n, v in three[2].items()})
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_gradients_go_through_the_copy_to_the_newest_set_alone():
    torch.manual_seed(0)
    model = build_mos(backbone=toy_backbone(), **TRAINING).model.eval()  # without dropout
    model.sets.open()
    x, along, gradients = torch.randn(2, 3, 16, 16), torch.randn(32), []
    for share in (1.0, 0.75):  # all sets begin at the same function, whatever the share is
        passes = MergedBranch(model.sets, 1, share=share)
        for each in model.sets:
            each.adapters[0].down.weight.data.copy_(model.sets[0].adapters[0].down.weight)
        (features,) = forward_branches(model.backbone, [passes], x)
        (features @ along).sum().backward()
        ups = [each.adapters[0].up.weight for each in model.sets]
        assert ups[0].grad is None
        gradients.append(ups[1].grad.clone())
        ups[1].grad = None
    assert bool(gradients[0].any())
    torch.testing.assert_close(gradients[1], 0.75 * gradients[0])


def test_a_set_learns_what_the_frozen_network_is_blind_to():
    """With one set there is nothing to search for; the frozen means are at chance."""
    torch.manual_seed(0)
    benchmark = learnable_benchmark(per_class=12)
    strategy = build_mos(backbone=blind_backbone(), **(TRAINING | LONGER))
    strategy.train(benchmark.train_stream[0])
    model, test = strategy.model.eval(), benchmark.test_stream[:1]
    y = torch.tensor([y for _, y, *_ in benchmark.test_stream[0].dataset.eval()])
    with torch.no_grad():
        features = model.embed(images(test))
        assert float((model.classify(features).argmax(1) == y).float().mean()) > 0.9
        assert float((model.means(features).argmax(1) == y).float().mean()) < 0.75


class Constant:
    """Passes whose feature is a row a set, whatever the image is; it counts what runs."""

    def __init__(self, model, rows, monkeypatch):
        self.ran = []
        monkeypatch.setattr("peftcl_adapters.mos.forward_branches", self._forward)
        monkeypatch.setattr(model, "pass_of", lambda number: number, raising=False)
        self.rows = rows

    def _forward(self, backbone, passes, images):
        self.ran.append((passes[0], len(images)))
        return [self.rows[passes[0]].expand(len(images), -1)]


@pytest.mark.parametrize(
    ("leads", "runs"),
    [
        ((0, 1, 2), [0]),  # the guess is right
        ((1, 1, 2), [0, 1]),
        ((1, 2, 2), [0, 1, 2]),
        ((1, 0, 2), [0, 1, 0, 1]),  # round and round, to the end of the loops
    ],
)
def test_the_search_for_a_set_ends(trained, monkeypatch, leads, runs):
    """The head says of the feature of set s that it is of set ``leads[s]``, the guess is set 0."""
    strategy, *_ = trained
    model = strategy.model.eval()
    assert model.means.set_of.tolist() == [0, 0, 1, 1, 2, 2]
    assert model.forward_passes == 5
    rows = torch.eye(32)[:3]
    constant = Constant(model, rows, monkeypatch)

    def head(features):
        which = torch.tensor(leads)[features.argmax(dim=1)]
        return torch.nn.functional.one_hot(2 * which, 6).float()

    monkeypatch.setattr(model.head, "forward", head)
    guess = torch.zeros(4, 6)
    guess[:, 1] = 1.0
    monkeypatch.setattr(model.means, "forward", lambda frozen: guess)
    found = model.retrieve(torch.zeros(4, 3, 16, 16), torch.zeros(4, 32))
    assert constant.ran == [(number, 4) for number in runs]
    assert torch.equal(found, rows[runs[-1]].expand(4, -1))


def test_images_of_a_minibatch_find_their_sets_each_for_itself(trained):
    """As one image after the other does, with plain Python."""
    strategy, benchmark, _ = trained
    model, test = strategy.model.eval(), images(benchmark.test_stream)
    with torch.no_grad():
        logits = model(test)
        (frozen,) = forward_branches(model.backbone, [strategy.model.branches[0]], test)
        first = torch.nn.functional.normalize(frozen, dim=1)
        means = torch.nn.functional.normalize(model.means.prototypes[:, 0], dim=1)
        cosines = first @ means.T
        for i, image in enumerate(test):
            number = int(cosines[i].argmax()) // 2
            for _ in range(4):
                (z,) = forward_branches(model.backbone, [model.pass_of(number)], image[None])
                then = int(model.head(z).argmax()) // 2
                if then == number:
                    break
                number = then
            p = model.head(z)[0].softmax(0) + (3 * cosines[i]).softmax(0)
            torch.testing.assert_close(logits[i].exp(), p / 2, rtol=1e-4, atol=1e-5)


def test_gaussians_are_those_of_each_class_through_its_own_set(trained):
    strategy, benchmark, _ = trained
    (replay,) = [p for p in strategy.plugins if isinstance(p, FeatureReplayPlugin)]
    means, covariances = replay.moments.gaussians()
    model = strategy.model.eval()
    for number, experience in enumerate(benchmark.train_stream):
        with torch.no_grad():
            (z,) = forward_branches(model.backbone, [model.pass_of(number)], images([experience]))
        classes = np.array([y for _, y, *_ in experience.dataset.eval()])
        for c in sorted(set(classes)):
            own = z[classes == c].double().numpy()
            np.testing.assert_allclose(means[c], own.mean(0), rtol=0, atol=1e-4)
            np.testing.assert_allclose(covariances[c], np.cov(own.T), rtol=0, atol=1e-3)


def test_the_term_is_that_of_features_and_other_classes():
    benchmark, noted = toy_benchmark(), []
    strategy = build_mos(backbone=toy_backbone(), contrast_weight=0.3, **TRAINING)
    (replay,) = [p for p in strategy.plugins if isinstance(p, FeatureReplayPlugin)]

    class Note(SupervisedPlugin):
        remembers = ()

        def after_backward(self, strategy, **kwargs):
            noted.append((strategy.mb_features[-1], strategy.mb_losses["centroid_contrast"]))

    strategy.plugins.append(Note())
    strategy.train(benchmark.train_stream[0])
    means = replay.moments.gaussians()[0]
    first = len(noted)
    strategy.train(benchmark.train_stream[1])
    for i, (features, term) in enumerate(noted):
        rows = features.detach().double()
        rows = torch.cat([means[:2], rows]) if i >= first else rows
        s = rows @ rows.T / 0.8
        expected = 0.3 * (s.logsumexp(1) - s.diagonal()).mean()
        torch.testing.assert_close(term.detach().double(), expected, rtol=1e-3, atol=1e-5)
