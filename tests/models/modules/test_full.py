"""Full fine-tuning as a module: against a plain network of timm that trains itself."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.models import PEFTModel, build_full, forward_branches
from avalanche_peftcl.testing import BranchContract, toy_backbone


class TestFull(BranchContract):
    def create_branch(self, backbone):
        return build_full(backbone=backbone)


class TestLaterBlocks(BranchContract):
    def create_branch(self, backbone):
        return build_full(backbone=backbone, blocks=[1])


def pictures():
    return torch.randn(6, 3, 16, 16, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("blocks", [None, [1]], ids=["all", "the-last"])
def test_it_trains_as_the_network_itself_would(blocks):
    torch.manual_seed(0)
    backbone = toy_backbone()
    plain = copy.deepcopy(backbone.vit)
    model = PEFTModel(backbone, build_full(backbone=backbone, blocks=blocks))
    model.start_experience([(0, 0), (0, 1)])
    head = copy.deepcopy(model.head)
    chosen = plain.blocks if blocks is None else [plain.blocks[i] for i in blocks]
    weights = [p for part in (*chosen, plain.norm) for p in part.requires_grad_(True).parameters()]
    labels = torch.tensor([0, 1, 1, 0, 1, 0])
    ours = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    theirs = torch.optim.SGD([*weights, *head.parameters()], lr=0.1)
    model.train()
    for _ in range(3):
        ours.zero_grad()
        F.cross_entropy(model(pictures()), labels).backward()
        ours.step()
        theirs.zero_grad()
        features = plain.forward_head(plain.forward_features(pictures()), pre_logits=True)
        F.cross_entropy(head(features), labels).backward()
        theirs.step()
    tuned = dict(model.branch.network(backbone).vit.named_parameters())
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(tuned[name], parameter, atol=1e-5, rtol=1e-4)
    assert sum(p.numel() for p in weights) == sum(p.numel() for p in model.branch.parameters())


def test_the_frozen_network_and_the_embedding_stay():
    backbone = toy_backbone()
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    branch = build_full(backbone=backbone)
    optimizer = torch.optim.SGD(branch.parameters(), lr=0.1)
    (features,) = forward_branches(backbone, [branch], pictures())
    features.square().sum().backward()
    optimizer.step()
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())
    assert not any(p.requires_grad for p in backbone.parameters())
    view = branch.network(backbone).vit
    assert view.patch_embed.proj.weight is backbone.vit.patch_embed.proj.weight
    assert view.blocks[0].attn.qkv.weight is not backbone.vit.blocks[0].attn.qkv.weight


def test_another_network_is_refused():
    class Other(nn.Module):
        depth = 1

    with pytest.raises(ConfigError, match="full fine-tuning finds layers by their names"):
        build_full(backbone=Other())
    with pytest.raises(ConfigError, match="one that the network lacks"):
        build_full(backbone=toy_backbone(), blocks=[99])
