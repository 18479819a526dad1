"""The toys that need learning: what a frozen network gets of them."""

import pytest
import torch
from torch.nn.functional import normalize, one_hot

from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.models import Branch, forward_branches
from avalanche_peftcl.testing import (
    blind_backbone,
    learnable_benchmark,
    learnable_images,
    seeing_backbone,
    toy_backbone,
)

SEEDS = range(5)
CHANCE = 1 / 6


def read(backbone, stream):
    """Return the features of a stream's images and their classes."""
    items = [e.dataset.eval()[i] for e in stream for i in range(len(e.dataset))]
    with torch.no_grad():
        features = backbone(torch.stack([image for image, *_ in items])).double()
    return features, torch.tensor([int(y) for _, y, *_ in items])


def six_classes(seed, scenario="class"):
    sizes = {"classes_per_experience": (2, 2, 2), "per_class": 24, "test_per_class": 12}
    return learnable_benchmark(scenario, seed=seed, **sizes)


def by_class_means(backbone, benchmark):
    (x, y), (z, t) = read(backbone, benchmark.train_stream), read(backbone, benchmark.test_stream)
    means = torch.stack([x[y == c].mean(0) for c in y.unique()])
    return float(((normalize(z) @ normalize(means).T).argmax(1) == t).double().mean())


def by_ridge(backbone, benchmark):
    """Return the accuracy with the best of five strengths, which favours the frozen network."""
    (x, y), (z, t) = read(backbone, benchmark.train_stream), read(backbone, benchmark.test_stream)
    x, z = ((part - x.mean(0)) / (x.std(0) + 1e-9) for part in (x, z))
    scores = []
    for strength in (1e-3, 1e-1, 1.0, 10.0, 100.0):
        gram = x.T @ x + strength * torch.eye(x.shape[1], dtype=x.dtype)
        weight = torch.linalg.solve(gram, x.T @ one_hot(y).double())
        scores.append(float(((z @ weight).argmax(1) == t).double().mean()))
    return max(scores)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("classify", [by_class_means, by_ridge])
def test_a_frozen_network_stays_near_chance(classify, seed):
    benchmark = six_classes(seed)
    assert classify(blind_backbone(seed), benchmark) < CHANCE + 0.1
    assert classify(toy_backbone(), benchmark) > 0.95  # another network does see the classes
    assert classify(seeing_backbone(seed), benchmark) == 1.0


def test_in_domains_too():
    benchmark = six_classes(0, "domain")
    assert by_class_means(blind_backbone(), benchmark) < CHANCE + 0.1
    assert by_ridge(blind_backbone(), benchmark) < CHANCE + 0.1


def test_the_tokens_of_a_frozen_network_hold_the_classes():
    benchmark, backbone = six_classes(0), blind_backbone()
    assert by_class_means(lambda images: backbone.embed(images)[:, 1:].mean(1), benchmark) == 1.0


def test_the_pattern_moves_no_feature():
    backbone = blind_backbone()
    weight = backbone.vit.patch_embed.proj.weight.detach()
    pattern = (weight[24] - weight[25]).repeat(1, 4, 4)  # a difference of two patterns, all over
    one, other = (0.5 + sign * pattern[None] / 100 for sign in (1, -1))
    with torch.no_grad():
        assert (backbone.embed(one) - backbone.embed(other)).abs().max() > 1
        torch.testing.assert_close(backbone(one), backbone(other), atol=1e-5, rtol=1e-5)


def test_images_are_told_apart_by_seed_and_refused_out_of_range():
    one, same, other = (learnable_images(2, 3, seed=s) for s in (0, 0, 1))
    assert (one.images == same.images).all()
    assert not (one.images == other.images).all()
    assert 0 < one.images.min() <= one.images.max() < 255  # clipping would show the class
    with pytest.raises(ConfigError, match="1 to 7 patterns"):
        learnable_images(8)
    with pytest.raises(ConfigError, match="1 to 3 tints"):
        learnable_images(2, domains=4)


def test_a_blind_backbone_is_one_of_ours():
    backbone, images = blind_backbone(), torch.rand(2, 3, 16, 16)
    (features,) = forward_branches(backbone, [Branch()], images)
    torch.testing.assert_close(features, backbone(images), atol=1e-5, rtol=1e-5)
