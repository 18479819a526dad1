"""A frozen network that is none of timm's, and no subclass of ours."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.models import (
    Backbone,
    Branch,
    FrozenBranch,
    InputConfig,
    NTKCLModel,
    PEFTModel,
    TextSide,
    ViTBackbone,
    attend_with_prefix,
    build_adapters,
    build_attention_adapters,
    build_lora,
    build_patch_prompts,
    build_peft_tuner,
    build_prefix,
    build_prompt,
    forward_branches,
)


class Attention(nn.Module):
    """Two heads over eight dimensions, with what `SelfAttention` names."""

    num_heads, attn_dim, scale = 2, 8, 0.5

    def __init__(self):
        super().__init__()
        self.qkv, self.k_norm = nn.Linear(8, 24), nn.Identity()

    def forward(self, tokens, queries, extend):
        q, k, v = (
            part.unflatten(2, (2, 4)).transpose(1, 2) for part in self.qkv(tokens).chunk(3, dim=2)
        )
        q = q[:, :, :queries]
        if extend is not None:
            k, v = extend(self, tokens, q, k, v)
        out = F.scaled_dot_product_attention(q, k, v, scale=self.scale)
        return out.transpose(1, 2).flatten(2)


class Plain(nn.Module):
    """Every member of a `Backbone`, and nothing of ours."""

    def __init__(self):
        super().__init__()
        self.input_config = InputConfig(img_size=8)
        self.embed_dim, self.depth, self.num_tokens = 8, 3, 4
        self.num_prefix_tokens, self.pools_cls, self.model_name = 0, False, None
        self.patches = nn.Conv2d(3, 8, kernel_size=4, stride=4)
        self.attentions = nn.ModuleList(Attention() for _ in range(3))
        self.mlps = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
        self.requires_grad_(False)

    def embed(self, images):
        return self.patches(images).flatten(2).transpose(1, 2)

    def attend(self, index, tokens, *, queries=None, extend=None):
        return tokens[:, :queries] + self.attentions[index](tokens, queries, extend)

    def feed(self, index, tokens):
        return self.mlps[index](tokens)

    def pool(self, tokens):
        return tokens.mean(dim=1)

    def norm(self, tokens):
        return tokens

    def normed(self, index, tokens):
        return tokens

    def attention(self, index):
        return self.attentions[index]

    def forward(self, images):
        return forward_branches(self, [Branch()], images)[0]


class Deaf(Backbone):
    """A subclass that says no more than it must."""

    def __init__(self):
        super().__init__()
        self.input_config = InputConfig(img_size=8)
        self.embed_dim, self.depth, self.num_tokens = 8, 2, 4
        self.inner = Plain()

    def embed(self, images):
        return self.inner.embed(images)

    def attend(self, index, tokens, *, queries=None, extend=None):
        if extend is not None:
            raise ConfigError("none of that")
        return self.inner.attend(index, tokens, queries=queries)

    def feed(self, index, tokens):
        return self.inner.feed(index, tokens)

    def pool(self, tokens):
        return tokens.mean(dim=1)


BUILDERS = {
    "adapter": build_adapters,
    "attention_adapter": build_attention_adapters,
    "patch_prompt": build_patch_prompts,
    "prefix": build_prefix,
    "prompt": build_prompt,
}


@pytest.fixture(params=[Plain, Deaf])
def stranger(request):
    torch.manual_seed(0)
    return request.param()


@pytest.mark.parametrize("kind", BUILDERS)
def test_every_module_that_names_no_layers_of_timms_runs_on_it(kind):
    torch.manual_seed(0)
    backbone, images = Plain(), torch.randn(3, 3, 8, 8)
    model = PEFTModel(backbone, BUILDERS[kind](backbone=backbone))
    model.start_experience([(0, 0), (0, 1)])
    with torch.no_grad():
        for p in model.branch.parameters():
            p.add_(torch.randn_like(p))
    features = model.embed(images)
    assert (features - backbone(images)).abs().max() > 1e-3
    features.sum().backward()
    assert all(p.grad is not None for p in model.branch.parameters())


def test_the_least_that_a_backbone_says_is_enough(stranger):
    images = torch.randn(2, 3, 8, 8)
    (features,) = forward_branches(stranger, [FrozenBranch()], images)
    torch.testing.assert_close(features, stranger(images))
    model = NTKCLModel(stranger, r=2, prompt_length=2)
    model.start_experience([(0, 0), (0, 1)])
    model(images).sum().backward()
    assert model.channel.adapters[0].up.weight.grad is not None


def test_what_needs_more_says_so(stranger):
    for build in (build_lora, lambda backbone: build_peft_tuner(backbone=backbone, tuner="lora")):
        with pytest.raises(
            ConfigError, match=rf"peft finds layers by .* a {type(stranger).__name__}"
        ):
            build(backbone=stranger)
    with pytest.raises(ConfigError, match="block 0 of a Deaf takes no further keys; use an adap"):
        build_prefix(backbone=Deaf())
    with pytest.raises(ConfigError, match="none of that"):
        attend_with_prefix(
            Deaf(), 0, torch.zeros(1, 4, 8), keys=torch.zeros(1, 8), values=torch.zeros(1, 8)
        )


def test_it_stays_in_eval_mode_inside_a_network_that_trains():
    model = PEFTModel(Deaf(), Branch())
    assert model.train().branch.training
    assert not any(module.training for module in model.backbone.modules())


def test_a_text_side_is_known_by_what_it_offers(backbone):
    class Both(Plain):
        has_text, logit_scale = True, 100.0

        def encode_text(self, names, templates=None):
            return torch.ones(len(names), 1)

    assert isinstance(Both(), TextSide)
    assert not isinstance(Plain(), TextSide)
    assert not isinstance(backbone, TextSide)
    assert isinstance(backbone, ViTBackbone)
    with pytest.raises(ConfigError, match="a ViTBackbone has no text side, which class names"):
        backbone.encode_text(["cat"])


class Projected(Deaf):
    """Its feature is wider than a token."""

    out_features = 20

    def pool(self, tokens):
        return tokens.mean(dim=1).repeat(1, 3)[:, :20]


def test_what_is_pooled_may_have_another_width_than_a_token():
    torch.manual_seed(0)
    backbone, images = Projected(), torch.randn(3, 3, 8, 8)
    assert backbone(images).shape == (3, 20)
    for features, width in (("pooled", 20), ("blocks", 2 * 2 * 8), ([1], 2 * 8)):
        model = PEFTModel(backbone, build_adapters(backbone=backbone, r=2), features=features)
        assert model.head.in_features == width
        model.start_experience([(0, 0), (0, 1)])
        assert model(images).shape == (3, 2)
    model = PEFTModel(backbone, FrozenBranch(), frozen_section="pooled", features="blocks")
    assert model.head.in_features == 20 + 32
    ntk_cl = NTKCLModel(backbone, r=2, prompt_length=2, use_pretrained=True)
    assert ntk_cl.embed_dim == 3 * 20
    ntk_cl.start_experience([(0, 0), (0, 1)])
    assert ntk_cl(images).shape == (3, 2)
