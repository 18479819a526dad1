"""Frozen features that are kept are those that would be computed, and only in evaluation."""

import pytest
import torch
from avalanche.training.plugins import EvaluationPlugin
from torch import nn

from avalanche_peftcl.models import Branch, Embedded, FrozenBranch, PEFTModel, forward_branches
from avalanche_peftcl.models.backbones.kept_features import (
    KeptFeatures,
    as_first_seen,
    keeping_features,
)
from avalanche_peftcl.testing import toy_backbone, toy_benchmark
from avalanche_peftcl.training import PEFTTemplate
from avalanche_peftcl.training.ntk_cl import build_ntk_cl


@pytest.fixture
def counted(monkeypatch):
    """A backbone, and the images of each pass that came to its last block."""
    backbone, passes = toy_backbone(), []
    attend = type(backbone).attend

    def count(self, index, tokens, **options):
        if index == self.depth - 1:
            passes.append(len(tokens))
        return attend(self, index, tokens, **options)

    monkeypatch.setattr(type(backbone), "attend", count)
    return backbone, passes


@torch.no_grad()
def query(backbone, images, *, keeps):
    with keeping_features(keeps):
        return Embedded(backbone, images).query()


def test_what_is_kept_is_what_would_be_computed(counted):
    backbone, passes = counted
    images = torch.rand(3, 3, 16, 16)
    fresh = query(backbone, images, keeps=False)
    assert all(torch.equal(query(backbone, images, keeps=True), fresh) for _ in range(3))
    assert passes == [3, 3]
    query(backbone, images, keeps=False)
    assert passes == [3, 3, 3]


def test_whatever_the_bits_depend_on_tells_minibatches_apart(counted):
    backbone, passes = counted
    images = torch.rand(3, 3, 16, 16)
    query(backbone, images, keeps=True)
    other = images.clone()
    other[1, 0, 0, 0] += 1e-3
    for batch in (other, images[:2], images.flip(0)):
        query(backbone, batch, keeps=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        query(backbone, images, keeps=True)
    assert passes == [3, 3, 2, 3, 3]
    with torch.no_grad():
        backbone.blocks[1].mlp.fc1.weight.mul_(2.0)
    new = query(backbone, images, keeps=True)
    assert torch.equal(new, query(backbone, images, keeps=False))
    assert passes == [3, 3, 2, 3, 3, 3, 3]


def test_the_oldest_are_dropped():
    kept, network = KeptFeatures(most=2 * 4 * 5), nn.Linear(1, 1)  # two of five floats
    batches = [torch.full((1, 2, 5), float(i)) for i in range(3)]
    for i in (0, 1, 0, 2, 0, 1):
        found = kept.get(network, batches[i], lambda i=i: batches[i].sum(dim=1))
        assert torch.equal(found, batches[i].sum(dim=1))
    assert kept.computed == 4  # the last one again


def test_a_strategy_keeps_them_in_evaluation_alone(counted):
    backbone, passes = counted

    class Asks(Branch):
        forward_passes = 2

        def __init__(self):
            super().__init__()
            self.shift = nn.Parameter(torch.zeros(32))

        def begin(self, backbone, embedded):
            return embedded.query()

        def pool(self, backbone, tokens):
            return backbone.pool(tokens) + self.shift

    model = PEFTModel(backbone, Asks())
    strategy = PEFTTemplate(
        model=model,
        optimizer=torch.optim.SGD([*model.head.parameters(), model.branch.shift], lr=0.1),
        train_mb_size=6,
        train_epochs=2,
        eval_mb_size=64,
        evaluator=EvaluationPlugin(),
    )
    experience, test = (s[0] for s in (toy_benchmark().train_stream, toy_benchmark().test_stream))
    found = []
    for images in (experience, test, test):
        passes.clear()
        strategy.train(images) if images is experience else strategy.eval(images)
        found.append(sum(passes) / len(images.dataset))
    assert found == [4, 2, 1]


@torch.no_grad()
@pytest.mark.parametrize("branch", [Branch(), FrozenBranch()], ids=["plain", "frozen"])
@pytest.mark.parametrize("kind", ["pooled", "blocks", (0, 2)], ids=str)
def test_a_pass_that_adapts_nothing_is_kept_to_the_bit_and_its_layout(counted, branch, kind):
    backbone, passes = counted
    images = torch.rand(3, 3, 16, 16)
    (fresh,) = forward_branches(backbone, [branch], images, features=[kind])
    with keeping_features(True):
        for _ in range(3):
            (found,) = forward_branches(backbone, [branch], images, features=[kind])
            assert torch.equal(found, fresh)
            assert found.stride() == fresh.stride()
            found.zero_()  # what is found is the caller's
    assert passes == [3, 3]


def test_passes_of_several_kinds_adapted_ones_and_gradients_are_apart(counted):
    backbone, passes = counted
    images = torch.rand(2, 3, 16, 16)

    class Adapts(Branch):
        def step(self, backbone, index, hidden, *, context=None):
            return super().step(backbone, index, hidden, context=context) * 1.5

    branches, kinds = [Branch(), Adapts(), FrozenBranch(), Branch()], ["pooled"] * 3 + ["blocks"]
    with keeping_features(True):
        with torch.no_grad():
            first = forward_branches(backbone, branches, images, features=kinds)
            again = forward_branches(backbone, branches, images, features=kinds)
        assert all(map(torch.equal, first, again))
        assert passes == [2] * 5
        forward_branches(backbone, [Branch()], images.requires_grad_())[0].sum().backward()
        assert images.grad.abs().sum() > 0
        with as_first_seen(), torch.no_grad():
            forward_branches(backbone, [Branch()], images)
    assert passes == [2] * 7


def test_a_strategy_whose_network_is_frozen_evaluates_images_once(counted):
    backbone, passes = counted
    model = PEFTModel(backbone, Branch())
    strategy = PEFTTemplate(
        model=model,
        optimizer=torch.optim.SGD(model.head.parameters(), lr=0.1),
        train_mb_size=6,
        eval_mb_size=64,
        evaluator=EvaluationPlugin(),
    )
    train, test = toy_benchmark().train_stream, toy_benchmark().test_stream
    strategy.train(train[0])
    passes.clear()
    strategy.eval(test[:1])
    strategy.train(train[1])
    passes.clear()
    strategy.eval(test[:2])
    assert sum(passes) == len(test[1].dataset)


def test_the_kernel_recipe_saves_a_pass_of_images_that_come_again(counted):
    backbone, passes = counted
    strategy = build_ntk_cl(
        backbone=backbone, recipe="kernel", train_epochs=1, evaluator=EvaluationPlugin()
    )
    test = toy_benchmark().test_stream[:1]
    strategy.train(toy_benchmark().train_stream[0])
    found = []
    for _ in range(2):
        passes.clear()
        strategy.eval(test)
        found.append(sum(passes) / len(test[0].dataset))
    assert found == [2, 1]  # the adapted one is computed
