import pickle

import pytest
import torch

from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.models import forward_branches
from avalanche_peftcl.models.modules.prompt import build_prompt
from avalanche_peftcl.models.projection.sites import projection_sites
from avalanche_peftcl.testing import BranchContract


class TestPrompt(BranchContract):
    identity_at_start = False

    def create_branch(self, backbone):
        return build_prompt(backbone=backbone, length=4)


class TestPromptsOfLaterBlocks(TestPrompt):
    def create_branch(self, backbone):
        return build_prompt(backbone=backbone, length=2, blocks=[1, 2])


def reference(backbone, branch, images):
    """The pass with timm's own attention over prompts and tokens, the prompts then dropped."""
    x = backbone.embed(images)
    for i, block in enumerate(backbone.vit.blocks):
        y = block.norm1(x)
        if str(i) in branch.extensions:
            prompts = branch.extensions[str(i)].tokens
            both = torch.cat([prompts.repeat(len(y), 1, 1), y], dim=1)
            h = x + block.attn(both)[:, len(prompts) :]
        else:
            h = x + block.attn(y)
        x = h + block.mlp(block.norm2(h))
    return x


@pytest.mark.parametrize("options", [{}, {"qk_norm": True}, {"qkv_bias": False}])
@pytest.mark.parametrize("blocks", [None, [0, 1, 2], [2]])
def test_equals_the_pass_written_out(make_backbone, assert_passes, blocks, options):
    backbone = make_backbone(**options)
    branch = build_prompt(backbone=backbone, length=3, blocks=blocks)
    assert_passes(backbone, branch, reference)


def test_the_first_block_is_the_default(backbone):
    assert list(build_prompt(backbone=backbone).extensions) == ["0"]


def test_against_inputs_prompts_and_inputs_are_stacked(backbone):
    branch = build_prompt(backbone=backbone, length=3)
    prompts, tokens, seen = branch.extensions["0"], torch.randn(2, 17, 32), []
    prompts.key_probe.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    branch.attend(backbone, 0, tokens)
    for rows, normed in zip(seen[0], backbone.blocks[0].norm1(tokens), strict=True):
        torch.testing.assert_close(rows, torch.cat([prompts.tokens, normed]))


def test_against_inputs_products_stay_and_features_move(make_sharp_backbone, move):
    backbone = make_sharp_backbone()
    branch = build_prompt(backbone=backbone, length=10)
    move(branch)
    images = torch.randn(1, 3, 8, 8)
    inputs = backbone.blocks[0].norm1(backbone.embed(images))[0]

    def features():
        return forward_branches(backbone, [branch], images)[0].detach()

    before, old = features(), branch.extensions["0"].tokens.detach().clone()
    move(branch, old=features)
    new = branch.extensions["0"].tokens.detach()
    assert (new - old).norm() > 1
    # a product is a sum of 32 terms, each rounded: the tokens moved by more than 1
    atol = 32 * torch.finfo(torch.float32).eps * new.norm(dim=1).max() * inputs.norm(dim=1).max()
    torch.testing.assert_close(inputs @ new.T, inputs @ old.T, atol=float(atol), rtol=0)
    atol = 32 * torch.finfo(torch.float32).eps * new.norm(dim=1).max() * old.norm(dim=1).max()
    torch.testing.assert_close(old @ new.T, old @ old.T, atol=float(atol), rtol=0)  # first order
    assert (features() - before).abs().max() > 0.01


def test_against_queries_weights_stay_without_the_values(make_sharp_backbone, move):
    backbone = make_sharp_backbone()
    branch = build_prompt(backbone=backbone, against="queries")
    move(branch)
    prompts, embedded = branch.extensions["0"], backbone.embed(torch.randn(1, 3, 8, 8))
    seen = []
    prompts.value_probe.register_forward_pre_hook(lambda module, args: seen.append(args[0]))

    def attend():
        return branch.attend(backbone, 0, embedded).detach()

    before = attend()
    move(branch, old=attend)
    assert (attend() - before).abs().max() > 0.01
    assert seen[0].shape == (1, 2, 5, 10)
    torch.testing.assert_close(seen[-1], seen[0], atol=1e-5, rtol=0)


def test_sites_can_be_pickled(backbone):
    sites = projection_sites(build_prompt(backbone=backbone, project_values=True))
    again = pickle.loads(pickle.dumps(sites))
    assert [site.name for site in again] == ["extensions.0.tokens", "extensions.0.tokens:values"]
    assert [site.view(site.parameter).shape for site in again] == [(1, 10, 32), (1, 32, 10)]


def test_what_cannot_hold_is_refused(make_backbone, diff_backbone):
    with pytest.raises(ConfigError, match="takes no further keys"):
        build_prompt(backbone=diff_backbone)
    normed = make_backbone(qk_norm=True)
    with pytest.raises(ConfigError, match=r"block 0 normalises them .* use against='inputs'"):
        build_prompt(backbone=normed, against="queries")
