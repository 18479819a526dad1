"""Texts go through a tower together, and each is what it is alone."""

import pytest
import torch
from torch import nn

from avalanche_peftcl.models import TextTower, create_dual_encoder
from tests.models.backbones import test_dual_encoder as dual

try:
    import open_clip
except ImportError:  # an extra
    open_clip = None
needs_open_clip = pytest.mark.skipif(open_clip is None, reason="open_clip_torch is not installed")

NAMES = ["cat", "dog", "a photo dog", "a a a cat", "photo", "a dog photo"] + 12 * ["a cat"]
NAMES += [f"{'a ' * (i % 4)}photo {'cat ' * (i % 3)}dog" for i in range(20)]


@pytest.fixture
def bert(tmp_path):
    return create_dual_encoder(**dual.write(tmp_path)[0]).text


def one_by_one(tower, texts):
    with torch.no_grad():
        return torch.cat([tower.module(tower.tokens([text])) for text in texts])


@needs_open_clip
def test_together_they_are_what_they_are_one_by_one(bert):
    """There with all padding and its mask, as the tokenizer fills a text."""
    expected = nn.functional.normalize(one_by_one(bert, NAMES), dim=1)
    assert bert.tokens(["cat"]).shape == (1, 8)
    made = bert.encode(NAMES)
    torch.testing.assert_close(made, expected, atol=64 * 2**-23, rtol=0)
    templates = ["a {}", "{}"]
    parts = [one_by_one(bert, [t.replace("{}", n) for n in NAMES]).double() for t in templates]
    mean = sum(nn.functional.normalize(part, dim=1) for part in parts)
    expected = nn.functional.normalize(mean, dim=1).float()
    torch.testing.assert_close(bert.encode(NAMES, templates), expected, atol=64 * 2**-23, rtol=0)


@needs_open_clip
def test_what_the_network_runs_is_told_by_a_text_alone(bert):
    """Neither those beside it nor how many they are change the shape, nor what padding there is."""
    seen = []
    bert.module.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    bert.encode(NAMES)
    assert {tuple(ids.shape) for ids in seen} == {(8, n) for n in (3, 4, 5, 6, 7, 8)}
    assert len(seen) < len(set(NAMES))
    assert all((ids != 0).all() for ids in seen)
    bert._known.clear()
    for name in ("cat", "a photo dog"):
        bert.encode([name])
        assert (seen[-1] == seen[-1][0]).all()
        assert seen[-1].shape == (8, len(name.split()) + 2)


def test_padding_stays_where_it_is_seen():
    class Sum(nn.Module):
        def forward(self, tokens):
            return tokens.float() @ torch.arange(1.0, 13).view(6, 2)

    def tokenize(texts):
        return torch.tensor([list(text.encode()[:6].ljust(6)) for text in texts])

    tower = TextTower(Sum(), tokenize)
    expected = nn.functional.normalize(tower.module(tokenize(["ox", "gnu"])), dim=1)
    torch.testing.assert_close(tower.encode(["ox", "gnu"]), expected)


def test_each_is_cut_into_tokens_alone():
    """A tokenizer that fills up to the longest beside it changes nothing."""

    def tokenize(texts):
        longest = max(map(len, texts))
        return torch.tensor([list(text.encode().ljust(longest)) for text in texts])

    class Length(nn.Module):
        def forward(self, tokens):
            return torch.stack([tokens.float().sum(dim=1), tokens[:, 0] * 1.0], dim=1)

    tower, alone = TextTower(Length(), tokenize), TextTower(Length(), tokenize)
    made = tower.encode(["ox", "gnu", "heron"])
    assert torch.equal(made, torch.cat([alone.encode([n]) for n in ("ox", "gnu", "heron")]))
