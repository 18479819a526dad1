"""Gradient projection with strategies that know nothing of it."""

import pytest
import torch
from avalanche.models import MultiHeadClassifier, MultiTaskModule
from avalanche.training import Naive
from avalanche.training.plugins import ReplayPlugin
from torch import nn

from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.models import PEFTModel
from avalanche_peftcl.models.modules.adapter import Adapter
from avalanche_peftcl.models.modules.attention_adapter import (
    AttentionAdapter,
    build_attention_adapters,
)
from avalanche_peftcl.models.projection.sites import linear_sites, projection_sites
from avalanche_peftcl.testing import toy_benchmark
from avalanche_peftcl.training import PEFTTemplate
from avalanche_peftcl.training.plugins import GradientProjectionPlugin
from avalanche_peftcl.training.plugins.gradient_projection import build_gradient_projection

DIM = 32
WEIGHTS = ("adapter.down.weight", "adapter.up.weight")


def stream(scenario="class", *, per_class=3, **options):
    """Three experiences of ``2 * per_class`` images: fewer rows than the adapter is wide."""
    return toy_benchmark(scenario, per_class=per_class, **options).train_stream


def projection(threshold=1.0, **options):
    return GradientProjectionPlugin(threshold, **({"n_samples": None} | options))


def distance(before, after):
    """The largest change relative to the largest entry."""
    return max(
        ((after[name] - value).abs().max() / value.abs().max()).item()
        for name, value in before.items()
    )


def weights(model):
    parameters = dict(model.named_parameters())
    return {name: parameters[name].detach().clone() for name in WEIGHTS}


def leak(change, basis):
    """The share of a change's squared length that lies inside a basis."""
    inside = change.double() @ basis.double()
    return (inside.square().sum() / change.double().square().sum()).item()


# --- what old images give stays ------------------------------------------------------------------


CASES = {
    "sgd": {"optimizer": "sgd"},
    "adam": {"optimizer": "adam"},
    "adamw": {"optimizer": "adamw"},
    "clipped": {"optimizer": "adam", "strategy": PEFTTemplate, "max_grad_norm": 0.1},
    "accumulated": {"optimizer": "sgd", "strategy": PEFTTemplate, "accumulation_steps": 2},
}


@pytest.mark.parametrize("replay", [False, True], ids=["alone", "replay"])
@pytest.mark.parametrize("case", CASES)
def test_old_features_stay_with_every_optimizer(toy, make_strategy, images, look, case, replay):
    plugins = [projection(), *([ReplayPlugin(mem_size=4)] if replay else [])]
    model, experiences = toy(), stream()
    strategy = make_strategy(model, plugins, **CASES[case])
    strategy.train(experiences[0])
    for t in (1, 2):
        old, new = images(*experiences[:t]), images(experiences[t])
        start, before_old, before_new = weights(model), look(model, old), look(model, new)
        strategy.train(experiences[t])
        assert distance(before_old, look(model, old)) < 1e-5
        assert distance(before_new, look(model, new)) > 1e-3
        for name, weight in weights(model).items():
            assert (weight - start[name]).norm() > 1e-3 * weight.norm()
    assert model.head.classifier.weight.shape == (6, DIM)  # it grew meanwhile


def test_biases_stay_too(toy, make_strategy, images, look):
    model, experiences = toy(Adapter(DIM, r=20, dropout=0.0)), stream()
    strategy = make_strategy(model, [projection()])
    strategy.train(experiences[0])
    old, biases = images(experiences[0]), [model.adapter.down.bias, model.adapter.up.bias]
    before, start = look(model, old), [bias.detach().clone() for bias in biases]
    assert all(bias.abs().max() > 1e-3 for bias in start)
    strategy.train(experiences[1])
    assert distance(before, look(model, old)) < 1e-5
    for bias, value in zip(biases, start, strict=True):
        torch.testing.assert_close(bias.detach(), value, atol=1e-6, rtol=0)


@pytest.mark.parametrize("where", ["step", "gradient"])
@pytest.mark.parametrize("case", ["absent", "inactive", "nothing protected"])
def test_without_projection_old_features_change(toy, make_strategy, images, look, case, where):
    plugin = projection(0.0 if case == "nothing protected" else 1.0, where=where)
    plugin.active = case != "inactive"
    model, experiences = toy(), stream()
    strategy = make_strategy(model, [] if case == "absent" else [plugin], optimizer="plain")
    strategy.train(experiences[0])
    before = look(model, images(experiences[0]))
    strategy.train(experiences[1])
    assert distance(before, look(model, images(experiences[0]))) > 0.01


def test_the_first_experience_trains_as_without_the_plugin(toy, make_strategy):
    ends = []
    for plugins in ([], [projection()]):
        model = toy()
        torch.manual_seed(1)
        make_strategy(model, plugins).train(stream()[0])
        ends.append(model.state_dict())
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


@pytest.mark.parametrize(
    ("where", "optimizer", "leaks"),
    [
        ("gradient", "plain", False),
        ("gradient", "sgd", True),
        ("gradient", "adam", True),
        ("step", "adam", False),
        ("step", "adamw", False),
    ],
)
def test_a_projected_gradient_leaks_where_a_projected_step_does_not(
    toy, make_strategy, where, optimizer, leaks
):
    plugin, model, experiences = projection(where=where), toy(), stream()
    strategy = make_strategy(model, [plugin], optimizer=optimizer)
    strategy.train(experiences[0])
    start, bases = weights(model), {name: plugin.bases[name][0] for name in WEIGHTS}
    strategy.train(experiences[1])
    for name, weight in weights(model).items():
        share = leak(weight - start[name], bases[name])
        assert share > 0.01 if leaks else share < 1e-7, name


def test_a_larger_threshold_protects_more_and_learns_less(toy, make_strategy, images, look):
    drift, sizes, losses = [], [], []
    for threshold in (0.0, 0.5, 0.9, 0.99, 1.0):
        plugin, model, experiences = projection(threshold), toy(), stream(per_class=12)
        torch.manual_seed(1)
        strategy = make_strategy(model, [plugin], train_mb_size=24, train_epochs=8)
        strategy.train(experiences[0])
        old, new = images(experiences[0]), images(experiences[1])
        before = look(model, old)["output"]
        strategy.train(experiences[1])
        drift.append((look(model, old)["output"] - before).norm().item())
        sizes.append([sum(b.shape[1] for b in groups) for groups in plugin.bases.values()])
        targets = torch.tensor(list(experiences[1].dataset.targets))
        losses.append(nn.functional.cross_entropy(model(new), targets).item())
        removed = [site["removed_share"] for site in plugin.summary()["experiences"][1]]
        assert all(share == 0 for share in removed) if threshold == 0 else max(removed) > 0.1
    assert drift == sorted(drift, reverse=True)
    assert drift[-1] < 1e-4 * drift[0]
    for column in zip(*sizes, strict=True):
        assert list(column) == sorted(column)
    assert sizes[0] == [0, 0, 0]
    assert losses == sorted(losses)


# --- any strategy, any model ---------------------------------------------------------------------


def test_parameters_without_a_site_are_named(toy, make_strategy):
    class Scaled(AttentionAdapter):
        def projection_sites(self):
            return [site for site in super().projection_sites() if site.name != "scale"]

    plugin = projection()
    strategy = make_strategy(toy(Scaled(DIM, r=20)), [plugin])
    strategy.train(stream()[0])
    left = ["adapter.scale", "head.classifier.weight", "head.classifier.bias"]
    assert plugin.unprotected == plugin.summary()["unprotected"] == left


def test_sites_can_be_given(toy, make_strategy):
    plugin = projection(sites=lambda model: linear_sites("adapter.up", model.adapter.up))
    model, experiences = toy(), stream()
    strategy = make_strategy(model, [plugin])
    strategy.train(experiences[0])
    start = model.adapter.up.weight.detach().clone()
    strategy.train(experiences[1])
    assert plugin.bases.keys() == {"adapter.up.weight"}
    assert "adapter.down.weight" in plugin.unprotected
    basis = plugin.bases["adapter.up.weight"][0][:, :1]  # the first one is of experience 0
    assert leak(model.adapter.up.weight.detach() - start, basis) < 1e-8


@pytest.mark.parametrize("bare", [True, False])
def test_a_model_without_sites_is_refused(toy, make_strategy, bare):
    model = nn.Module() if bare else toy(nn.Linear(DIM, DIM))
    model.train_nothing = nn.Parameter(torch.zeros(1))
    words = f"{type(model).__name__} states no projection sites; use a module that does"
    with pytest.raises(ConfigError, match=words):
        make_strategy(model, [projection()], strategy=Naive).train(stream()[0])


def test_a_frozen_model_has_no_sites(toy, make_strategy):
    model = toy(nn.Sequential(Adapter(DIM)).requires_grad_(False))
    with pytest.raises(ConfigError, match=r"states no projection sites; .* or give sites="):
        make_strategy(model, [projection()]).train(stream()[0])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"threshold": 1.5}, r"threshold must be in \[0, 1\], not 1.5"),
        ({"threshold": -0.1}, r"threshold must be in \[0, 1\], not -0.1"),
        ({"threshold": float("nan")}, r"threshold must be in \[0, 1\], not nan"),
        ({"where": "weights"}, "where must be gradient or step, not 'weights'"),
        ({"n_samples": 0}, "n_samples must be at least 1, or None for all, not 0"),
    ],
)
def test_arguments_out_of_range_are_refused(options, words):
    for build in (GradientProjectionPlugin, build_gradient_projection):
        with pytest.raises(ConfigError, match=words):
            build(**options)


def test_a_model_with_a_part_named_embed_is_read_whole(toy, make_strategy):
    class Named(toy):
        def __init__(self):
            super().__init__()
            self.embed = self.frozen

    plugin = projection()
    make_strategy(Named(), [plugin]).train(stream()[0])
    assert plugin.bases[WEIGHTS[0]][0].shape == (DIM, 6)


def test_a_model_that_wants_task_labels_is_read(toy, make_strategy, images, look):
    class MultiHead(toy, MultiTaskModule):
        def __init__(self):
            super().__init__()
            self.head = MultiHeadClassifier(DIM, initial_out_features=2)

        def forward(self, x, task_labels):
            return self.head(self.adapted(x), task_labels)

    plugin, model, experiences = projection(), MultiHead(), stream("task")
    strategy = make_strategy(model, [plugin])
    strategy.train(experiences[0])
    before = look(model, images(experiences[0]))
    strategy.train(experiences[1])
    assert distance(before, look(model, images(experiences[0]))) < 1e-5


def test_sites_may_be_in_the_head(backbone, make_strategy, images):
    """With sites in the head too, old images keep their logits."""

    def sites(model):
        return [*projection_sites(model), *linear_sites("head", model.head)]

    torch.manual_seed(0)
    model = PEFTModel(backbone, build_attention_adapters(backbone=backbone, blocks=[2]))
    plugin, experiences = projection(sites=sites), stream(per_class=1)
    strategy = make_strategy(model, [plugin], strategy=PEFTTemplate)
    strategy.train(experiences[0])
    assert plugin.unprotected == []
    old = images(experiences[0])
    logits, start = model.eval()(old).detach(), model.head.weight.detach().clone()
    strategy.train(experiences[1])
    after = model.eval()(old).detach()
    torch.testing.assert_close(after[:, :2], logits, atol=1e-4, rtol=0)
    assert (model.head.weight[:2] - start).abs().max() > 1e-3


def test_a_site_that_no_image_reaches_is_an_error(toy, make_strategy):
    model = toy()
    model.unused = AttentionAdapter(DIM)
    with pytest.raises(ConfigError, match=r"site unused\.down\.weight saw no features"):
        make_strategy(model, [projection()]).train(stream()[0])
