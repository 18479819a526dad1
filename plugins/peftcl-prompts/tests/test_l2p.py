"""L2P against a pass by hand, and PGP as a composition."""

import pytest
import torch
from avalanche.core import SupervisedPlugin
from avalanche.training.plugins import EvaluationPlugin
from peftcl_prompts.l2p import build_l2p, build_prompt_pool

from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.evaluation import CostMetric
from avalanche_peftcl.models import (
    Embedded,
    LinearHead,
    PrototypeHead,
    forward_branches,
    projection_sites,
)
from avalanche_peftcl.testing import learnable_benchmark, seeing_backbone
from avalanche_peftcl.training.plugins import GradientProjectionPlugin

SHORT = {"train_epochs": 2, "train_mb_size": 8, "lr": 0.05, "mixed_precision": "no"}


@pytest.fixture
def pool():
    """A network, images, and a pool of which each image has its own two prompts nearest."""
    torch.manual_seed(0)
    backbone, images = seeing_backbone(), torch.rand(6, 3, 16, 16)
    branch = build_prompt_pool(backbone=backbone, size=6, length=2, top_k=2).eval()
    with torch.no_grad():
        branch.keys.copy_(backbone(images).flip(0))
    return backbone, branch, images


def by_hand(backbone, branch, image):
    """Return the feature and the chosen keys of one image, by timm's own blocks."""
    vit, query = backbone.vit, backbone(image[None])[0]
    fit = [float(query @ key / query.norm() / key.norm()) for key in branch.keys]
    chosen = sorted(range(len(fit)), key=lambda m: -fit[m])[: branch.top_k]
    prompts = torch.cat([branch.prompts[m] for m in chosen])
    tokens = backbone.embed(image[None])[0]
    tokens = torch.cat([tokens[:1], prompts, tokens[1:]])
    out = vit.norm(vit.blocks(tokens[None]))[0]
    return out[1 : 1 + len(prompts)].mean(dim=0), [fit[m] for m in chosen], chosen


@torch.no_grad()
def test_each_image_has_the_prompts_that_it_has_alone(pool):
    backbone, branch, images = pool
    (together,) = forward_branches(backbone, [branch], images)
    told = branch.losses()["pull"]
    hand = [by_hand(backbone, branch, image) for image in images]
    assert len({tuple(chosen) for *_, chosen in hand}) > 3  # the choices differ
    expected = torch.stack([feature for feature, *_ in hand])
    torch.testing.assert_close(together, expected, atol=1e-5, rtol=1e-5)
    alone = torch.cat([forward_branches(backbone, [branch], image[None])[0] for image in images])
    torch.testing.assert_close(alone, together, atol=1e-5, rtol=1e-5)
    pulled = -0.1 * sum(sum(fit) for _, fit, _ in hand) / len(images)
    assert told.item() == pytest.approx(pulled, abs=1e-6)


@torch.no_grad()
def test_a_minibatch_may_vote(pool):
    backbone, branch, images = pool
    branch.batchwise = True
    context = branch.begin(backbone, Embedded(backbone, images))
    votes = [m for image in images for m in by_hand(backbone, branch, image)[2]]
    winners = sorted(range(6), key=lambda m: (-votes.count(m), m))[:2]
    expected = torch.cat([branch.prompts[m] for m in winners]).expand(6, -1, -1)
    assert torch.equal(context, expected)


def train(*plugins):
    torch.manual_seed(0)
    backbone = seeing_backbone()
    strategy = build_l2p(
        backbone=backbone, plugins=plugins, evaluator=EvaluationPlugin(), top_k=2, length=2, **SHORT
    )
    benchmark = learnable_benchmark(per_class=6)
    keys = []
    for experience in benchmark.train_stream:
        strategy.train(experience)
        keys.append(strategy.network.branch.keys.detach().clone())
    images = [x for x, *_ in benchmark.train_stream[0].dataset.eval()]
    with torch.no_grad():
        queries = backbone(torch.stack(images))
    return strategy, keys, queries


def test_the_loss_compares_the_classes_of_the_experience():
    strategy, *_ = train()
    assert strategy.loss_over == "local"
    assert strategy.network.forward_passes == 2


@pytest.mark.parametrize("protected", [True, False])
def test_with_gradient_projection_it_is_pgp(protected):
    plugin = GradientProjectionPlugin(1.0, where="step", n_samples=None)
    _, (before, after), queries = train(*[plugin] if protected else [])
    moved = (after - before).norm()
    along = (queries @ (after - before).T).norm() / queries.norm()
    assert moved > 0
    assert bool(along < 1e-4 * moved) is protected
    if protected:
        sites = [report["site"] for report in plugin.summary()["experiences"][0]]
        assert sites == ["branch.prompts", "branch.keys"]
        assert plugin.summary()["unprotected"] == ["head.weight", "head.bias"]


def test_prompts_and_keys_may_have_thresholds_of_their_own():
    """The two that PGP has, by two plugins with the sites of one kind each."""

    def sites_of(name):
        return lambda model: [site for site in projection_sites(model) if site.name.endswith(name)]

    both = {
        name: GradientProjectionPlugin(threshold, n_samples=None, sites=sites_of(name))
        for name, threshold in (("prompts", 0.5), ("keys", 0.97))
    }
    train(*both.values())
    for name, plugin in both.items():
        ((report,),) = plugin.summary()["experiences"][:1]
        assert report["site"] == f"branch.{name}"
        assert plugin.threshold <= report["captured_energy"]
    sizes = {name: plugin.summary()["experiences"][1][0]["size"] for name, plugin in both.items()}
    assert sizes["prompts"] < sizes["keys"] < 32


def test_a_fitted_head_gets_proxies_that_train():
    strategy = build_l2p(backbone=seeing_backbone(), head=PrototypeHead, top_k=2, **SHORT)
    network = strategy.network
    strategy.train(learnable_benchmark(per_class=4).train_stream[0])
    assert isinstance(network.proxies, LinearHead)
    assert bool((network.proxies.weight != 0).any())
    assert network.eval()(torch.rand(2, 3, 16, 16)).abs().max() <= 1  # cosines


def test_no_more_prompts_than_there_are():
    with pytest.raises(ConfigError, match="top_k=5 prompts cannot be chosen from a pool of size=4"):
        build_l2p(backbone=seeing_backbone(), size=4)


def test_moments_of_adam_are_those_of_the_experience():
    steps = []

    class Watch(SupervisedPlugin):
        def before_update(self, strategy, **kwargs):
            keys = strategy.network.branch.keys
            steps.append(float(strategy.optimizer.state[keys].get("step", 0)))

    train(Watch())
    assert steps == [0, 1, 2, 3] * 2


def test_the_query_is_a_pass_of_its_own():
    cost = CostMetric()
    strategy = build_l2p(
        backbone=seeing_backbone(), evaluator=EvaluationPlugin(cost, loggers=[]), **SHORT
    )
    strategy.train(learnable_benchmark().train_stream[0], eval_streams=[])
    assert cost.summary()["training_passes"] == [2 * SHORT["train_epochs"]]
