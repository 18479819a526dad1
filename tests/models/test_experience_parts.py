"""A part an experience: what is kept, what trains, and who says that an experience begins."""

import copy

import pytest
import torch
from avalanche.benchmarks.scenarios.online import split_online_stream
from avalanche.training import Naive
from torch import nn

from avalanche_peftcl.models import Branch, ExperienceParts, PEFTModel, attend_with_prompts
from avalanche_peftcl.testing import learnable_benchmark, toy_backbone
from avalanche_peftcl.training import PEFTTemplate


class Grown(Branch):
    """A prompt an experience, all of them in front of the first block's attention."""

    shares_start = False

    def __init__(self, dim=32):
        super().__init__()
        self.parts = ExperienceParts({"prompt": torch.randn(2, dim), "other": torch.ones(3)})
        self.heard = []

    def start_experience(self, number):
        self.heard.append(number)
        self.parts.start(number)

    def attend(self, backbone, index, tokens, *, queries=None, context=None):
        if index:
            return backbone.attend(index, tokens, queries=queries)
        prompts = self.parts.every("prompt").flatten(0, 1)
        return attend_with_prompts(backbone, index, tokens, prompts, queries=queries)


def test_parts_of_earlier_experiences_stay():
    parts = ExperienceParts({"key": torch.arange(3.0)})
    assert not parts.start(1)
    with torch.no_grad():
        parts.key.add_(1)
    first = parts.key
    assert parts.start(2)
    assert not parts.start(2)
    assert parts.key is not first
    assert torch.equal(parts.key, first)
    with torch.no_grad():
        parts.key.mul_(2)
    assert torch.equal(parts.every("key"), torch.tensor([[1.0, 2.0, 3.0], [2.0, 4.0, 6.0]]))
    parts.every("key").sum().backward()
    assert torch.equal(parts.key.grad, torch.ones(3))
    assert not parts.past("key").requires_grad


def test_parts_load_from_any_number():
    parts = ExperienceParts({"key": torch.arange(3.0), "value": torch.zeros(2, 2)})
    for number in (1, 2, 5):
        parts.start(number)
    for other in (ExperienceParts({"key": torch.ones(3), "value": torch.ones(2, 2)}), parts):
        other = copy.deepcopy(other)
        other.load_state_dict(parts.state_dict())
        assert len(other) == 3
        assert not other.start(5)
        assert torch.equal(other.every("key"), parts.every("key"))


@pytest.mark.parametrize(
    ("scenario", "hidden", "heard"),
    [
        ("class", False, [1, 2]),
        ("domain", False, [1, 2]),
        ("online", False, [1, 2]),
        ("online", True, [1]),
    ],
)
@pytest.mark.parametrize("host", [True, False])
def test_branches_hear_of_experiences(scenario, hidden, heard, host):
    backbone, branch = toy_backbone(), Grown()
    model = PEFTModel(backbone, branch)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.01)
    settings = {"train_mb_size": 4, "train_epochs": 1}
    strategy = (
        Naive(model=model, optimizer=optimizer, criterion=nn.CrossEntropyLoss(), **settings)
        if host
        else PEFTTemplate(model=model, optimizer=optimizer, **settings)
    )
    stream = learnable_benchmark("class" if hidden else scenario, per_class=4).train_stream
    if hidden:
        stream = split_online_stream(stream, experience_size=4, access_task_boundaries=False)
    kept = []
    for experience in stream:
        strategy.train(experience)
        kept.append(branch.parts.every("prompt").detach().clone())
        held = {id(p) for group in strategy.optimizer.param_groups for p in group["params"]}
        assert id(branch.parts.get_parameter("prompt")) in held
    assert sorted(set(branch.heard)) == heard
    assert len(branch.parts) == len(heard)
    if len(heard) == 2:
        assert not torch.equal(kept[-1][0], kept[-1][1])
