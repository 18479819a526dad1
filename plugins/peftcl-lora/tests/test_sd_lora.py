"""SD-LoRA: factors train, old directions have norm 1 and stay, their sum is what is computed."""

import copy
import functools

import pytest
import torch
from avalanche.core import SupervisedPlugin
from avalanche.training.plugins import EvaluationPlugin
from peftcl_lora.sd_lora import build_sd_lora
from torch.nn import functional as F

from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.testing import toy_backbone, toy_benchmark

CLOSE = {"atol": 1e-5, "rtol": 1e-4}
SETTINGS = {"mixed_precision": "no", "evaluator": EvaluationPlugin(), "train_epochs": 2}


class Starts(SupervisedPlugin):
    """Keeps the network as each experience finds it."""

    def __init__(self):
        super().__init__()
        self.found = []

    def before_training_exp(self, strategy, **kwargs):
        self.found.append(frozen(strategy.model))


def frozen(model):
    return copy.deepcopy(model).eval().requires_grad_(False)


@functools.cache
def train(*, continuous):
    """Return the networks as three experiences began and ended."""
    torch.manual_seed(0)
    starts, ends = Starts(), []
    strategy = build_sd_lora(
        backbone=toy_backbone(),
        r=2,
        continuous=continuous,
        lr=0.3,
        train_mb_size=6,
        plugins=[starts],
        **SETTINGS,
    )
    for experience in toy_benchmark().train_stream:
        strategy.train(experience)
        ends.append(frozen(strategy.model))
    return starts.found, ends


def by_hand(model, images, *, each):
    """Return the features of a network whose weights hold the sum of the formula."""
    network = copy.deepcopy(model.backbone)
    scales = model.branch.scales.values
    for place, layer in enumerate(model.branch.paired()):
        weight = network.blocks[place].attn.qkv.weight
        for i, row in enumerate((0, 64)):  # q and v, of width 32
            pairs = [*zip(layer.past_up[:, i], layer.past_down[:, i], strict=True)]
            pairs = [(up / up.norm(), down / down.norm()) for up, down in pairs]
            pairs.append((layer.up[i], layer.down[i]))
            for s, (up, down) in enumerate(pairs):
                alpha = scales[s, place, i] if each else scales[s, 0, 0]
                weight.data[row : row + 32] += alpha * up @ down
    return network(images)


@pytest.mark.parametrize("continuous", [False, True])
def test_what_is_computed_is_the_published_sum(continuous):
    _, (*_, last) = train(continuous=continuous)
    assert last.branch.scales.values.shape == ((3, 3, 2) if continuous else (3, 1, 1))
    images = torch.rand(4, 3, 16, 16)
    expected = by_hand(last, images, each=continuous)
    torch.testing.assert_close(last.embed(images), expected, **CLOSE)
    assert not torch.allclose(expected, last.backbone(images), atol=1e-2)


def test_directions_stay_and_factors_train():
    starts, ends = train(continuous=False)
    for t in (1, 2):
        before, after = starts[t].branch, ends[t].branch
        assert torch.equal(before.scales.values.flatten(), torch.full((t + 1,), 0.8))
        assert bool((after.scales.values != 0.8).all())
        for old, new, last in zip(
            before.paired(), after.paired(), ends[t - 1].branch.paired(), strict=True
        ):
            for name in ("down", "up"):
                past = new.past(name)
                assert torch.equal(past, old.past(name))
                norms = past.flatten(2).norm(dim=2)
                torch.testing.assert_close(norms, torch.ones(t, 2), **CLOSE)
                found = F.cosine_similarity(past[-1].flatten(1), getattr(last, name).flatten(1))
                torch.testing.assert_close(found, torch.ones(2), **CLOSE)


def test_continuous_goes_on_where_it_was_and_as_released_it_jumps():
    images = torch.rand(4, 3, 16, 16)
    for continuous in (True, False):
        starts, ends = train(continuous=continuous)
        for t in (1, 2):
            goes_on = torch.allclose(starts[t].embed(images), ends[t - 1].embed(images), atol=1e-4)
            assert goes_on == continuous


def test_ranks_may_shrink_with_the_stream():
    """Variant RR: rows beyond the rank of a pair are zero before its training and after it."""
    strategy = build_sd_lora(backbone=toy_backbone(), r=[3, 1], lr=0.3, train_mb_size=6, **SETTINGS)
    for experience in toy_benchmark().train_stream:
        strategy.train(experience)
    for layer in strategy.model.branch.paired():
        downs, ups = layer.every("down"), layer.every("up")  # (T, P, R, D), (T, P, E, R)
        assert downs.shape[:3] == (3, 2, 3)
        for rank, down, up in zip((3, 1, 1), downs, ups, strict=True):
            assert bool(down[:, :rank].any(dim=2).all())
            assert bool(up[..., :rank].any(dim=1).all())
            assert not down[:, rank:].any()
            assert not up[..., rank:].any()


@pytest.mark.parametrize("ranks", [[], [4, 0]])
def test_a_rank_is_at_least_one(ranks):
    with pytest.raises(ConfigError, match="a list of at least one"):
        build_sd_lora(backbone=toy_backbone(), r=ranks, **SETTINGS)
