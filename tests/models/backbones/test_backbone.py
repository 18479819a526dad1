import pytest
import timm
import torch
from timm.models.vision_transformer import VisionTransformer

from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.models import (
    Branch,
    InputConfig,
    ViTBackbone,
    create_backbone,
    forward_branches,
)


def test_frozen_means_no_gradient_and_eval_mode(backbone):
    backbone.train()
    assert not any(p.requires_grad for p in backbone.parameters())
    assert not any(m.training for m in backbone.modules())


def test_steps_compose_to_the_network(backbone):
    images = torch.randn(3, 3, 16, 16)
    tokens = backbone.embed(images)
    assert tokens.shape == (3, backbone.num_tokens, backbone.embed_dim) == (3, 17, 32)
    for i, block in enumerate(backbone.blocks):
        after = backbone.attend(i, tokens)
        torch.testing.assert_close(after + backbone.feed(i, after), block(tokens))
        tokens = block(tokens)
    torch.testing.assert_close(backbone.pool(tokens), backbone.vit(images))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"img_size": 24, "patch_size": 8},
        {"qk_norm": True},
        {"init_values": 0.1},
        {"reg_tokens": 2},
        {"global_pool": "avg", "class_token": False},
        {"no_embed_class": True},
        {"depth": 1},
        {"qkv_bias": False},
        {"pre_norm": True},
    ],
)
def test_shared_pass_equals_timm_for_every_kind_of_vit(make_backbone, changes):
    backbone = make_backbone(**changes)
    size = backbone.input_config.img_size
    images = torch.randn(2, 3, size, size)
    expected = backbone.vit(images)
    assert backbone.embed(images).shape[1] == backbone.num_tokens
    for features in forward_branches(backbone, [Branch(), Branch()], images):
        torch.testing.assert_close(features, expected, atol=1e-5, rtol=1e-5)


def test_queries_are_a_slice_of_the_whole(backbone):
    tokens = torch.randn(2, 17, 32)
    torch.testing.assert_close(
        backbone.attend(1, tokens, queries=3), backbone.attend(1, tokens)[:, :3]
    )


def test_input_config_follows_the_model_or_is_none():
    deit = create_backbone("deit_tiny_patch16_224", img_size=32, depth=1).input_config
    assert deit.img_size == 32
    assert deit.mean == pytest.approx((0.485, 0.456, 0.406))
    cut = create_backbone("deit_tiny_patch16_224", img_size=32, depth=1, crop_pct=1.0)
    assert (deit.crop_pct, cut.input_config.crop_pct) == (0.9, 1.0)
    linear = create_backbone(
        "deit_tiny_patch16_224", img_size=32, depth=1, interpolation="bilinear"
    )
    assert (deit.interpolation, linear.input_config.interpolation) == ("bicubic", "bilinear")
    plain = create_backbone("deit_tiny_patch16_224", img_size=32, depth=1, normalize="none")
    assert plain.input_config.mean == (0, 0, 0)
    assert plain.input_config.std == (1, 1, 1)


class Reversed(VisionTransformer):
    def forward_features(self, x):
        return super().forward_features(x).flip(1)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: timm.create_model("resnet10t"), "ResNet is not .*: it is built of other parts"),
        (lambda: Reversed(depth=1, embed_dim=12), "it has a forward pass of its own"),
        (lambda: VisionTransformer(depth=0, embed_dim=12), "it has no blocks"),
        (lambda: VisionTransformer(depth=1, embed_dim=12, global_pool=""), "it pools no tokens"),
        (
            lambda: timm.create_model("vit_base_patch16_rpn_224", depth=1, embed_dim=12),
            "its blocks are a ResPostBlock",
        ),
    ],
)
def test_a_network_whose_passes_would_be_others_is_refused(make, said):
    with pytest.raises(ConfigError, match=said):
        ViTBackbone(make(), InputConfig(img_size=224))
