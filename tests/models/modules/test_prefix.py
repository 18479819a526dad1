import pickle

import pytest
import torch

from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.models import forward_branches
from avalanche_peftcl.models.modules.prefix import build_prefix
from avalanche_peftcl.models.projection.sites import projection_sites
from avalanche_peftcl.testing import BranchContract


class TestPrefix(BranchContract):
    identity_at_start = False

    def create_branch(self, backbone):
        return build_prefix(backbone=backbone, length=4)


class TestPrefixOfLaterBlocks(TestPrefix):
    def create_branch(self, backbone):
        return build_prefix(backbone=backbone, length=2, blocks=[1, 2])


def reference_attention(block, tokens, keys, values):
    """Attention to prefix and tokens, image by image and head by head; and its weights."""
    attention = block.attn
    width = tokens.shape[2] // attention.num_heads
    out, weights = torch.empty_like(tokens), []
    for b, x in enumerate(block.norm1(tokens)):
        q, k, v = (x @ attention.qkv.weight.T + attention.qkv.bias).chunk(3, dim=1)
        for h in range(attention.num_heads):
            part = slice(h * width, (h + 1) * width)
            own = attention.k_norm(k[:, part])
            affinity = attention.q_norm(q[:, part]) @ torch.cat([keys[:, part], own]).T
            weight = (affinity / width**0.5).exp()
            weight = weight / weight.sum(dim=1, keepdim=True)
            out[b, :, part] = weight @ torch.cat([values[:, part], v[:, part]])
            weights.append(weight[:, : len(keys)])
    return tokens + attention.proj(out), torch.stack(weights).unflatten(0, (len(tokens), -1))


def reference(backbone, branch, images):
    """The pass written out block by block, all tokens of every block."""
    x = backbone.embed(images)
    for i, block in enumerate(backbone.vit.blocks):
        if str(i) in branch.extensions:
            prefix = branch.extensions[str(i)]
            h, _ = reference_attention(block, x, prefix.keys, prefix.values)
        else:
            h = x + block.attn(block.norm1(x))
        x = h + block.mlp(block.norm2(h))
    return x


@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize("blocks", [None, [0], [2]])
def test_equals_the_pass_written_out(make_backbone, assert_passes, blocks, qk_norm):
    backbone = make_backbone(qk_norm=qk_norm)
    branch = build_prefix(backbone=backbone, length=3, blocks=blocks)
    assert_passes(backbone, branch, reference)


def shown(probe, run):
    """What the probe is shown while ``run`` runs."""
    seen = []
    handle = probe.register_forward_pre_hook(lambda module, args: seen.append(args[0].detach()))
    run()
    handle.remove()
    return seen


def test_probes_show_queries_inputs_and_weights(backbone, move):
    tokens, block = torch.randn(2, 17, 32), backbone.blocks[1]
    for against in ("queries", "inputs"):
        branch = build_prefix(backbone=backbone, length=3, against=against)
        move(branch)
        prefix = branch.extensions["1"]
        normed = block.norm1(tokens)
        q = normed @ block.attn.qkv.weight[:32].T + block.attn.qkv.bias[:32]

        def run(queries=None, branch=branch):
            branch.attend(backbone, 1, tokens, queries=queries)

        (rows,) = shown(prefix.key_probe, run)
        torch.testing.assert_close(rows, normed if against == "inputs" else q)
        (rows,) = shown(prefix.value_probe, run)
        _, weights = reference_attention(block, tokens, prefix.keys, prefix.values)  # (B, H, Q, P)
        torch.testing.assert_close(rows.unflatten(2, (4, 3)).transpose(1, 2), weights)
        (few,) = shown(prefix.value_probe, lambda run=run: run(queries=1))
        torch.testing.assert_close(few, rows[:, :1])


def test_probes_are_still_unless_somebody_listens(backbone, monkeypatch):
    branch = build_prefix(backbone=backbone)
    probe = type(branch.extensions["0"].key_probe)
    shown = []
    monkeypatch.setattr(probe, "forward", lambda *args: shown.append(args))
    forward_branches(backbone, [branch], torch.randn(1, 3, 16, 16))
    assert shown == []


@pytest.mark.parametrize("against", ["queries", "inputs"])
def test_as_published_old_outputs_move(make_sharp_backbone, move, against):
    backbone = make_sharp_backbone()
    branch = build_prefix(backbone=backbone, against=against, project_values=False, blocks=[0])
    move(branch)
    images = torch.randn(1, 3, 8, 8)
    prefix, block = branch.extensions["0"], backbone.blocks[0]
    inputs = block.norm1(backbone.embed(images))[0]
    assert [site.name for site in prefix.projection_sites()] == ["keys"]

    def look():
        """The products with inputs, the weights, and the features."""
        _, weights = reference_attention(block, backbone.embed(images), prefix.keys, prefix.values)
        features = forward_branches(backbone, [branch], images)[0]
        return [t.detach() for t in (inputs @ prefix.keys.T, weights, features)]

    before = look()
    move(branch, old=look)
    product, weights, features = (
        (after - old).abs().max() for after, old in zip(look(), before, strict=True)
    )
    assert (product < 1e-5) == (against == "inputs")
    assert (weights < 1e-5) == (against == "queries")
    assert features > 0.01


def test_sites_can_be_pickled(backbone):
    sites = projection_sites(build_prefix(backbone=backbone))
    assert len(sites) == 6
    for site in pickle.loads(pickle.dumps(sites)):
        groups = site.view(site.parameter)
        assert groups.shape == ((4, 10, 8) if site.name.endswith("keys") else (4, 8, 10))


def test_attention_without_room_for_keys_is_refused(diff_backbone):
    with pytest.raises(ConfigError, match=r"block 0 is a DiffAttention .* use an adapter or LoRA"):
        build_prefix(backbone=diff_backbone)
