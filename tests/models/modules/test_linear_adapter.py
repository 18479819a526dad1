import pytest
import torch
from torch import nn

from avalanche_peftcl.models import (
    ImageTextBackbone,
    InputConfig,
    LinearAdapterBranch,
    build_linear_adapter,
    forward_branches,
)
from avalanche_peftcl.testing import BranchContract, toy_backbone


class TestLinearAdapter(BranchContract):
    def create_branch(self, backbone):
        return build_linear_adapter(backbone=backbone)


class TestAsReleased(BranchContract):
    identity_at_start = False

    def create_branch(self, backbone):
        return build_linear_adapter(backbone=backbone, r=3, start="released")


@pytest.fixture
def joint():
    """A toy whose features are of another width than its tokens."""
    torch.manual_seed(0)
    projection, size = nn.Linear(32, 24, bias=False), InputConfig(img_size=16)
    vit = toy_backbone().vit
    return ImageTextBackbone(vit, projection, size, out_features=24, logit_scale=30.0)


def test_it_is_a_product_of_two_matrices_behind_the_projection(joint, move):
    branch, images = build_linear_adapter(backbone=joint, r=3), torch.randn(2, 3, 16, 16)
    move(branch)
    z, down, up = joint(images), branch.down.weight, branch.up.weight
    assert (down.shape, up.shape) == ((3, 24), (24, 3))
    (features,) = forward_branches(joint, [branch], images)
    torch.testing.assert_close(features, z @ (torch.eye(24) + up @ down).T)


def test_starts():
    torch.manual_seed(0)
    identity = LinearAdapterBranch(24)
    assert not identity.up.weight.any()
    assert identity.down.weight.abs().max() <= 24**-0.5
    torch.manual_seed(0)
    released = LinearAdapterBranch(24, start="released")
    torch.manual_seed(0)
    assert torch.equal(released.down.weight, nn.Linear(24, 5, bias=False).weight)
    assert 0 < released.up.weight.abs().max() <= 5**-0.5


def test_old_features_stay(joint, move):
    branch = build_linear_adapter(backbone=joint, r=8)
    move(branch)
    old, new = torch.randn(2, 4, 3, 16, 16)

    def features(images):
        return forward_branches(joint, [branch], images)[0].detach()

    before_old, before_new = features(old), features(new)
    move(branch, old=lambda: features(old))
    torch.testing.assert_close(features(old), before_old, atol=1e-5, rtol=0)
    assert (features(new) - before_new).abs().max() > 0.01
