"""OnePrompt against a pass by hand."""

import pytest
import torch
from avalanche.training.plugins import EvaluationPlugin
from peftcl_prompts.one_prompt import build_one_prompt, build_one_prompts

from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.models import forward_branches
from avalanche_peftcl.testing import learnable_benchmark, seeing_backbone
from avalanche_peftcl.training.plugins import GradientProjectionPlugin


@torch.no_grad()
def test_a_pass_is_that_by_hand(feature_by_hand):
    torch.manual_seed(0)
    backbone, images = seeing_backbone(), torch.rand(3, 3, 16, 16)
    branch = build_one_prompts(backbone=backbone)
    prefixes = {int(i): (p.keys, p.values) for i, p in branch.prefixes.items()}
    assert {i: len(keys) for i, (keys, _) in prefixes.items()} == {0: 5, 1: 5, 2: 20}
    (found,) = forward_branches(backbone, [branch.eval()], images)
    hand = torch.stack([feature_by_hand(backbone, image, prefixes) for image in images])
    torch.testing.assert_close(found, hand, atol=1e-5, rtol=1e-5)


def test_all_experiences_train_the_same_and_projection_protects_it():
    torch.manual_seed(0)
    plugin = GradientProjectionPlugin(0.9, n_samples=None)
    strategy = build_one_prompt(
        backbone=seeing_backbone(),
        plugins=[plugin],
        evaluator=EvaluationPlugin(),
        train_epochs=3,
        train_mb_size=8,
        lr=0.05,
        mixed_precision="no",
    )
    branch = strategy.network.branch
    names, kept = [n for n, _ in branch.named_parameters()], []
    for experience in learnable_benchmark(per_class=4).train_stream:
        strategy.train(experience)
        kept.append({n: p.detach().clone() for n, p in branch.named_parameters()})
    assert strategy.network.forward_passes == 1
    assert [n for n, _ in branch.named_parameters()] == names
    assert any(not torch.equal(kept[0][n], kept[1][n]) for n in names)
    reports = plugin.summary()["experiences"]
    assert {report["site"] for report in reports[0]} == {f"branch.{n}" for n in names}
    assert any(report["removed_share"] > 0.1 for report in reports[1])


def test_a_block_has_one_length():
    with pytest.raises(ConfigError, match=r"blocks \[1\] are in short_blocks and long_blocks"):
        build_one_prompts(backbone=seeing_backbone(), long_blocks=[1, 2])
