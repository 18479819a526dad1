import copy

import pytest
import torch

from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.models import create_backbone, forward_branches
from avalanche_peftcl.models.modules.lora import build_lora
from avalanche_peftcl.testing import BranchContract


class TestLoRA(BranchContract):
    def create_branch(self, backbone):
        return build_lora(backbone=backbone, r=3)


class TestLoRAEverywhere(BranchContract):
    def create_branch(self, backbone):
        return build_lora(
            backbone=backbone,
            target_modules=("qkv", "attn.proj", "fc1", "fc2"),
            blocks=[1, 2],
            alpha=2.5,
            dropout=0.1,
            init="gaussian",
            learn_scale=False,
        )


@pytest.fixture
def images():
    torch.manual_seed(1)
    return torch.randn(3, 3, 16, 16)


def shake(branch):
    with torch.no_grad():
        for p in branch.parameters():
            p.add_(0.1 * torch.randn_like(p))


def run(backbone, branch, images):
    return forward_branches(backbone, [branch], images)[0]


def parts(branch, index):
    """Return A, B and the scale of a block's qkv."""
    tuner = branch.tuners[f"blocks_{index}_attn_qkv"]
    down, up = (tuner[name]["default"].weight for name in ("lora_A", "lora_B"))
    return down, up, tuner["scaling"]["default"]


@pytest.mark.parametrize("init", ["kaiming", "gaussian"])
def test_starts_exactly_as_the_backbone(backbone, images, init):
    branch = build_lora(backbone=backbone, init=init, r=4).eval()
    # the written-out attention sums in another order: features of order 1, some hundred roundings
    torch.testing.assert_close(run(backbone, branch, images), backbone(images), atol=2e-5, rtol=0)
    assert torch.equal(branch.network(backbone)(images), backbone(images))
    for index in range(3):
        down, up, scale = parts(branch, index)
        assert (down.shape, up.shape, scale.shape) == ((4, 32), (96, 4), (1,))
        assert scale.item() == 1
        assert not up.any()
        if init == "gaussian":
            assert down.std().item() == pytest.approx(1 / 4, rel=0.3)
        else:
            assert down.abs().max() <= 1 / 32**0.5


def test_is_the_weight_plus_a_scaled_product(backbone, images):
    """The weights of a copy of the ViT, changed by hand."""
    backbone.double()
    branch = build_lora(backbone=backbone, r=3, alpha=6.0, blocks=[0, 2]).eval()
    assert parts(branch, 2)[2].item() == 2
    shake(branch)
    by_hand = copy.deepcopy(backbone.vit)
    with torch.no_grad():
        for index in (0, 2):
            down, up, scale = parts(branch, index)
            by_hand.blocks[index].attn.qkv.weight += scale * up @ down
    images = images.double()
    torch.testing.assert_close(run(backbone, branch, images), by_hand(images))
    assert (by_hand(images) - backbone(images)).abs().max() > 1e-2


def test_without_a_learned_scale_there_are_a_and_b_only(backbone, images):
    learned = build_lora(backbone=backbone, r=3, alpha=2.0).eval()
    fixed = build_lora(backbone=backbone, r=3, alpha=2.0, learn_scale=False).eval()
    assert len(list(learned.parameters())) == 9
    assert len(list(fixed.parameters())) == 6
    fixed.load_state_dict(learned.state_dict(), strict=False)
    assert torch.equal(run(backbone, fixed, images), run(backbone, learned, images))


def test_scale_trains_under_autocast_and_follows_moves_and_copies(backbone, images):
    branch = build_lora(backbone=backbone, r=3)
    shake(branch)
    expected = run(backbone, branch, images)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        tokens = torch.randn(2, 17, 32, dtype=torch.bfloat16)
        assert branch.network(backbone).blocks[0].attn.qkv(tokens).dtype == torch.bfloat16
        run(backbone, branch, images).float().square().sum().backward()
    assert all(parts(branch, i)[2].grad.abs() > 0 for i in range(3))
    both = torch.nn.ModuleList([backbone, branch])
    twin_backbone, twin = copy.deepcopy(both).double()
    torch.testing.assert_close(
        run(twin_backbone, twin, images.double()), expected.double(), atol=1e-4, rtol=1e-4
    )
    for index in range(3):
        layer = twin.network(twin_backbone).blocks[index].attn.qkv
        assert layer.scaling["default"] is parts(twin, index)[2]
        assert layer.scaling["default"] is not parts(branch, index)[2]
    with torch.no_grad():
        parts(twin, 1)[2].zero_()
    assert torch.equal(run(backbone, branch, images), expected)


def test_peft_merges_the_learned_scale(backbone, images):
    branch = build_lora(backbone=backbone, r=3, learn_scale=True).eval()
    shake(branch)
    expected = run(backbone, branch, images)
    twin_backbone, twin = copy.deepcopy(torch.nn.ModuleList([backbone, branch]))
    view = twin.network(twin_backbone)
    for block in view.blocks:
        block.attn.qkv.merge(safe_merge=True)
    torch.testing.assert_close(view(images), expected, atol=1e-5, rtol=1e-5)


def test_scale_site_is_the_length_of_what_it_multiplies(backbone, images):
    branch = build_lora(backbone=backbone, r=3, blocks=[0]).eval()
    sites = list(branch.projection_sites())
    assert [site.name.split(".")[2] for site in sites] == ["lora_A", "lora_B", "scaling"]
    assert branch.unprotected() == []
    site = sites[2]
    tokens = torch.randn(2, 17, 32)
    assert not site.features(tokens).any()  # B is zero: nothing holds the scale yet
    shake(branch)
    down, up, scale = parts(branch, 0)
    assert site.parameter is scale
    assert site.view(scale).shape == (1, 1, 1)
    expected = (tokens @ down.T @ up.T).norm(dim=-1, keepdim=True)
    torch.testing.assert_close(site.features(tokens), expected)


def test_counts_are_those_of_the_release():
    """Of ViT-B/16 with rank 5 in five blocks, from the shapes alone."""
    with torch.device("meta"):
        backbone = create_backbone("vit_base_patch16_224")
        branch = build_lora(backbone=backbone)
    assert sum(p.numel() for p in branch.parameters()) == 5 * (5 * 768 + 5 * 2304 + 1)
    assert sum(p.numel() for p in backbone.parameters()) == 85_798_656


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"init": "zeros"}, "init must be kaiming or gaussian, not 'zeros'"),
        ({"r": 0}, "peft refuses LoraConfig.*positive"),
        ({"dropout": 2.0}, "peft refuses LoraConfig.*probability"),
        ({"target_modules": ("key",)}, "block 0 has no layer 'key'.*attn.qkv, attn.proj, mlp.fc1"),
        ({"blocks": [0, 0]}, "block twice"),
    ],
)
def test_bad_arguments_are_config_errors(backbone, options, message):
    with pytest.raises(ConfigError, match=f"(?s){message}"):
        build_lora(backbone=backbone, **options)
