import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.models import Branch, NTKCLModel, PEFTModel
from avalanche_peftcl.models.modules.patch_prompt import PatchPrompt


def shake(model):
    """Move every adapted parameter off its start."""
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.startswith(("channel", "patch", "fusion", "proxies")):
                p.add_(0.1 * torch.randn_like(p))


def reference_channel(backbone, branch, images):
    """The channel pass written out block by block, with nothing shared."""
    x = backbone.embed(images)
    for block, adapter in zip(backbone.vit.blocks, branch.adapters, strict=True):
        h = x + block.attn(block.norm1(x))
        down = F.relu(h @ adapter.down.weight.T + adapter.down.bias)
        x = h + block.mlp(block.norm2(h))
        x = x + 0.1 * (down @ adapter.up.weight.T) + 0.1 * adapter.up.bias
    return backbone.vit.norm(x)[:, 0]


def reference_patch(backbone, branch, images, length=10):
    """The patch pass written out block by block, its last prompts included."""
    x = backbone.embed(images)
    for i, (block, prompt) in enumerate(zip(backbone.vit.blocks, branch.prompts, strict=True)):
        h = x + block.attn(block.norm1(x))
        base = h if i == 0 else torch.cat([h[:, :1], h[:, 1 + length :]], dim=1)
        mixed = torch.einsum("pn,bnd->bpd", prompt.mix.weight, base)
        mixed = mixed + prompt.mix.bias[:, None]
        p = F.layer_norm(mixed, mixed.shape[2:], prompt.norm.weight, prompt.norm.bias, 1e-6)
        if i == 0:
            out = base + block.mlp(block.norm2(base))
            new = block.mlp(block.norm2(p))
            x = torch.cat([out[:, :1], new, out[:, 1:]], dim=1)
        else:
            p = p + 0.1 * h[:, 1 : 1 + length]
            tokens = torch.cat([base[:, :1], p, base[:, 1:]], dim=1)
            x = h + block.mlp(block.norm2(tokens))
    return backbone.vit.norm(x)[:, 0]


def reference_fusion(fusion, c, p):
    """Attention with eight heads whose only key is c, query from p."""
    heads = [w.unflatten(1, (8, 1, -1)) for w in (fusion.query(p), fusion.key(c), fusion.value(c))]
    q, k, v = heads  # (B, 8, 1, D / 8)
    weight = (q @ k.transpose(2, 3) / math.sqrt(q.shape[3])).softmax(dim=3)
    return 0.5 * (weight @ v).flatten(1) + 1.0 * c + 0.1 * p


@pytest.fixture
def images():
    torch.manual_seed(1)
    return torch.randn(4, 3, 16, 16)


@pytest.mark.parametrize("recipe", ["released", "corrected"])
@pytest.mark.parametrize("n_copies", [1, 2, 3])
@pytest.mark.parametrize("use_pretrained", [False, True])
def test_views_are_the_passes_side_by_side(backbone, images, recipe, n_copies, use_pretrained):
    model = NTKCLModel(backbone, recipe=recipe, n_copies=n_copies, use_pretrained=use_pretrained)
    shake(model)
    model.eval()
    c, p, m = model.views(images)
    front = [backbone.vit(images)] if use_pretrained else []
    older = reversed(range(n_copies))
    channel = [model.channel_copies[i] for i in older] + [model.channel]
    patch = [model.patch_copies[i] for i in reversed(range(n_copies))] + [model.patch]
    expected_c = torch.cat(front + [reference_channel(backbone, b, images) for b in channel], dim=1)
    expected_p = torch.cat(front + [reference_patch(backbone, b, images) for b in patch], dim=1)
    torch.testing.assert_close(c, expected_c, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(p, expected_p, atol=1e-5, rtol=1e-5)
    assert model.embed_dim == 32 * (n_copies + 1 + use_pretrained) == m.shape[1]
    assert model.forward_passes == 2 * (n_copies + 1) + use_pretrained


def test_released_fusion_equals_attention_with_one_key(backbone, images):
    model = NTKCLModel(backbone, recipe="released").double().eval()
    shake(model)
    c, p, m = model.views(images.double())
    assert (m - reference_fusion(model.fusion, c, p)).abs().max() < 1e-13


def test_released_query_and_key_get_exactly_no_gradient(backbone, images):
    model = NTKCLModel(backbone, recipe="released")
    c, p, _ = model.views(images)
    reference_fusion(model.fusion, c, p).square().sum().backward()
    assert model.fusion.query.weight.grad.abs().max() == 0
    assert model.fusion.key.weight.grad.abs().max() == 0
    assert model.fusion.value.weight.grad.abs().max() > 0


def test_fusion_drops_whole_heads_and_rescales():
    from avalanche_peftcl.models import Fusion

    torch.manual_seed(0)
    fusion = Fusion(16, dropout=0.5)
    nn.init.zeros_(fusion.value.weight)
    nn.init.ones_(fusion.value.bias)
    zeros = torch.zeros(200, 16)
    out = fusion(zeros, zeros).detach().unflatten(1, (8, 2))
    assert torch.equal(out[..., 0], out[..., 1])
    assert set(out.unique().tolist()) == {0.0, 1.0}
    assert out.mean().item() == pytest.approx(0.5, abs=0.05)


def train(model, images, steps=3):
    model.start_experience([(0, 0), (0, 1)])
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trainable, lr=0.1, momentum=0.9, weight_decay=5e-4)
    for _ in range(steps):
        optimizer.zero_grad()
        logits = model.proxies(torch.cat(model.views(images))).chunk(3)
        sum(F.cross_entropy(z, torch.tensor([0, 1, 0, 1])) for z in logits).backward()
        optimizer.step()
    return model


def test_released_patch_generator_never_trains(backbone, images):
    model = train(NTKCLModel(backbone, recipe="released"), images)
    moved = [False, False, False]
    for i, prompt in enumerate(model.patch.prompts):
        for p in (prompt.mix.weight, prompt.mix.bias, prompt.norm.weight):
            assert p.abs().max() == 0
            assert p.grad is None or p.grad.abs().max() == 0
        moved[i] = bool(prompt.norm.bias.abs().max() > 0)
    assert moved == [True, True, False]  # the last prompts come after the last attention


def test_corrected_patch_generator_trains(backbone, images):
    model = NTKCLModel(backbone, recipe="corrected")
    before = copy.deepcopy(model.patch)
    train(model, images)
    for old, new in list(zip(before.prompts, model.patch.prompts, strict=True))[:-1]:
        assert (old.mix.weight - new.mix.weight).abs().max() > 0
        assert (old.norm.weight - new.norm.weight).abs().max() > 0
        assert (old.norm.bias - new.norm.bias).abs().max() > 0


def test_last_prompts_cannot_change_the_output(backbone, images):
    model = NTKCLModel(backbone).eval()
    before = reference_patch(backbone, model.patch, images)
    nn.init.normal_(model.patch.prompts[-1].norm.bias, std=25)
    assert torch.equal(reference_patch(backbone, model.patch, images), before)


def test_adapters_start_as_the_unadapted_network(backbone, images):
    model = NTKCLModel(backbone, recipe="released")
    c = model.views(images).channel
    torch.testing.assert_close(c, backbone(images).repeat(1, 2), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("recipe", "stays"), [("corrected", True), ("released", False)])
def test_older_copies_in_training(backbone, recipe, stays):
    model = NTKCLModel(backbone, recipe=recipe).train()
    drop = model.channel_copies[0].adapters[0].dropout
    assert drop.training is not stays
    assert model.channel.adapters[0].dropout.training
    assert not any(p.requires_grad for p in model.channel_copies.parameters())
    assert not any(m.training for m in backbone.modules())


@pytest.mark.parametrize(
    "changes",
    [
        {"embed_dim": 36, "num_heads": 3},
        {"depth": 1},
        {"patch_size": 8, "img_size": 24},
        {"reg_tokens": 3},
        {"global_pool": "avg", "class_token": False},
    ],
)
@pytest.mark.parametrize("recipe", ["released", "corrected"])
def test_any_vit(make_backbone, changes, recipe):
    backbone = make_backbone(**changes)
    model = NTKCLModel(backbone, recipe=recipe, prompt_length=4)
    model.start_experience([(0, 0), (0, 1)])
    size = backbone.input_config.img_size
    model(torch.randn(1, 3, size, size)).sum().backward()
    assert model.channel.adapters[0].up.weight.grad is not None


def test_state_dict_round_trip(backbone, images):
    model = NTKCLModel(backbone, n_copies=2, use_pretrained=True)
    shake(model)
    model.start_experience([(0, 0), (0, 1), (0, 2)])
    model.prototypes.add([0, 2], torch.randn(2, 128).double(), torch.tensor([3, 4]))
    other = NTKCLModel(copy.deepcopy(backbone), n_copies=2, use_pretrained=True)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other.eval().embed(images), model.eval().embed(images))
    assert torch.equal(other.classify(other.embed(images)), model.classify(model.embed(images)))


def test_counts_are_those_of_the_release():
    """Of ViT-B/16 with ten classes, from the shapes alone."""
    from avalanche_peftcl.models import create_backbone

    with torch.device("meta"):
        vit = create_backbone("vit_base_patch16_224")
        model = NTKCLModel(vit, recipe="released")
        model.proxies.grow(10)
    count = lambda m: sum(p.numel() for p in m.parameters())  # noqa: E731 (read in one place)
    assert count(model.channel) == 304_320
    assert count(model.patch) == 42_192
    assert count(model.fusion) == 3 * 2_360_832
    assert count(model.proxies) == 15_361
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 7_444_369


def test_ten_equal_prompts_weigh_as_one_with_a_bias(backbone, images):
    """What the released recipe amounts to: one learned vector a block, ten times."""
    model = NTKCLModel(backbone, recipe="released").double().eval()
    with torch.no_grad():
        for prompt in model.patch.prompts:
            prompt.norm.bias.normal_()
    prompts = model.patch.prompts[1](torch.randn(2, 17, 32, dtype=torch.double))
    assert (prompts - model.patch.prompts[1].norm.bias).abs().max() == 0


def test_bad_arguments_are_config_errors(backbone):
    with pytest.raises(ConfigError, match="1, 2 or 3"):
        NTKCLModel(backbone, n_copies=4)
    with pytest.raises(ConfigError, match="recipe"):
        NTKCLModel(backbone, recipe="paper")
    for network in (NTKCLModel, lambda given: PEFTModel(given, Branch())):
        with pytest.raises(ConfigError, match="a Linear is no backbone: it has no input_config, "):
            network(nn.Linear(2, 2))


def test_prompts_start_where_they_say():
    assert PatchPrompt(5, 8, init="zeros")(torch.randn(2, 5, 8)).abs().max() == 0
    assert PatchPrompt(5, 8)(torch.randn(2, 5, 8)).std().item() == pytest.approx(1, abs=0.3)


@pytest.mark.parametrize("init", ["kaiming", "zeros"])
def test_the_prompts_norm_has_the_epsilon_of_the_release(init):
    """Where tokens hardly differ the epsilon decides: rows of variance 1e-6 shrink by sqrt(2)."""
    torch.manual_seed(0)
    prompt = PatchPrompt(5, 8, length=2, init=init).double()
    with torch.no_grad():
        prompt.norm.weight.fill_(1)
        prompt.mix.weight.zero_()
        prompt.mix.weight[:, 0] = 1
    token = torch.randn(8, dtype=torch.double)
    token = 1e-3 * (token - token.mean()) / token.std(correction=0)
    out = prompt(token.expand(1, 5, 8))[0]
    torch.testing.assert_close(out[0], 1e3 * token / math.sqrt(2))
