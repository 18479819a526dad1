"""SSF and VPT against timm's own blocks, run by hand."""

import pytest
import torch
from peftcl_adapters.aper import build_aper
from peftcl_adapters.ssf import build_ssf
from peftcl_adapters.vpt import build_vpt

from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.models import forward_branches
from avalanche_peftcl.testing import BranchContract, toy_backbone, toy_benchmark

IMAGES = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.mark.slow
class TestSSF(BranchContract):
    def create_branch(self, backbone):
        return build_ssf(backbone=backbone)


@pytest.mark.slow
@pytest.mark.parametrize("deep", [True, False])
class TestVPT(BranchContract):
    identity_at_start = False

    @pytest.fixture(autouse=True)
    def _kind(self, deep):
        self.deep = deep

    def create_branch(self, backbone):
        return build_vpt(backbone=backbone, length=2, deep=self.deep)


def shaken(branch):
    with torch.no_grad():
        for p in branch.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))
    return branch


@torch.no_grad()
def test_vpt_is_timms_network_with_prompts_behind_the_class_token():
    """Deep: new ones for each block; shallow: the same go through all of them."""
    backbone = toy_backbone()
    for deep in (True, False):
        branch = shaken(build_vpt(backbone=backbone, length=3, deep=deep))
        tokens = backbone.embed(IMAGES)
        for index, block in enumerate(backbone.blocks):
            if deep or index == 0:
                prompts = (branch.prompts[index] if deep else branch.prompts).expand(3, -1, -1)
                rest = tokens[:, 1:] if index == 0 else tokens[:, 4:]
                tokens = torch.cat([tokens[:, :1], prompts, rest], dim=1)
            tokens = block(tokens)
        expected = backbone.vit.norm(tokens)[:, 0]
        (found,) = forward_branches(backbone, [branch], IMAGES)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_ssf_is_scale_and_shift_behind_each_operation():
    backbone = toy_backbone()
    branch, frozen = shaken(build_ssf(backbone=backbone)), backbone(IMAGES)
    ssf = {name: (each.scale, each.shift) for name, each in branch.shifts.items()}

    def behind(name, x):
        scale, shift = ssf[name]
        return scale * x + shift

    tokens = backbone.embed(IMAGES)
    for i, block in enumerate(backbone.blocks):
        x = behind(f"blocks_{i}_norm1", block.norm1(tokens))
        qkv = behind(f"blocks_{i}_attn_qkv", block.attn.qkv(x))
        heads = block.attn.num_heads
        q, k, v = qkv.reshape(*x.shape[:2], 3, heads, -1).permute(2, 0, 3, 1, 4)
        weights = (q @ k.mT * q.shape[-1] ** -0.5).softmax(-1)
        x = (weights @ v).transpose(1, 2).flatten(2)
        tokens = tokens + behind(f"blocks_{i}_attn_proj", block.attn.proj(x))
        x = behind(f"blocks_{i}_norm2", block.norm2(tokens))
        x = block.mlp.act(behind(f"blocks_{i}_mlp_fc1", block.mlp.fc1(x)))
        tokens = tokens + behind(f"blocks_{i}_mlp_fc2", block.mlp.fc2(x))
    expected = behind("norm", backbone.vit.norm(tokens))[:, 0]
    (found,) = forward_branches(backbone, [branch], IMAGES)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(backbone(IMAGES), frozen)
    assert sum(p.numel() for p in branch.parameters()) == 2 * sum(
        s.numel() for s, _ in ssf.values()
    )


@pytest.mark.parametrize("build", [build_ssf, build_vpt])
def test_aper_adapts_them_in_the_first_experience(build):
    benchmark, backbone = toy_benchmark(), toy_backbone()
    options = {"train_epochs": 1, "train_mb_size": 6, "lr": 0.1, "mixed_precision": "no"}
    strategy = build_aper(backbone=backbone, module=build(backbone=backbone), **options)
    start = {k: v.clone() for k, v in strategy.model.branch.state_dict().items()}
    strategy.train(benchmark.train_stream[0])
    adapted = {k: v.clone() for k, v in strategy.model.branch.state_dict().items()}
    strategy.train(benchmark.train_stream[1])
    after = strategy.model.branch.state_dict()
    assert any(not torch.equal(adapted[name], value) for name, value in start.items())
    assert all(torch.equal(after[name], value) for name, value in adapted.items())


def test_a_network_of_another_kind_is_refused():
    class Other:
        pass

    with pytest.raises(ConfigError, match="which a Other is none of; use an adapter"):
        build_ssf(backbone=Other())
