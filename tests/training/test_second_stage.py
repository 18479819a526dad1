"""The second stage of PEGP as on CLIP: near the features of the first, merged by one share."""

import pytest
import torch
from torch.nn import functional as F

from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.models import (
    PEFTModel,
    build_attention_adapters,
    build_linear_adapter,
    forward_tokens,
)
from avalanche_peftcl.testing import toy_backbone
from avalanche_peftcl.training.pegp import build_pegp
from avalanche_peftcl.training.second_stage import SecondStage


@torch.no_grad()
def shake(branch, size=0.5):
    for p in branch.parameters():
        p.add_(size * torch.randn_like(p))
    return [p.clone() for p in branch.parameters()]


@pytest.mark.parametrize("near", ["tokens", "features"])
@pytest.mark.parametrize("build", [build_attention_adapters, build_linear_adapter])
def test_what_stays_near_and_what_is_merged(build, near):
    torch.manual_seed(0)
    backbone, images = toy_backbone(), torch.rand(3, 3, 16, 16)
    branch = build(backbone=backbone)
    model, stage = (
        PEFTModel(backbone, branch),
        SecondStage(epochs=1, offset=1, share=0.25, near=near),
    )
    old = shake(branch)
    stage.remember(branch)
    first = shake(branch)
    passes = [forward_tokens(backbone, branch, images)]
    stage.begin(branch)
    assert all(torch.equal(p, q) for p, q in zip(branch.parameters(), old, strict=True))
    passes.append(forward_tokens(backbone, branch, images))
    features, distance = stage.features(model, images)
    torch.testing.assert_close(features, passes[1][0])
    seen = [
        F.normalize(pooled, dim=1) if near == "features" else backbone.norm(tokens)
        for pooled, tokens in passes
    ]
    torch.testing.assert_close(distance, (seen[0] - seen[1]).square().mean())
    behind = build is build_linear_adapter and near == "tokens"
    assert distance == 0 if behind else distance > 1e-4
    if not behind:
        gradients = torch.autograd.grad(distance, list(branch.parameters()))
        assert all(g.abs().max() > 0 for g in gradients)
    second = shake(branch)
    stage.merge(branch, experience=7)
    for p, one, other in zip(branch.parameters(), first, second, strict=True):
        torch.testing.assert_close(p.detach(), 0.75 * one + 0.25 * other)


def test_a_module_behind_the_network_is_kept_near_by_its_features():
    backbone = toy_backbone()
    linear = build_linear_adapter(backbone=backbone)
    assert build_pegp(backbone=backbone, module=linear).second_stage.near == "features"
    assert build_pegp(backbone=backbone).second_stage.near == "tokens"
    assert build_pegp(backbone=backbone, near="features").second_stage.near == "features"
    with pytest.raises(ConfigError, match="merge_share=2 must be from 0 to 1, or None"):
        build_pegp(backbone=backbone, merge_share=2)
