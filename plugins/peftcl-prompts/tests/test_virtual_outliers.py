"""Virtual outliers against neighbours by scikit-learn, and what they do to a head."""

import functools
import math

import numpy as np
import pytest
import torch
from avalanche.core import SupervisedPlugin
from avalanche.training.plugins import EvaluationPlugin
from peftcl_prompts.one_prompt import build_one_prompt
from peftcl_prompts.virtual_outliers import (
    Outskirts,
    VirtualOutliersPlugin,
    build_virtual_outliers,
)
from sklearn.neighbors import NearestNeighbors

from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.models import RidgeHead
from avalanche_peftcl.testing import (
    PluginContract,
    blind_backbone,
    learnable_benchmark,
    seeing_backbone,
)
from avalanche_peftcl.training import feature_pass


def one_prompt(plugins=(), *, backbone=None, **options):
    torch.manual_seed(0)
    given = {"train_epochs": 4, "train_mb_size": 8, "lr": 0.05, "mixed_precision": "no"}
    return build_one_prompt(
        backbone=backbone or seeing_backbone(),
        plugins=list(plugins),
        evaluator=EvaluationPlugin(),
        **(given | options),
    )


class TestPlugin(PluginContract):
    scenarios = ("class", "domain", "task")

    def create_plugin(self):
        return build_virtual_outliers(epochs=1, inside=-1.0, outside=1.0)

    def create_strategy(self, plugins):
        return one_prompt(plugins, backbone=blind_backbone(), train_epochs=2)


def draw(features, count=64, *, neighbors=3, boundary=0.2, noise=0.5, seed=0):
    around = Outskirts(features, neighbors, boundary=boundary)
    return around.draw(count, noise=noise, generator=torch.Generator().manual_seed(seed))


def test_points_lie_around_those_with_distant_neighbours_and_outside():
    features = torch.randn(50, 4, generator=torch.Generator().manual_seed(1))
    known = NearestNeighbors().fit(features.numpy())
    radii = known.kneighbors(n_neighbors=3)[0][:, -1]  # without itself
    edge = set(np.argsort(-radii)[: math.ceil(0.2 * 50)])
    close = draw(features, noise=1e-3)
    found = known.kneighbors(close.numpy(), 1)[1][:, 0]
    assert set(found) <= edge
    assert len(set(found)) > 1
    points, one = draw(features, 500), NearestNeighbors().fit(features.numpy())
    far = one.kneighbors(points.numpy(), 3)[0][:, -1]
    assert far.mean() > radii[list(edge)].mean() > radii.mean()
    assert torch.equal(points, draw(features, 500))
    assert not torch.equal(points, draw(features, 500, seed=1))


def test_spread_follows_the_distance_of_neighbours():
    corner = torch.zeros(2, 1000)
    corner[1, 0] = 6.0
    points = draw(corner, 200, neighbors=1, boundary=1.0, noise=0.5)
    near = torch.cdist(points, corner).min(dim=1).values
    assert near.mean() == pytest.approx(0.5 * 6, rel=0.05)  # of 1,000 dimensions: a shell


def test_fewer_images_than_neighbours_take_what_is_there_and_one_is_refused():
    assert draw(torch.eye(3), 5, neighbors=10).shape == (5, 3)
    with pytest.raises(ConfigError, match="there is 1 image; give an experience several"):
        draw(torch.eye(3)[:1])


class Spy(SupervisedPlugin):
    """Keeps, step by step, the term and that by hand, and what trained."""

    def __init__(self, plugin):
        super().__init__()
        self.plugin, self.terms, self.moved, self.weights = plugin, [], [], {}

    def before_training_iteration(self, strategy, **kwargs):
        named = strategy.model.named_parameters()
        self.weights = {n: p.detach().clone() for n, p in named}

    def before_backward(self, strategy, **kwargs):
        late = strategy.clock.train_exp_epochs >= 2
        hand = by_hand(self.plugin, strategy) if late else 0
        self.terms.append((float(strategy.mb_losses.get("outliers", 0)), float(hand)))

    def after_update(self, strategy, **kwargs):
        now = dict(strategy.model.named_parameters())
        self.moved.append({n for n, p in self.weights.items() if not torch.equal(p, now[n])})


def by_hand(plugin, strategy):
    rows, head = strategy.current_rows, strategy.network.head
    points = draw(
        plugin._around.features,
        len(strategy.mb_y),
        neighbors=plugin.neighbors,
        boundary=plugin.boundary,
        noise=plugin.noise,
        seed=strategy.clock.train_iterations,
    )
    total = 0.0
    for z, sign, margin in (
        (strategy.mb_features[-1].detach(), 1, plugin.inside),
        (points, -1, plugin.outside),
    ):
        logits = (z @ head.weight.T + head.bias)[:, rows].detach().double().numpy()
        energy = -np.log(np.exp(logits).sum(axis=1))
        above = np.maximum(0, sign * (energy - margin))
        total += np.where(above <= 1, above**2 / 2, above - 0.5).mean()
    return plugin.weight * total


def test_the_term_is_that_by_hand_and_the_head_trains_alone():
    plugin = VirtualOutliersPlugin(2, weight=0.3, inside=-2.0, outside=1.0)
    spy = Spy(plugin)
    strategy = one_prompt([plugin, spy])
    for experience in learnable_benchmark(per_class=4).train_stream[:2]:
        strategy.train(experience)
    added, hand = zip(*spy.terms, strict=True)
    assert added == pytest.approx(hand, rel=1e-4, abs=1e-5)
    late = [i % 4 >= 2 for i in range(len(spy.moved))]  # an epoch is a step
    assert [term > 0 for term in hand] == late
    alone = [moved <= {"head.weight", "head.bias"} for moved in spy.moved]
    # the first step of an experience finds rows of zeros, through which no gradient comes
    assert alone == [is_late or i % 4 == 0 for i, is_late in enumerate(late)]
    assert plugin._around is None


def test_outliers_have_more_energy_than_images_with_it_than_without():
    found = {}
    for weight in (0.0, 1.0):
        plugin = VirtualOutliersPlugin(20, weight=weight, inside=-3.0, outside=0.0)
        strategy = one_prompt([plugin], train_epochs=22)
        experience = learnable_benchmark(per_class=4).train_stream[0]
        strategy.train(experience)
        head, read = strategy.network.head, []
        take = functools.partial(lambda to, batch: to.append(batch.features), read)
        feature_pass(strategy, take, dataset=experience.dataset)
        features = torch.cat(read)
        with torch.no_grad():
            inside, outside = (
                -head(z).logsumexp(1).mean().item() for z in (features, draw(features, noise=1.0))
            )
        found[weight] = (inside, outside)
    assert found[1.0][1] - found[1.0][0] > found[0.0][1] - found[0.0][0]


@pytest.mark.parametrize(
    ("options", "more", "message"),
    [
        ({"epochs": 4}, {}, "in the last 4 epochs, and there are 4 in all"),
        ({"epochs": 1}, {"head": RidgeHead}, None),  # its proxies train
        ({"inside": 0.0}, {}, r"inside \(0.0\) must be below outside \(-3.0\)"),
    ],
)
def test_what_cannot_be(options, more, message):
    stream = learnable_benchmark(per_class=2).train_stream
    if message is None:
        one_prompt([VirtualOutliersPlugin(**options)], **more).train(stream[0])
        return
    with pytest.raises(ConfigError, match=message):
        one_prompt([VirtualOutliersPlugin(**options)], **more).train(stream[0])
