"""LAE: the larger of two softmaxes and the slow copy, both against NumPy."""

import numpy as np
import pytest
import torch
from avalanche.core import SupervisedPlugin
from avalanche.training.plugins import EvaluationPlugin
from peftcl_lora.lae import LAEModel, build_lae
from peftcl_lora.pairs import PairedLinear, PairedLoRA

from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.models import (
    PrototypeHead,
    build_adapters,
    build_lora,
    build_prefix,
    forward_branches,
)
from avalanche_peftcl.testing import toy_backbone, toy_benchmark

SETTINGS = {"mixed_precision": "no", "evaluator": EvaluationPlugin()}
TRAINING = {"train_epochs": 5, "train_mb_size": 6, "lr": 0.02} | SETTINGS


def parameters(branch):
    return [p.detach().double().numpy().copy() for p in branch.parameters()]


class Steps(SupervisedPlugin):
    """Keeps the module as it is before each experience, and after each step with its epoch."""

    def __init__(self):
        super().__init__()
        self.starts, self.steps = [], []

    def before_training_exp(self, strategy, **kwargs):
        self.starts.append(parameters(strategy.model.branch))
        self.steps.append([])

    def after_training_iteration(self, strategy, **kwargs):
        epoch = strategy.clock.train_exp_epochs
        self.steps[-1].append((epoch, parameters(strategy.model.branch)))


def train(module, *, decay=0.9, scenario="class"):
    torch.manual_seed(0)
    backbone, steps = toy_backbone(), Steps()
    made = module(backbone=backbone) if module else None
    strategy = build_lae(backbone=backbone, module=made, decay=decay, plugins=[steps], **TRAINING)
    for experience in toy_benchmark(scenario, classes_per_experience=(2, 2)).train_stream:
        strategy.train(experience)
    return strategy, steps


@pytest.mark.parametrize("module", [None, build_lora])
def test_the_copy_is_the_first_experience_then_a_moving_average(module):
    strategy, steps = train(module)
    expected = steps.steps[0][-1][1]
    for _, new in steps.steps[1]:
        expected = [0.9 * old + 0.1 * each for old, each in zip(expected, new, strict=True)]
    found = parameters(strategy.model.offline)
    for mine, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-6)
    online = parameters(strategy.model.branch)
    assert max(np.abs(a - b).max() for a, b in zip(found, online, strict=True)) > 1e-3


def test_the_head_trains_alone_for_three_of_five_epochs():
    _, steps = train(None)
    start = steps.starts[1]
    for epoch, now in steps.steps[1]:
        same = all(np.array_equal(a, b) for a, b in zip(start, now, strict=True))
        assert same == (epoch < 3)
    epoch, now = steps.steps[0][1]  # of the first step the head has no weights, nor a gradient
    assert epoch == 0
    assert any(not np.array_equal(a, b) for a, b in zip(steps.starts[0], now, strict=True))


@pytest.mark.parametrize("scenario", ["class", "task"])
def test_each_class_gets_the_larger_of_two_softmaxes(scenario):
    strategy, _ = train(build_adapters, scenario=scenario)
    model, images = strategy.model.eval(), torch.rand(5, 3, 16, 16)
    tasks = torch.tensor([0, 1, 1, 0, 1]) * (scenario == "task")
    allowed = np.ones((5, 4), dtype=bool)
    if scenario == "task":
        allowed = model.classes.keys[:, 0].numpy() == tasks.numpy()[:, None]
    with torch.no_grad():
        both = forward_branches(model.backbone, [model.branch, model.offline], images)
        shares = []
        for features in both:
            z = np.where(allowed, np.exp(model.head(features).double().numpy()), 0)
            shares.append(z / z.sum(axis=1, keepdims=True))
        assert np.abs(shares[0] - shares[1]).max() > 1e-3
        rows = np.maximum(*shares)
        found = model(images, tasks).double().exp().numpy()
    for row, (_, c) in enumerate(model.classes.keys.tolist()):
        np.testing.assert_allclose(
            found[:, c][allowed[:, row]], rows[:, row][allowed[:, row]], rtol=1e-4
        )
    assert model.forward_passes == 2


def _base(module):
    return module.base.parameters() if isinstance(module, PairedLinear) else ()


@pytest.mark.parametrize("build", [build_lora, build_adapters, build_prefix, "pairs"])
def test_a_copy_has_weights_of_its_own_and_shares_the_frozen_ones(build):
    backbone = toy_backbone()
    branch = PairedLoRA(backbone, r=2) if build == "pairs" else build(backbone=backbone)
    model = LAEModel(backbone, branch).eval()
    images = torch.rand(2, 3, 16, 16)
    torch.manual_seed(0)
    view = model.offline.network(backbone)
    held = [p for m in view.modules() for p in [*m.parameters(), *_base(m)]]
    assert {id(p) for p in backbone.parameters()} <= {id(p) for p in held}
    with torch.no_grad():
        for p in branch.parameters():
            p.add_(0.1 * torch.randn_like(p))
        online, offline = forward_branches(backbone, model.branches, images)
        assert not torch.allclose(online, offline, atol=1e-3)
        for p, q in zip(model.offline.parameters(), branch.parameters(), strict=True):
            p.copy_(q)
        online, offline = forward_branches(backbone, model.branches, images)
    assert torch.equal(online, offline)


def test_what_does_not_go_together():
    with pytest.raises(ConfigError, match="a PrototypeHead is fitted"):
        build_lae(backbone=toy_backbone(), head=PrototypeHead)
    with pytest.raises(ConfigError, match="head_epochs=6 must be from 0 to train_epochs=5"):
        build_lae(backbone=toy_backbone(), head_epochs=6)
