"""Every ViT of timm is timm's to rounding, or it is refused when it is built; nothing between."""

import pytest
import timm
import torch
from timm.models.vision_transformer import VisionTransformer

from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.models import Branch, create_backbone, forward_branches, forward_tokens
from avalanche_peftcl.models.backbones.attention import is_plain
from avalanche_peftcl.models.modules.adapter import build_adapters
from avalanche_peftcl.models.modules.attention_adapter import build_attention_adapters
from avalanche_peftcl.models.modules.lora import build_lora
from avalanche_peftcl.models.modules.patch_prompt import build_patch_prompts
from avalanche_peftcl.models.modules.prefix import build_prefix
from avalanche_peftcl.models.modules.prompt import build_prompt

MODULES = ("vision_transformer", "deit", "vision_transformer_hybrid", "vitamin")
NAMES = [name for module in MODULES for name in timm.list_models(module=module)]

# what timm builds as a VisionTransformer of other blocks; each is refused
OTHER_BLOCKS = {
    "vit_base_patch16_18x2_224",
    "vit_base_patch16_rpn_224",
    "vit_base_patch16_xp_224",
    "vit_dpwee_patch16_reg1_gap_256",
    "vit_huge_patch14_xp_224",
    "vit_large_patch14_xp_224",
    "vit_pwee_patch16_reg1_gap_256",
    "vit_small_patch16_18x2_224",
}
# one of each kind: plain, another pooling, registers, a norm before, a distillation token, gates,
# differential attention, scaled norms, a convolution in front, no position embedding
KINDS = [
    "vit_tiny_patch16_224",
    "vit_base_patch16_clip_quickgelu_224",
    "vit_base_patch16_gap_224",
    "vit_base_patch14_reg4_dinov2",
    "vit_base_patch16_siglip_224",
    "vit_so400m_patch14_siglip_gap_384",
    "vit_dwee_patch16_reg1_gap_256",
    "test_vit2",
    "test_vit3",
    "test_vit4",
    "deit_tiny_distilled_patch16_224",
    "deit3_small_patch16_224",
    "vit_base_patch16_rpn_224",
    "vit_base_patch16_xp_224",
    "vit_tiny_r_s16_p8_224",
]


def build(name):
    """Build two narrow blocks of a model, whose patches are as large and as many as fit 4 by 4."""
    with torch.device("meta"):
        theirs = timm.create_model(name, num_classes=0, depth=1)
    heads = theirs.blocks[0].attn.num_heads if hasattr(theirs.blocks[0], "attn") else 6
    patch = theirs.patch_embed.patch_size[0]
    hybrid = hasattr(theirs.patch_embed, "backbone")
    size = theirs.patch_embed.img_size[0] if name.startswith("vitamin") else 4 * patch
    options = {"img_size": 64 if hybrid and size < 64 else size, "depth": 2}
    if not isinstance(theirs.patch_embed.proj, torch.nn.Identity):  # else as wide as the stage
        options["embed_dim"] = 8 * heads
    torch.manual_seed(0)
    return create_backbone(name, **options)


def sharpen(vit):
    """Draw weights at random, so that nothing is at a start where it has no effect."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, p in vit.named_parameters():
            noise = torch.randn(p.shape, generator=generator)
            if p.ndim < 2:  # norms, scales and biases
                p.copy_(0.2 * noise + (0 if name.endswith("bias") else 1))
            elif name.startswith(("cls_token", "reg_token", "dist_token", "pos_embed")):
                p.copy_(noise)
            elif not name.startswith("patch_embed.backbone"):
                p.copy_(noise / p[0].numel() ** 0.5)


def modules(backbone):
    """Yield a pass of every kind by its name; those that an attention cannot serve are refused."""
    builders = {
        "adapter": lambda: build_adapters(backbone=backbone),
        "attention_adapter": lambda: build_attention_adapters(backbone=backbone),
        "lora": lambda: build_lora(backbone=backbone),
        "prefix": lambda: build_prefix(backbone=backbone, length=2),
        "prompt": lambda: build_prompt(backbone=backbone, length=2),
        "patch_prompt": lambda: build_patch_prompts(backbone=backbone, length=2),
    }
    for name, make in builders.items():
        if name in EXTENDING and not all(is_plain(block.attn) for block in backbone.blocks):
            with pytest.raises(ConfigError, match="takes no further keys; use an adapter or LoRA"):
                make()
        else:
            yield name, make()


EXTENDING = ("prefix", "prompt")
IDENTITY = ("adapter", "attention_adapter", "lora")


@torch.no_grad()
def check(name):
    """Compare every pass of a model with timm's own; a model of other blocks is refused."""
    if name in OTHER_BLOCKS:
        with pytest.raises(ConfigError, match="not a plain vision transformer: its blocks are a"):
            build(name)
        return
    backbone = build(name)
    vit = backbone.vit
    assert isinstance(vit, VisionTransformer)
    sharpen(vit)
    size = backbone.input_config.img_size
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    tokens = vit.forward_features(images)
    expected = vit.forward_head(tokens, pre_logits=True)
    assert tokens.shape == (2, backbone.num_tokens, backbone.embed_dim)
    assert expected.shape == (2, backbone.embed_dim)
    # sums of float32 in another order: their rounding, times the growth through two blocks
    near = {"rtol": 1e-4, "atol": 1e-4 * float(expected.abs().max())}
    torch.testing.assert_close(vit(images), expected, **near)
    torch.testing.assert_close(backbone(images), expected, **near)
    torch.testing.assert_close(
        backbone.norm(forward_tokens(backbone, Branch(), images)[1]),
        tokens,
        rtol=1e-4,
        atol=1e-4 * float(tokens.abs().max()),
    )
    passes = dict(modules(backbone))
    features = forward_branches(backbone, [Branch(), *passes.values()], images)
    torch.testing.assert_close(features[0], expected, **near)
    for kind, feature in zip(passes, features[1:], strict=True):
        assert feature.shape == expected.shape, kind
        assert feature.isfinite().all(), kind
        if kind in IDENTITY:
            torch.testing.assert_close(feature, expected, msg=lambda m, k=kind: f"{k}: {m}", **near)
        if kind in EXTENDING:  # of the tokens that the pooling reads, and of all
            all_tokens = forward_tokens(backbone, passes[kind], images)[1]
            torch.testing.assert_close(feature, backbone.pool(all_tokens), **near)
            assert not torch.allclose(feature, expected, **near), kind


@pytest.mark.parametrize("name", KINDS)
def test_one_of_each_kind_is_timms_or_refused(name):
    check(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_model_of_timm_is_timms_or_refused(name):
    check(name)


def test_the_list_is_timms():
    assert len(NAMES) > 150
    assert set(NAMES) >= OTHER_BLOCKS
    assert set(KINDS) <= set(NAMES)


def test_a_distillation_token_counts_as_much_as_the_class_token():
    backbone = build("deit_tiny_distilled_patch16_224")
    sharpen(backbone.vit)
    tokens = torch.randn(3, backbone.num_tokens, backbone.embed_dim)
    both = backbone.norm(tokens)[:, :2].mean(dim=1)
    torch.testing.assert_close(backbone.pool(tokens), both)
    assert not backbone.pools_cls
    assert backbone.num_prefix_tokens == 2
