"""DualPrompt against a pass by hand; whose keys and values an image gets."""

import pytest
import torch
from avalanche.training.plugins import EvaluationPlugin
from peftcl_prompts.dualprompt import build_dual_prompts, build_dualprompt

from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.models import forward_branches
from avalanche_peftcl.testing import learnable_benchmark, seeing_backbone
from avalanche_peftcl.training.plugins import GradientProjectionPlugin


@pytest.fixture
def four():
    """A network, four images, and prompts of four experiences, each of which one image has."""
    torch.manual_seed(0)
    backbone, images = seeing_backbone(), torch.rand(4, 3, 16, 16)
    branch = build_dual_prompts(
        backbone=backbone, g_blocks=[0], e_blocks=[1, 2], g_length=3, e_length=2
    )
    with torch.no_grad():
        for number, query in enumerate(backbone(images.flip(0)), start=1):
            branch.start_experience(number)
            branch.parts.key.copy_(query)
            branch.parts.prompts.uniform_(-1, 1)
    return backbone, branch.eval(), images


def expected(four, feature_by_hand, own):
    backbone, branch, images = four
    shared, prompts = branch.general["0"], branch.parts.every("prompts")
    return torch.stack(
        [
            feature_by_hand(
                backbone,
                image,
                {0: (shared.keys, shared.values)}
                | {1 + i: (prompts[t, i, 0], prompts[t, i, 1]) for i in range(2)},
            )
            for image, t in zip(images, own, strict=True)
        ]
    )


@torch.no_grad()
def test_each_image_has_its_own_keys_and_values(four, feature_by_hand, monkeypatch):
    backbone, branch, images = four
    hand = expected(four, feature_by_hand, [3, 2, 1, 0])
    (found,) = forward_branches(backbone, [branch], images)
    torch.testing.assert_close(found, hand, atol=1e-5, rtol=1e-5)
    own = branch.begin

    def as_in_the_port(backbone, embedded):
        """Reshape where axes are to be exchanged: images mix, and keys with values."""
        by_block = own(backbone, embedded).permute(1, 2, 0, 3, 4)  # (L, 2, B, P, D)
        return by_block.reshape(2, 4, 2, 2, 32).transpose(0, 1)

    monkeypatch.setattr(branch, "begin", as_in_the_port)
    (mixed,) = forward_branches(backbone, [branch], images)
    away = (mixed - hand).norm(dim=1) / hand.norm(dim=1)
    assert bool((away > 0.01).all())


@torch.no_grad()
def test_training_takes_those_of_the_experience(four, feature_by_hand):
    backbone, branch, images = four
    (found,) = forward_branches(backbone, [branch.train()], images)
    hand = expected(four, feature_by_hand, [3, 3, 3, 3])
    torch.testing.assert_close(found, hand, atol=1e-5, rtol=1e-5)
    queries, key = backbone(images), branch.parts.key
    cosines = [float(q @ key / q.norm() / key.norm()) for q in queries]
    assert float(branch.losses()["pull"]) == pytest.approx(-sum(cosines) / 4, abs=1e-6)


def train(*plugins):
    torch.manual_seed(0)
    strategy = build_dualprompt(
        backbone=seeing_backbone(),
        plugins=plugins,
        evaluator=EvaluationPlugin(),
        train_epochs=2,
        train_mb_size=8,
        mixed_precision="no",
        lr=0.05,
    )
    benchmark = learnable_benchmark(per_class=4)
    kept = []
    for experience in benchmark.train_stream:
        strategy.train(experience)
        kept.append({n: t.clone() for n, t in strategy.network.branch.state_dict().items()})
    return strategy, kept


def test_a_new_experience_starts_from_the_last_prompts_and_moves_no_old_ones():
    strategy, (first, second) = train()
    assert torch.equal(second["parts.past_prompts"][0], first["parts.prompts"])
    assert torch.equal(second["parts.past_key"][0], first["parts.key"])
    assert not torch.equal(second["parts.prompts"], first["parts.prompts"])
    branch = strategy.network.branch
    last = branch.parts.prompts.detach().clone()
    branch.start_experience(3)
    assert torch.equal(branch.parts.prompts, last)
    assert not torch.equal(branch.parts.key, second["parts.key"])
    assert branch.parts.key.abs().max() <= 1


def test_with_gradient_projection_it_is_pgp():
    plugin = GradientProjectionPlugin(1.0, where="step", n_samples=None)
    _, (first, second) = train(plugin)
    moved = {n: float((second[n] - first[n]).norm()) for n in first if n.startswith("general")}
    _, (free, later) = train()
    unprotected = {n: float((later[n] - free[n]).norm()) for n in moved}
    assert all(moved[n] < unprotected[n] for n in moved)
    sites = [report["site"] for report in plugin.summary()["experiences"][1]]
    assert "branch.parts.key" in sites
    assert "branch.general.0.keys" in sites
    assert set(plugin.summary()["unprotected"]) >= {"branch.parts.prompts"}


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        ({"g_blocks": [0], "e_blocks": [0, 1]}, r"blocks \[0\] are in g_blocks and e_blocks"),
        ({"e_blocks": [3]}, r"e_blocks=\[3\] must be at least one block, each once, of 0 to 2"),
        ({"e_blocks": []}, "must be at least one block"),
        ({"g_blocks": [1, 1]}, "each once"),
    ],
)
def test_blocks_that_there_are_not(blocks, message):
    with pytest.raises(ConfigError, match=message):
        build_dual_prompts(backbone=seeing_backbone(), **blocks)
