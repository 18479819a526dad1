"""Frozen features that are kept are those that would be computed, and only in evaluation."""

import pytest
import torch
from avalanche.training.plugins import EvaluationPlugin
from torch import nn

from avalanche_peftcl.models import Branch, Embedded, PEFTModel
from avalanche_peftcl.models.backbones.kept_queries import KeptQueries, keeping_queries
from avalanche_peftcl.testing import toy_backbone, toy_benchmark
from avalanche_peftcl.training import PEFTTemplate


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
    with keeping_queries(keeps):
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
    kept, network = KeptQueries(most=2 * 4 * 5), nn.Linear(1, 1)  # two of five floats
    batches = [torch.full((1, 2, 5), float(i)) for i in range(3)]
    for i in (0, 1, 0, 2, 0, 1):
        found = kept.query(network, batches[i], lambda i=i: batches[i].sum(dim=1))
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
