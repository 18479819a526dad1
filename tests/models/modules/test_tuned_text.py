"""What is put into a text tower, of BERT's kind and of open_clip's."""

import copy

import pytest
import torch
from torch import nn

from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.models import (
    AdapterBranch,
    TextTower,
    build_adapters,
    build_lora,
    build_peft_tuner,
    build_prefix,
    create_dual_encoder,
    projection_sites,
)
from avalanche_peftcl.models.modules.prefix import PrefixTokens
from avalanche_peftcl.models.modules.text_prefix import put_prefixes
from avalanche_peftcl.testing import toy_backbone, toy_image_text
from tests.models.backbones import test_dual_encoder as dual
from tests.models.backbones import test_open_clip as clip

try:
    import open_clip
except ImportError:  # an extra
    open_clip = None
pytestmark = pytest.mark.skipif(open_clip is None, reason="open_clip_torch is not installed")

NAMES = ["cat", "dog", "a photo", "a photo dog"]
BUILDS = {
    "adapter": (build_adapters, {"r": 2, "scale": 1.0, "dropout": 0.0}),
    "lora": (build_lora, {"r": 2}),
    "ia3": (build_peft_tuner, {"tuner": "ia3", "feedforward_modules": []}),
    "prefix": (build_prefix, {"length": 3, "init_bound": 0.0}),
}


@pytest.fixture(params=["bert", "openai"])
def backbone(request, tmp_path):
    if request.param == "bert":
        return create_dual_encoder(**dual.write(tmp_path)[0])
    clip.write(tmp_path / "model", clip.config())
    return clip.create_open_clip(f"local-dir:{tmp_path / 'model'}")


@pytest.fixture(params=BUILDS)
def branch(request, backbone):
    build, options = BUILDS[request.param]
    torch.manual_seed(0)
    return build(backbone=backbone, tower="text", **options)


def shake(text):
    with torch.no_grad():
        for p in text.parameters():
            p.add_(0.1 * torch.randn_like(p))


def test_it_starts_as_the_frozen_tower_and_then_changes_what_it_says(backbone, branch):
    frozen, text = backbone.encode_text(NAMES, ["a {}", "{}"]), branch.text
    starts = text.encode_text(NAMES, ["a {}", "{}"])
    if not hasattr(next(iter(text.tuners.values())), "keys"):  # a prefix has attention at once
        torch.testing.assert_close(starts, frozen, atol=1e-6, rtol=0)
    assert text.logit_scale == backbone.logit_scale
    assert branch.text_side(backbone) is text
    shake(text)
    texts = text.encode_text(NAMES, ["a {}", "{}"])
    assert (texts - frozen).abs().max() > 1e-4
    torch.testing.assert_close(texts.norm(dim=1), torch.ones(4))
    with torch.no_grad():
        kept = text.encode_text(NAMES, ["a {}", "{}"])
        assert torch.equal(text.encode_text(NAMES[1:], ["a {}", "{}"]), kept[1:])
    torch.testing.assert_close(kept, texts.detach(), atol=1e-6, rtol=0)
    assert torch.equal(backbone.encode_text(NAMES, ["a {}", "{}"]), frozen)


def test_gradients_reach_what_was_put_in_and_nothing_else(backbone, branch):
    shake(branch.text)
    rows = branch.text.encode_text(NAMES)
    (rows * torch.randn_like(rows)).sum().backward()
    assert all(p.grad.abs().max() > 0 for p in branch.parameters())
    assert all(p.grad is None for p in backbone.text.module.parameters())
    assert all(p.grad is None for p in backbone.parameters())
    own = sum(p.numel() for p in branch.parameters())
    assert own < sum(p.numel() for p in backbone.text.module.parameters()) / 2


def test_copies_share_the_frozen_tower_and_no_more(backbone, branch):
    shake(branch.text)
    with torch.no_grad():
        before = branch.text.encode_text(NAMES)
        twin = copy.deepcopy(branch)
        assert torch.equal(twin.text.encode_text(NAMES), before)
        shake(twin.text)
        assert not torch.equal(twin.text.encode_text(NAMES), before)
        assert torch.equal(branch.text.encode_text(NAMES), before)
    inside = {id(p) for p in twin.text._view.parameters()}
    assert {id(p) for p in backbone.text.module.parameters()} <= inside
    assert not inside & {id(p) for p in branch.text.parameters()}
    backbone.double()  # goes where the backbone goes
    assert all(p.dtype is torch.float64 for p in backbone.text.module.parameters())
    assert {id(p) for p in backbone.text.module.parameters()} <= {
        id(p) for p in branch.text._view.parameters()
    }


@pytest.mark.parametrize(
    ("build", "options"),
    [(build_lora, {"r": 2}), (build_prefix, {"length": 12, "blocks": [1]})],
    ids=["lora", "prefix"],
)
def test_texts_stay_where_the_sites_are_kept(backbone, build, options):
    """Steps beside all features of the sites, which are those of every token of the texts."""
    torch.manual_seed(0)
    text = build(backbone=backbone, tower="text", **options).text
    shake(text)
    with torch.no_grad():
        old, seen = text.encode_text(["cat"]), {}
        sites = projection_sites(text)
        handles = [
            site.place.register_forward_pre_hook(
                lambda module, args, site=site: seen.setdefault(site.name, []).append(
                    site.features(args[0]).flatten(0, -2)
                )
            )
            for site in sites
        ]
        text.encode_text(["cat"])  # known, and computed again for who listens
        for handle in handles:
            handle.remove()
        assert seen.keys() == {site.name for site in sites} == dict(text.named_parameters()).keys()
        for site in sites:
            (x,) = seen[site.name]
            step, x = site.view(torch.randn_like(site.parameter)).double(), x.double()
            x = x.view(len(x), -1, step.shape[-1]).transpose(0, 1)  # head by head
            site.view(site.parameter).add_(step - step @ torch.linalg.pinv(x) @ x)
        torch.testing.assert_close(text.encode_text(["cat"]), old, atol=2e-5, rtol=0)
        assert (text.encode_text(["dog"]) - backbone.encode_text(["dog"])).abs().max() > 1e-3


@pytest.mark.parametrize("seen", ["all", "not what comes", "not the last"])
def test_a_prefix_is_torchs_attention_with_further_keys(seen):
    """Against MultiheadAttention's own, given the prefix as tokens that its maps leave alone."""
    torch.manual_seed(0)
    inner = nn.MultiheadAttention(8, 2, batch_first=True)
    block = nn.ModuleDict({"attn": inner, "mlp": nn.Linear(8, 8)})
    tower = nn.ModuleDict({"blocks": nn.ModuleList([block])})
    put_prefixes(tower, lambda width, heads: PrefixTokens(width, heads, length=3), [0])
    tokens, mask = torch.randn(2, 5, 8), torch.zeros(5, 5)
    if seen != "all":
        hidden = (
            torch.ones(5, 5).triu(1) if seen == "not what comes" else torch.eye(5)[4].expand(5, 5)
        )
        mask = mask.masked_fill(hidden.bool(), float("-inf"))
    out, _ = block["attn"](tokens, tokens, tokens, attn_mask=mask)
    part = block["attn"].part
    q, k, v = nn.functional.linear(tokens, inner.in_proj_weight, inner.in_proj_bias).chunk(3, 2)
    k, v = (
        torch.cat([p.expand(2, -1, -1), own], 1) for p, own in ((part.keys, k), (part.values, v))
    )
    expected, _ = nn.functional.multi_head_attention_forward(
        *(x.transpose(0, 1) for x in (q, k, v)),
        8,
        2,
        torch.eye(8).repeat(3, 1),
        None,
        None,
        None,
        False,
        0.0,
        inner.out_proj.weight,
        inner.out_proj.bias,
        attn_mask=torch.cat([torch.zeros(5, 3), mask], 1),
        need_weights=False,
    )
    torch.testing.assert_close(out, expected.transpose(0, 1), atol=1e-6, rtol=0)


def test_dropout_is_of_training_alone(backbone):
    text = build_adapters(backbone=backbone, r=8, scale=1.0, dropout=0.5, tower="text").text
    shake(text)
    text.train()
    assert not torch.equal(text.encode_text(["cat"]), text.encode_text(["cat"]))
    with torch.no_grad():
        kept = text.encode_text(["cat"])
    assert text.training
    torch.testing.assert_close(text.eval().encode_text(["cat"]), kept, atol=1e-6, rtol=0)


def test_both_towers(backbone):
    branch = build_adapters(backbone=backbone, r=2, tower="both")
    assert isinstance(branch, AdapterBranch)
    names = [name for name, _ in branch.named_parameters()]
    assert {name.split(".")[0] for name in names} == {"adapters", "text"}
    tuned = build_lora(backbone=backbone, r=2, tower="both", blocks=[1])
    assert all("_1_" in name for name in dict(tuned.named_parameters()) if "lora" in name)


def test_what_cannot_be_tuned_is_told(backbone):
    with pytest.raises(
        ConfigError, match="has no text tower that a module can be put into; take b"
    ):
        build_lora(backbone=toy_backbone(), tower="text")
    with pytest.raises(
        ConfigError, match="has no blocks with an MLP as those of open_clip or BERT"
    ):
        build_adapters(backbone=toy_image_text(), tower="text")
    with pytest.raises(
        ConfigError, match=r"block 0 of the text tower has no linear layer 'out_pro"
    ):
        build_lora(backbone=backbone, tower="text", text_modules=["out_proj"])
    with pytest.raises(ConfigError, match="has one that the network lacks"):
        build_lora(backbone=backbone, tower="text", blocks=[9])
    odd = nn.ModuleDict({"blocks": nn.ModuleList([nn.ModuleDict({"mlp": nn.Linear(4, 4)})])})
    with pytest.raises(ConfigError, match="has no attention as those of open_clip or BERT, before"):
        put_prefixes(odd, PrefixTokens, None)
    with pytest.raises(ConfigError, match="outside the tuned layers of the text tower would train"):
        build_peft_tuner(backbone=backbone, tuner="lora", bias="all", tower="text")


def test_named_layers_of_the_text_tower(tmp_path):
    backbone = create_dual_encoder(**dual.write(tmp_path)[0])
    branch = build_lora(
        backbone=backbone, tower="text", text_modules=["query", "value"], blocks=[1]
    )
    assert list(branch.text.tuners) == [
        "transformer_encoder_layer_1_attention_self_query",
        "transformer_encoder_layer_1_attention_self_value",
    ]
    assert isinstance(backbone.text, TextTower)
    assert not isinstance(branch.text._view.transformer.encoder.layer[0].output, nn.Sequential)
