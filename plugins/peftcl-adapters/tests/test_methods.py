import pytest
import torch
from avalanche.training.plugins import EvaluationPlugin
from peftcl_adapters.aper import build_aper
from peftcl_adapters.ranpac import build_ranpac
from peftcl_adapters.simplecil import build_simplecil
from torch import nn
from torch.nn import functional as F

from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.models import (
    LinearHead,
    RandomRidgeHead,
    build_adapters,
    build_lora,
    forward_branches,
)
from avalanche_peftcl.testing import toy_backbone, toy_benchmark

SETTINGS = {"mixed_precision": "no", "evaluator": EvaluationPlugin()}
TRAINING = {"train_epochs": 2, "train_mb_size": 6, "lr": 0.1} | SETTINGS


def everything(stream):
    """Return all images of a stream and their classes, as a test shows them."""
    pairs = [(x, y) for each in stream for x, y, *_ in each.dataset.eval()]
    return torch.stack([x for x, _ in pairs]), torch.tensor([y for _, y in pairs])


def own_block_features(backbone, images):
    """Return the block features of a network that is run by hand."""
    tokens, parts = backbone.embed(images), []
    for block in backbone.blocks:
        tokens = block(tokens)
        parts += [tokens[:, 0], tokens[:, 1:].mean(dim=1)]
    norm = nn.LayerNorm(backbone.embed_dim, elementwise_affine=False, eps=1e-5)
    return torch.cat([norm(part) for part in parts], dim=1)


@pytest.mark.parametrize("features", ["pooled", "blocks"])
def test_simplecil_is_the_cosine_to_class_means(features):
    benchmark, backbone = toy_benchmark(), toy_backbone()
    strategy = build_simplecil(backbone=backbone, features=features, **SETTINGS)
    for experience in benchmark.train_stream:
        strategy.train(experience)
    assert not [p for p in strategy.model.parameters() if p.requires_grad]
    embed = (
        backbone if features == "pooled" else lambda images: own_block_features(backbone, images)
    )
    images, classes = everything(benchmark.train_stream)
    means = torch.stack([embed(images[classes == c]).mean(dim=0) for c in range(6)])
    test, _ = everything(benchmark.test_stream)
    expected = F.normalize(embed(test), dim=1) @ F.normalize(means, dim=1).T
    torch.testing.assert_close(strategy.model.eval()(test), expected, atol=1e-5, rtol=1e-5)


def train(strategy, benchmark):
    """Train, and return what the network held after each experience."""
    states = []
    for experience in benchmark.train_stream:
        strategy.train(experience)
        states.append({k: v.clone() for k, v in strategy.model.state_dict().items()})
    return states


@pytest.mark.parametrize("build", [build_aper, build_ranpac])
@pytest.mark.parametrize("scenario", ["class", "task", "domain", "online"])
@pytest.mark.parametrize("module", [build_adapters, build_lora])
def test_what_adapts_is_frozen_after_the_first_experience(build, scenario, module):
    benchmark, backbone = toy_benchmark(scenario), toy_backbone()
    head = (
        {} if build is build_aper else {"head": lambda width: RandomRidgeHead(width, n_features=20)}
    )
    strategy = build(backbone=backbone, module=module(backbone=backbone), **head, **TRAINING)
    model = strategy.model
    start = {k: v.clone() for k, v in model.branch.state_dict().items()}
    states = train(strategy, benchmark)
    chunks = len(states) // 3  # of the first experience, of an online stream; else 1
    adapted = [{k: v for k, v in s.items() if k.startswith(("branch.", "temp"))} for s in states]
    assert any(not torch.equal(adapted[chunks - 1][f"branch.{k}"], v) for k, v in start.items())
    for later in adapted[chunks:]:
        assert later.keys() == adapted[chunks - 1].keys()
        assert all(torch.equal(v, adapted[chunks - 1][k]) for k, v in later.items())
    if chunks > 1:
        assert any(not torch.equal(v, adapted[0][k]) for k, v in adapted[chunks - 1].items())
    n_classes = 6 if scenario == "domain" else 2
    assert model.temporary.weight.shape[0] == n_classes
    assert not any(p.requires_grad for p in model.parameters())
    assert not any(group["params"] for group in strategy.optimizer.param_groups)
    assert strategy.clock.train_exp_counter == len(states)


def test_experiences_handed_over_at_once_are_experiences():
    benchmark = toy_benchmark()
    models = []
    for streams in ([benchmark.train_stream], benchmark.train_stream):
        torch.manual_seed(0)
        strategy = build_aper(backbone=toy_backbone(), **TRAINING)
        for part in streams:
            strategy.train(part)
        models.append(strategy.model.state_dict())
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])


def test_aper_is_class_means_of_frozen_and_adapted_features():
    benchmark, backbone = toy_benchmark(), toy_backbone()
    strategy = build_aper(backbone=backbone, **TRAINING)
    train(strategy, benchmark)
    model = strategy.model.eval()
    assert model.branch.adapters[0].down.out_features == 64
    assert model.forward_passes == 2

    def embed(images):
        (adapted,) = forward_branches(backbone, [model.branch], images)
        return torch.cat([backbone(images), adapted], dim=1)

    images, classes = everything(benchmark.train_stream)
    test, _ = everything(benchmark.test_stream)
    with torch.no_grad():
        means = torch.stack([embed(images[classes == c]).mean(dim=0) for c in range(6)])
        expected = F.normalize(embed(test), dim=1) @ F.normalize(means, dim=1).T
        torch.testing.assert_close(model(test), expected, atol=1e-5, rtol=1e-5)


def test_while_it_adapts_the_temporary_head_is_trained():
    benchmark = toy_benchmark()
    strategy = build_aper(backbone=toy_backbone(), **TRAINING)
    strategy.train(benchmark.train_stream[0])
    model = strategy.model
    assert bool((model.temporary.weight != 0).all())
    assert float(model.temporary.sigma) != 1


def test_ranpac_sees_the_adapted_feature_alone():
    def head(width):
        return RandomRidgeHead(width, n_features=20)

    model = build_ranpac(backbone=toy_backbone(), head=head, **TRAINING).model
    assert model.head.in_features == 32
    assert model.forward_passes == 1
    with torch.device("meta"):  # 0.8 GB
        assert RandomRidgeHead(32).projection.shape == (32, 10_000)


def test_ranpac_without_phase_one_is_simplecil_with_its_head():
    benchmark, logits = toy_benchmark(), []
    test, _ = everything(benchmark.test_stream)

    def head(width):
        return RandomRidgeHead(width, n_features=50, seed=0)

    for strategy in (
        build_ranpac(backbone=toy_backbone(), head=head, phase_one=False, **TRAINING),
        build_simplecil(backbone=toy_backbone(), head=head, **SETTINGS),
    ):
        train(strategy, benchmark)
        logits.append(strategy.model.eval()(test))
    assert torch.equal(*logits)


@pytest.mark.parametrize(
    ("build", "options", "message"),
    [
        (build_simplecil, {"head": LinearHead}, "nothing trains here, a LinearHead would"),
        (build_aper, {"head": LinearHead}, "nothing trains after the first experience"),
        (
            build_ranpac,
            {"phase_one": False, "module": nn.Identity()},
            "a module adapts in phase one, which is off",
        ),
    ],
)
def test_what_does_not_go_together(build, options, message):
    with pytest.raises(ConfigError, match=message):
        build(backbone=toy_backbone(), **options)
