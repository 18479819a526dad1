"""The layer with pairs against the same update written into the weights."""

import copy

import pytest
import torch
from peftcl_lora.pairs import PairedLoRA

from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.models import forward_branches
from avalanche_peftcl.testing import BranchContract, toy_backbone

IMAGES = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def shaken(branch):
    """Move everything of a branch off its start, and return it."""
    with torch.no_grad():
        for p in branch.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return branch.eval()


def written(backbone, branch, factors):
    """Return a network with the pairs in its weights; ``factors(s, layer, part)`` is each one's."""
    new = copy.deepcopy(backbone)
    for place, (index, layer) in enumerate(branch.layers.items()):
        weight = new.blocks[int(index)].attn.qkv.weight
        size = len(weight) // 3
        pairs = [*zip(layer.past_down, layer.past_up, strict=True), (layer.down, layer.up)]
        for s, (down, up) in enumerate(pairs):
            for i, part in enumerate(layer.index.tolist()):
                row = part * size
                update = factors(s, place, i) * (up[i] @ down[i])
                weight.data[row : row + size] += update
    return new


@pytest.mark.parametrize("parts", [("q", "v"), ("k",), ("v", "q", "k")])
def test_pairs_are_updates_of_the_weights_they_stand_beside(parts):
    torch.manual_seed(0)
    backbone = toy_backbone()
    branch = PairedLoRA(backbone, r=2, parts=parts, blocks=[0, 2], scale=4.0)
    close = {"atol": 1e-5, "rtol": 1e-5}
    torch.testing.assert_close(
        forward_branches(backbone, [branch], IMAGES)[0], backbone(IMAGES), **close
    )
    branch.start_experience(1)
    for number in (2, 3):
        before = forward_branches(backbone, [shaken(branch)], IMAGES)[0]
        branch.start_experience(number)
        after = forward_branches(backbone, [branch], IMAGES)[0]
        torch.testing.assert_close(after, before, **close)
    shaken(branch)
    expected = written(backbone, branch, lambda s, layer, part: 4.0)(IMAGES)
    found = forward_branches(backbone, [branch], IMAGES)[0]
    torch.testing.assert_close(found, expected, **close)
    assert not torch.allclose(found, backbone(IMAGES), atol=1e-3)


def test_a_copy_with_its_backbone_is_whole_and_alone():
    torch.manual_seed(0)
    backbone = toy_backbone()
    branch = PairedLoRA(backbone, r=2, scales="shared")
    both = copy.deepcopy(torch.nn.ModuleList([backbone, branch]))
    old = forward_branches(backbone, [branch], IMAGES)[0]
    shaken(both[1])
    assert torch.equal(forward_branches(backbone, [branch], IMAGES)[0], old)
    assert not torch.allclose(forward_branches(both[0], [both[1]], IMAGES)[0], old, atol=1e-3)
    assert both[1].paired()[0].scales is both[1].scales


@pytest.mark.parametrize("blocks", [[1], [0, 1, 2]])  # one factor in all, or several
def test_factors_of_each_pair_take_over_its_length(blocks):
    torch.manual_seed(0)
    backbone = toy_backbone()
    branch = PairedLoRA(backbone, r=2, parts=("v",), blocks=blocks, scales="each", start=0.8)
    branch.start_experience(1)
    before = forward_branches(backbone, [shaken(branch)], IMAGES)[0]
    branch.start_experience(2)
    after = forward_branches(backbone, [branch], IMAGES)[0]
    torch.testing.assert_close(after, before, atol=1e-5, rtol=1e-5)
    assert branch.scales.values.shape == (2, len(blocks), 1)
    assert not torch.allclose(after, backbone(IMAGES), atol=1e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"parts": ("q", "q")}, "each once"),
        ({"parts": ()}, "must be some of q, k and v"),
        ({"blocks": [7]}, "one that the network lacks"),
    ],
)
def test_what_is_not_there_is_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        PairedLoRA(toy_backbone(), r=2, **options)


class TestPairedLoRA(BranchContract):
    def create_branch(self, backbone):
        branch = PairedLoRA(backbone, r=2, scales="shared")
        branch.start_experience(1)
        branch.start_experience(2)
        return branch
