import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.models.modules.attention_adapter import (
    AttentionAdapter,
    build_attention_adapters,
)
from avalanche_peftcl.models.projection.sites import projection_sites
from avalanche_peftcl.testing import BranchContract


class TestAttentionAdapters(BranchContract):
    def create_branch(self, backbone):
        return build_attention_adapters(backbone=backbone)


class TestLaterBlocks(BranchContract):
    def create_branch(self, backbone):
        return build_attention_adapters(backbone=backbone, blocks=[1, 2], learn_scale=False)


def reference(backbone, branch, images):
    """The pass written out block by block, all tokens of every block."""
    x = backbone.embed(images)
    for i, block in enumerate(backbone.vit.blocks):
        y = block.norm1(x)
        h = x + block.ls1(block.attn(y))
        if str(i) in branch.adapters:
            adapter = branch.adapters[str(i)]
            hidden = F.gelu(y @ adapter.down.weight.T)
            h = h + adapter.scale * (hidden @ adapter.up.weight.T)
        x = h + block.ls2(block.mlp(block.norm2(h)))
    return x


@pytest.mark.parametrize("blocks", [None, [0], [1], [2]])
def test_equals_the_pass_written_out(backbone, assert_passes, blocks):
    branch = build_attention_adapters(backbone=backbone, r=3, scale=0.5, blocks=blocks)
    assert_passes(backbone, branch, reference)


def test_few_queries_give_the_slice(backbone, move):
    branch = build_attention_adapters(backbone=backbone)
    move(branch)
    tokens = torch.randn(2, 17, 32)
    few = branch.attend(backbone, 1, tokens, queries=3)
    torch.testing.assert_close(few, branch.attend(backbone, 1, tokens)[:, :3])


def test_works_where_attention_takes_no_further_keys(diff_backbone, assert_passes):
    branch = build_attention_adapters(backbone=diff_backbone)
    assert_passes(diff_backbone, branch, reference)


def test_scale_trains_only_if_asked():
    learnt, fixed = AttentionAdapter(8), AttentionAdapter(8, scale=0.5, learn_scale=False)
    assert learnt.scale.shape == (1,)
    assert {"scale", "down.weight", "up.weight"} == learnt.state_dict().keys()
    assert fixed.scale == 0.5
    assert {"down.weight", "up.weight"} == fixed.state_dict().keys()
    assert [site.name for site in fixed.projection_sites()] == ["down.weight", "up.weight"]


def test_scale_may_move_until_an_old_output_is_not_zero(move):
    adapter = AttentionAdapter(8, r=6)
    tokens = torch.randn(2, 8)
    nn.init.constant_(adapter.scale, 2)
    move(adapter, old=lambda: adapter(tokens))
    moved = adapter.scale.item()
    assert moved != 2
    assert adapter(tokens).abs().max() < 1e-5
    move(adapter)
    moved = adapter.scale.item()
    move(adapter, old=lambda: adapter(tokens))
    assert adapter.scale.item() == pytest.approx(moved)


def test_sites_can_be_pickled(backbone):
    sites = projection_sites(build_attention_adapters(backbone=backbone))
    assert len(sites) == 9
    again = pickle.loads(pickle.dumps(sites))
    assert [site.name for site in again] == [site.name for site in sites]
    hidden = torch.randn(3, 5)
    for one, other in zip(sites[2::3], again[2::3], strict=True):
        assert one.name.endswith("scale")
        assert torch.equal(other.features(hidden), one.features(hidden))


def test_blocks_are_checked(backbone):
    with pytest.raises(ConfigError, match="blocks count from 0 to 2"):
        build_attention_adapters(backbone=backbone, blocks=[3])
