"""CODA-Prompt: weights by NumPy, draws that are orthonormal, components that stay."""

import math

import numpy as np
import pytest
import torch
from avalanche.core import SupervisedPlugin
from avalanche.training.plugins import EvaluationPlugin
from peftcl_prompts.coda_prompt import (
    build_coda_prompt,
    build_coda_prompts,
    component_weights,
    orthonormal_rows,
)

from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.models import forward_branches
from avalanche_peftcl.testing import learnable_benchmark, seeing_backbone


def cosines(query, attention, keys):
    """Return the weights of one block's components for one image, by NumPy."""
    asked = query[None] * attention  # (M, E)
    norms = np.linalg.norm(asked, axis=1) * np.linalg.norm(keys, axis=1)
    return (asked * keys).sum(axis=1) / norms


def test_weights_are_the_cosines_of_attended_queries_and_keys():
    torch.manual_seed(0)
    queries, attention, keys = torch.randn(5, 7), torch.randn(2, 3, 7), torch.randn(2, 3, 7)
    found = component_weights(queries, attention, keys)
    expected = [
        [cosines(q, a, k) for a, k in zip(attention.numpy(), keys.numpy(), strict=True)]
        for q in queries.numpy()
    ]
    np.testing.assert_allclose(found.numpy(), np.array(expected), atol=1e-6)


@torch.no_grad()
def test_a_pass_is_that_by_hand(feature_by_hand):
    torch.manual_seed(0)
    backbone, images = seeing_backbone(), torch.rand(3, 3, 16, 16)
    branch = build_coda_prompts(backbone=backbone, blocks=[0, 2], components=3, length=4)
    for number in (1, 2):
        branch.start_experience(number)
        branch.parts.attention.uniform_(-1, 1)
    (found,) = forward_branches(backbone, [branch.eval()], images)
    every = {name: branch.parts.every(name) for name in ("prompts", "keys", "attention")}
    hand = []
    for image, query in zip(images, backbone(images), strict=True):
        prefixes = {}
        for place, index in enumerate((0, 2)):
            rows = {name: torch.cat([*part[:, place]]) for name, part in every.items()}
            alpha = cosines(query.numpy(), rows["attention"].numpy(), rows["keys"].numpy())
            summed = sum(float(a) * p for a, p in zip(alpha, rows["prompts"], strict=True))
            prefixes[index] = summed[:2], summed[2:]
        hand.append(feature_by_hand(backbone, image, prefixes))
    torch.testing.assert_close(found, torch.stack(hand), atol=1e-5, rtol=1e-5)


def test_draws_are_orthonormal_to_each_other_and_to_what_was_trained():
    torch.manual_seed(0)
    branch = build_coda_prompts(backbone=seeing_backbone(), components=4, length=2)
    for number in (1, 2, 3):
        branch.start_experience(number)
        for name in ("prompts", "keys", "attention"):
            new = branch.parts.get_parameter(name).detach().double()
            old = branch.parts.past(name).double()
            for block in range(3):
                drawn = new[block].flatten(1)
                before = old[:, block].reshape(-1, drawn.shape[1])
                eye = np.eye(4)
                np.testing.assert_allclose(drawn @ drawn.T, eye, atol=1e-6)
                if len(before):
                    before = before / before.norm(dim=1, keepdim=True)
                    np.testing.assert_allclose(before @ drawn.T, 0, atol=1e-6)
        with torch.no_grad():  # training leaves no orthonormal rows
            for parameter in branch.parts.parameters():
                parameter.add_(torch.randn_like(parameter))


def test_there_are_no_more_directions_than_dimensions():
    with pytest.raises(ValueError, match="2 rows cannot be orthogonal to 3 others in 4 dim"):
        orthonormal_rows(2, torch.eye(4)[:3])
    branch = build_coda_prompts(backbone=seeing_backbone(), components=20)
    branch.start_experience(1)
    with pytest.raises(ConfigError, match="experience 2 has no place for its components"):
        branch.start_experience(2)
    with pytest.raises(ConfigError, match="length=3 must be even"):
        build_coda_prompts(backbone=seeing_backbone(), length=3)


def train(*plugins, **options):
    torch.manual_seed(0)
    settings = {
        "train_epochs": 2,
        "train_mb_size": 8,
        "lr": 0.05,
        "mixed_precision": "no",
    } | options
    strategy = build_coda_prompt(
        backbone=seeing_backbone(),
        plugins=plugins,
        evaluator=EvaluationPlugin(),
        components=2,
        **settings,
    )
    kept = []
    for experience in learnable_benchmark(per_class=4).train_stream:
        strategy.train(experience)
        kept.append({n: t.clone() for n, t in strategy.network.branch.parts.state_dict().items()})
    return strategy, kept


def test_old_components_have_no_gradient_and_stay():
    strategy, (first, second) = train(weight_decay=0.1)
    for name in ("prompts", "keys", "attention"):
        assert torch.equal(second[f"past_{name}"][0], first[name])
        assert not torch.equal(second[name], first[name])
    branch = strategy.network.branch
    branch.zero_grad()
    strategy.network(torch.rand(2, 3, 16, 16))[:, 2].sum().backward()
    assert all(p.grad.abs().max() > 0 for p in branch.parameters())
    assert not any(buffer.requires_grad for buffer in branch.buffers())


def test_the_penalty_is_that_of_all_components():
    torch.manual_seed(0)
    backbone = seeing_backbone()
    branch = build_coda_prompts(
        backbone=backbone, blocks=[1], components=2, length=2, orthogonality=0.5
    )
    branch.start_experience(1)
    branch.start_experience(2)
    with torch.no_grad():
        for parameter in branch.parameters():
            parameter.add_(torch.randn_like(parameter))
    forward_branches(backbone, [branch], torch.rand(2, 3, 16, 16))
    off = 0.0
    for name in ("prompts", "keys", "attention"):
        rows = branch.components(name)[0].flatten(1).detach().double().numpy()  # (T * M, ...)
        assert len(rows) == 4
        off += ((rows @ rows.T - np.eye(4)) ** 2).mean()
    assert branch.losses()["orthogonality"].item() == pytest.approx(0.5 * off, rel=1e-5)


def test_the_learning_rate_falls_as_published():
    rates = []

    class Watch(SupervisedPlugin):
        def before_training_epoch(self, strategy, **kwargs):
            rates.append(strategy.optimizer.param_groups[0]["lr"])

    train(Watch(), train_epochs=3)
    one = [0.05 * math.cos(99 * math.pi * e / (200 * 2)) for e in range(3)]
    assert rates == pytest.approx(one * 2)
