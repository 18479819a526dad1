from functools import partial

import pytest
import torch

from avalanche_peftcl.models import (
    Backbone,
    create_backbone,
    forward_branches,
    forward_tokens,
)
from avalanche_peftcl.models.projection.sites import projection_sites
from avalanche_peftcl.testing import toy_backbone


def span_of_features(model, run):
    """For each site the projectors ``(G, D, D)`` on what its features span while ``run`` runs."""
    sites, heard = projection_sites(model), {}

    def hear(site, module, args):
        groups = len(site.view(site.parameter))
        heard.setdefault(site.name, []).append(
            site.features(args[0]).reshape(-1, groups, dim(site))
        )

    def dim(site):
        return site.view(site.parameter).shape[2]

    handles = [site.place.register_forward_pre_hook(partial(hear, site)) for site in sites]
    run()
    for handle in handles:
        handle.remove()
    spans = []
    for site in sites:
        rows = torch.cat(heard[site.name]).double().transpose(0, 1)  # (G, rows, D)
        _, values, right = torch.linalg.svd(rows, full_matrices=False)
        right = right * (values > 1e-6 * values[:, :1])[..., None]
        spans.append((site, (right.mT @ right).float()))
    return spans


@pytest.fixture
def diff_backbone() -> Backbone:
    """The toy with differential attention, which takes no further keys."""
    size = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 3, "num_heads": 4}
    torch.manual_seed(0)
    return create_backbone("vit_dlittle_patch16_reg1_gap_256", **size)


@pytest.fixture
def move():
    """Move every parameter at random; given ``old``, not along the features of that pass."""
    torch.manual_seed(0)

    @torch.no_grad()
    def move(model, *, old=None, size=0.3):
        spans = span_of_features(model, old) if old else []
        for parameter in model.parameters():
            update = size * torch.randn_like(parameter)
            for site, projectors in spans:
                if site.parameter is parameter:
                    view = site.view(update)  # writes through
                    view.sub_(view @ projectors)
            parameter.add_(update)

    return move


@pytest.fixture
def assert_passes(move):
    """Assert that a pass is the one that ``reference`` writes out, once the branch has moved."""

    def check(backbone, branch, reference):
        move(branch)
        images = torch.randn(2, 3, 16, 16)
        expected = reference(backbone, branch, images)
        torch.testing.assert_close(forward_tokens(backbone, branch, images)[1], expected)
        (features,) = forward_branches(backbone, [branch], images)
        torch.testing.assert_close(features, backbone.pool(expected))

    return check


@pytest.fixture
def make_sharp_backbone():
    """Build a ViT of 5 tokens, 32 dimensions and 2 heads whose attention is far from uniform."""

    @torch.no_grad()
    def make(**changes):
        backbone = toy_backbone(**({"img_size": 8, "num_heads": 2} | changes))
        for block in backbone.blocks:
            block.attn.qkv.weight.mul_(8)
            block.attn.proj.weight.mul_(8)
        return backbone

    return make
