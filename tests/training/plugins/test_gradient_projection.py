"""Gradient projection with strategies that know nothing of it."""

import json
import random

import numpy as np
import pytest
import torch
from avalanche.benchmarks.scenarios.online import split_online_stream
from avalanche.core import SupervisedPlugin
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.logging import BaseLogger
from avalanche.models import IncrementalClassifier, MultiHeadClassifier, MultiTaskModule
from avalanche.training import Naive
from avalanche.training.plugins import EvaluationPlugin, ReplayPlugin
from torch import nn

from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.models import PEFTModel
from avalanche_peftcl.models.adapter import Adapter
from avalanche_peftcl.models.attention_adapter import (
    AttentionAdapter,
    build_attention_adapters,
)
from avalanche_peftcl.models.projection import listen
from avalanche_peftcl.models.sites import linear_sites, projection_sites
from avalanche_peftcl.testing import toy_benchmark
from avalanche_peftcl.training import PEFTTemplate
from avalanche_peftcl.training.plugins import GradientProjectionPlugin
from avalanche_peftcl.training.plugins.gradient_projection import build_gradient_projection

DIM = 32
WEIGHTS = ("adapter.down.weight", "adapter.up.weight")
OPTIMIZERS = {
    "plain": lambda p: torch.optim.SGD(p, lr=0.5),
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=0.01),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
}


class Toy(nn.Module):
    """A frozen layer, an adapter with room to learn, and a head that grows."""

    def __init__(self, adapter=None):
        super().__init__()
        torch.manual_seed(0)
        self.frozen = nn.Linear(3 * 16 * 16, DIM).requires_grad_(False)
        self.adapter = AttentionAdapter(DIM, r=20) if adapter is None else adapter
        self.head = IncrementalClassifier(DIM, initial_out_features=2)

    def adapted(self, x):
        hidden = torch.tanh(self.frozen(x.flatten(1)))
        return hidden + self.adapter(hidden)

    def forward(self, x):
        return self.head(self.adapted(x))


def stream(scenario="class", *, per_class=3, **options):
    """Three experiences of ``2 * per_class`` images: fewer rows than the adapter is wide."""
    return toy_benchmark(scenario, per_class=per_class, **options).train_stream


def make(model, plugins, *, optimizer="adam", strategy=Naive, **options):
    defaults = {"train_mb_size": 4, "train_epochs": 3, "eval_mb_size": 4}
    return strategy(
        model=model,
        optimizer=OPTIMIZERS[optimizer](model.parameters()),
        criterion=nn.CrossEntropyLoss(),
        plugins=plugins,
        **({"evaluator": EvaluationPlugin()} | defaults | options),
    )


def projection(threshold=1.0, **options):
    return GradientProjectionPlugin(threshold, **({"n_samples": None} | options))


def images(*experiences):
    data = [experience.dataset.eval() for experience in experiences]
    return torch.stack([each[i][0] for each in data for i in range(len(each))])


@torch.no_grad()
def look(model, x):
    """The features of every site and the adapter's output, in eval mode."""
    seen, mode = {}, model.training
    sites = projection_sites(model)
    with listen(sites, lambda site, features: seen.update({site.name: features.clone()})):
        seen["output"] = model.eval().adapted(x)
    model.train(mode)
    return seen


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
def test_old_features_stay_with_every_optimizer(case, replay):
    plugins = [projection(), *([ReplayPlugin(mem_size=4)] if replay else [])]
    model, experiences = Toy(), stream()
    strategy = make(model, plugins, **CASES[case])
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


def test_biases_stay_too():
    model, experiences = Toy(Adapter(DIM, r=20, dropout=0.0)), stream()
    strategy = make(model, [projection()])
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
def test_without_projection_old_features_change(case, where):
    plugin = projection(0.0 if case == "nothing protected" else 1.0, where=where)
    plugin.active = case != "inactive"
    model, experiences = Toy(), stream()
    strategy = make(model, [] if case == "absent" else [plugin], optimizer="plain")
    strategy.train(experiences[0])
    before = look(model, images(experiences[0]))
    strategy.train(experiences[1])
    assert distance(before, look(model, images(experiences[0]))) > 0.01


def test_the_first_experience_trains_as_without_the_plugin():
    ends = []
    for plugins in ([], [projection()]):
        model = Toy()
        torch.manual_seed(1)
        make(model, plugins).train(stream()[0])
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
def test_a_projected_gradient_leaks_where_a_projected_step_does_not(where, optimizer, leaks):
    plugin, model, experiences = projection(where=where), Toy(), stream()
    strategy = make(model, [plugin], optimizer=optimizer)
    strategy.train(experiences[0])
    start, bases = weights(model), {name: plugin.bases[name][0] for name in WEIGHTS}
    strategy.train(experiences[1])
    for name, weight in weights(model).items():
        share = leak(weight - start[name], bases[name])
        assert share > 0.01 if leaks else share < 1e-7, name


def test_a_larger_threshold_protects_more_and_learns_less():
    drift, sizes, losses = [], [], []
    for threshold in (0.0, 0.5, 0.9, 0.99, 1.0):
        plugin, model, experiences = projection(threshold), Toy(), stream(per_class=12)
        torch.manual_seed(1)
        strategy = make(model, [plugin], train_mb_size=24, train_epochs=8)
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


def test_parameters_without_a_site_are_named():
    class Scaled(AttentionAdapter):
        def projection_sites(self):
            return [site for site in super().projection_sites() if site.name != "scale"]

    plugin = projection()
    strategy = make(Toy(Scaled(DIM, r=20)), [plugin])
    strategy.train(stream()[0])
    left = ["adapter.scale", "head.classifier.weight", "head.classifier.bias"]
    assert plugin.unprotected == plugin.summary()["unprotected"] == left


def test_sites_can_be_given():
    plugin = projection(sites=lambda model: linear_sites("adapter.up", model.adapter.up))
    model, experiences = Toy(), stream()
    strategy = make(model, [plugin])
    strategy.train(experiences[0])
    start = model.adapter.up.weight.detach().clone()
    strategy.train(experiences[1])
    assert plugin.bases.keys() == {"adapter.up.weight"}
    assert "adapter.down.weight" in plugin.unprotected
    basis = plugin.bases["adapter.up.weight"][0][:, :1]  # the first one is of experience 0
    assert leak(model.adapter.up.weight.detach() - start, basis) < 1e-8


@pytest.mark.parametrize("model", [nn.Module, lambda: Toy(nn.Linear(DIM, DIM))])
def test_a_model_without_sites_is_refused(model):
    model = model()
    model.train_nothing = nn.Parameter(torch.zeros(1))
    words = f"{type(model).__name__} states no projection sites; use a module that does"
    with pytest.raises(ConfigError, match=words):
        make(model, [projection()], strategy=Naive).train(stream()[0])


def test_a_frozen_model_has_no_sites():
    model = Toy(nn.Sequential(Adapter(DIM)).requires_grad_(False))
    with pytest.raises(ConfigError, match=r"states no projection sites; .* or give sites="):
        make(model, [projection()]).train(stream()[0])


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


def test_a_model_with_a_part_named_embed_is_read_whole():
    class Named(Toy):
        def __init__(self):
            super().__init__()
            self.embed = self.frozen

    plugin = projection()
    make(Named(), [plugin]).train(stream()[0])
    assert plugin.bases[WEIGHTS[0]][0].shape == (DIM, 6)


def test_a_model_that_wants_task_labels_is_read():
    class MultiHead(Toy, MultiTaskModule):
        def __init__(self):
            super().__init__()
            self.head = MultiHeadClassifier(DIM, initial_out_features=2)

        def forward(self, x, task_labels):
            return self.head(self.adapted(x), task_labels)

    plugin, model, experiences = projection(), MultiHead(), stream("task")
    strategy = make(model, [plugin])
    strategy.train(experiences[0])
    before = look(model, images(experiences[0]))
    strategy.train(experiences[1])
    assert distance(before, look(model, images(experiences[0]))) < 1e-5


def test_sites_may_be_in_the_head(backbone):
    """With sites in the head too, old images keep their logits."""

    def sites(model):
        return [*projection_sites(model), *linear_sites("head", model.head)]

    torch.manual_seed(0)
    model = PEFTModel(backbone, build_attention_adapters(backbone=backbone, blocks=[2]))
    plugin, experiences = projection(sites=sites), stream(per_class=1)
    strategy = make(model, [plugin], strategy=PEFTTemplate)
    strategy.train(experiences[0])
    assert plugin.unprotected == []
    old = images(experiences[0])
    logits, start = model.eval()(old).detach(), model.head.weight.detach().clone()
    strategy.train(experiences[1])
    after = model.eval()(old).detach()
    torch.testing.assert_close(after[:, :2], logits, atol=1e-4, rtol=0)
    assert (model.head.weight[:2] - start).abs().max() > 1e-3


def test_a_site_that_no_image_reaches_is_an_error():
    model = Toy()
    model.unused = AttentionAdapter(DIM)
    with pytest.raises(ConfigError, match=r"site unused\.down\.weight saw no features"):
        make(model, [projection()]).train(stream()[0])


# --- which images are read -----------------------------------------------------------------------


class Reader(Toy):
    """Counts the images that pass in eval mode."""

    def __init__(self):
        super().__init__()
        self.read = []

    def forward(self, x):
        if not self.training:
            self.read.append(x.clone())
        return super().forward(x)


@pytest.mark.parametrize(("n_samples", "expected"), [(None, 6), (4, 4), (100, 6)])
def test_so_many_images_are_read_each_once_and_again_the_same(n_samples, expected):
    draws = []
    for _ in range(2):
        model, experience = Reader(), stream(augment="random_resized_crop")[0]
        make(model, [projection(n_samples=n_samples)]).train(experience)
        draws.append(torch.cat(model.read))
    assert len(draws[0].unique(dim=0)) == len(draws[0]) == expected
    assert torch.equal(draws[0], draws[1])
    whole = images(experience)  # without augmentation
    assert all((image == whole).flatten(1).all(dim=1).any() for image in draws[0])


def test_another_seed_draws_others():
    draws = []
    for seed in (0, 1):
        model = Reader()
        make(model, [projection(n_samples=3, seed=seed)]).train(stream(per_class=12)[0])
        draws.append(torch.cat(model.read))
    assert not torch.equal(draws[0], draws[1])


def test_the_basis_spans_the_features_whatever_the_minibatches_and_their_order():
    spans = []
    for size, order in ((1, 1), (5, -1), (6, 1)):
        plugin, model = projection(), Toy()
        (experience, *_), optimizer = stream(), "plain"
        strategy = make(model, [plugin], optimizer=optimizer, eval_mb_size=size, train_mb_size=6)
        experience.dataset = experience.dataset.subset(list(range(6))[::order])
        strategy.train(experience)
        features = look(model, images(experience))["adapter.down.weight"].double()
        basis = plugin.bases["adapter.down.weight"][0].double()
        assert basis.shape == (DIM, 6)  # fewer images than dimensions
        torch.testing.assert_close(features @ basis @ basis.T, features, atol=1e-6, rtol=0)
        spans.append(basis @ basis.T)
    for span in spans[1:]:
        torch.testing.assert_close(span, spans[0], atol=1e-4, rtol=0)


def test_reading_draws_from_no_global_generator_and_restores_the_mode():
    class Watched(GradientProjectionPlugin):
        def after_training_exp(self, strategy, **kwargs):
            before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
            super().after_training_exp(strategy, **kwargs)
            assert strategy.model.training
            assert torch.equal(torch.get_rng_state(), before[0])
            assert (random.getstate(), np.random.get_state()[1].tolist()) == before[1:]

    plugin = Watched(1.0, n_samples=4)
    make(Toy(), [plugin]).train(stream()[0])
    assert plugin.n_experiences_done == 1


# --- streams of chunks ---------------------------------------------------------------------------


class FirstUpdate(SupervisedPlugin):
    """Keeps the weights before and after the first update of each chunk; listed last."""

    def __init__(self):
        super().__init__()
        self.changes = []

    def before_training_exp(self, strategy, **kwargs):
        self.start = weights(strategy.model)
        self.seen = False

    def after_update(self, strategy, **kwargs):
        if not self.seen:
            end = weights(strategy.model)
            self.changes.append({name: end[name] - self.start[name] for name in WEIGHTS})
            self.seen = True


def test_an_online_stream_is_read_chunk_by_chunk_and_protected_experience_by_experience():
    plugin, first, model = projection(), FirstUpdate(), Reader()
    strategy = make(model, [plugin, first], train_epochs=1, train_mb_size=2)
    sizes, bases, reads = [], [], []
    for chunk in stream("online", per_class=4, experience_size=3):
        strategy.train(chunk)
        bases.append({name: groups[0] for name, groups in plugin.bases.items()})
        sizes.append(bases[-1][WEIGHTS[0]].shape[1] if bases[-1] else 0)
        reads.append(sum(map(len, model.read)))
    # each experience has 8 images: chunks of 3, 3 and 2
    assert sizes == [0, 0, 8, 8, 8, 16, 16, 16, 24]
    assert reads == [3, 6, 8, 11, 14, 16, 19, 22, 24]
    assert len(torch.cat(model.read).unique(dim=0)) == 24
    assert len(plugin.summary()["experiences"]) == plugin.n_experiences_done == 3
    for i, change in enumerate(first.changes):
        for name in WEIGHTS:
            if i < 3:
                assert change[name].norm() > 0 or i == 0  # D gets no gradient while U is zero
            else:
                assert leak(change[name], bases[2][name]) < 1e-8


def test_each_chunk_gives_its_share_of_the_draw():
    model = Reader()
    strategy = make(model, [projection(n_samples=4)], train_epochs=1)
    reads = []
    for chunk in stream("online", per_class=4, experience_size=4):
        strategy.train(chunk)
        reads.append(sum(map(len, model.read)))
    assert reads == [2, 4, 6, 8, 10, 12]


def test_chunks_without_known_boundaries_are_experiences():
    benchmark = toy_benchmark(per_class=3)
    chunks = split_online_stream(
        benchmark.train_stream, experience_size=3, shuffle=False, access_task_boundaries=False
    )
    plugin, sizes = projection(), []
    model = Toy()
    model.head = nn.Linear(DIM, 6)  # the host's cannot grow without boundaries
    strategy = make(model, [plugin], train_epochs=1)
    for chunk in chunks:
        strategy.train(chunk)
        sizes.append(plugin.bases[WEIGHTS[0]][0].shape[1])
    assert sizes == [3, 6, 9, 12, 15, 18]


# --- memory --------------------------------------------------------------------------------------


def floats(held):
    """The numbers in all tensors that an object holds, itself or through others."""
    if torch.is_tensor(held):
        return held.numel()
    if isinstance(held, dict):
        return sum(map(floats, held.values()))
    if isinstance(held, list | tuple):
        return sum(map(floats, held))
    if type(held).__name__ == "SiteBatch":
        return floats({k: v for k, v in vars(held).items() if k != "sites"})
    return 0


@pytest.mark.parametrize("scenario", ["class", "online"])
def test_memory_grows_neither_with_images_nor_with_experiences(scenario):
    once = DIM**2 + 20**2 + 1  # d x d for each of the three sites
    for per_class in (3, 60):
        peak = []

        class Peak(GradientProjectionPlugin):
            def read(self, *args, **kwargs):
                super().read(*args, **kwargs)
                peak.append(floats(vars(self)))  # noqa: B023

        plugin = Peak(1.0, n_samples=None)
        strategy = make(Toy(), [plugin], train_epochs=1, train_mb_size=30, eval_mb_size=30)
        for experience in stream(scenario, per_class=per_class):
            strategy.train(experience)
        assert once - 1 <= max(peak) <= 4 * once  # Gram matrices, bases, and bases in use
        assert 0 < plugin.stored_floats <= once
    assert plugin.stored_floats == once


# --- what is reported ----------------------------------------------------------------------------


class Shares(SupervisedPlugin):
    """Works out how much of each update lies inside the basis of the experiences before."""

    def __init__(self, plugin):
        super().__init__()
        self.plugin, self.lengths, self.watching = plugin, [], False

    @property
    def shares(self):
        return [{n: b / a for n, (a, b) in lengths.items()} for lengths in self.lengths]

    def before_training_exp(self, strategy, **kwargs):
        if self.plugin.n_experiences_done == len(self.lengths):  # no further chunk of the last
            self.bases = {n: groups[0].double() for n, groups in self.plugin.bases.items()}
            self.lengths.append(dict.fromkeys(WEIGHTS, (0.0, 0.0)))
        if self.plugin.where == "step" and not self.watching:
            self.watching = True
            step = strategy.optimizer_step

            def watched():
                before = weights(strategy.model)
                step()
                end = weights(strategy.model)
                self.add({name: end[name] - before[name] for name in WEIGHTS})

            strategy.optimizer_step = watched

    def before_update(self, strategy, **kwargs):
        if self.plugin.where == "gradient":
            self.add({name: dict(strategy.model.named_parameters())[name].grad for name in WEIGHTS})

    def add(self, changes):
        for name, change in changes.items():
            change, (whole, inside) = change.double(), self.lengths[-1][name]
            basis = self.bases.get(name, change.new_zeros(change.shape[1], 0))
            more = (change @ basis).square().sum().item()
            self.lengths[-1][name] = whole + change.square().sum().item(), inside + more


@pytest.fixture(scope="module", params=["step", "gradient"])
def reported(request):
    """A plugin after three experiences, its shares worked out elsewhere, and who heard of it."""

    class Logger(BaseLogger):
        def __init__(self):
            super().__init__()
            self.values = []

        def log_metrics(self, metric_values):
            self.values += metric_values

    logger = Logger()
    evaluator = EvaluationPlugin(accuracy_metrics(stream=True), loggers=[logger])
    plugin = projection(0.9, where=request.param)
    shares = Shares(plugin)
    experiences = stream(per_class=6)
    strategy = make(Toy(), [shares, plugin], evaluator=evaluator)
    energies = []
    for experience in experiences:
        strategy.train(experience)
        energies.append(
            {
                name: features.double()
                for name, features in look(strategy.model, images(experience)).items()
            }
        )
    return plugin, shares.shares, energies, strategy, logger


def test_removed_share_is_that_of_the_updates(reported):
    plugin, shares, *_ = reported
    assert shares[0] == dict.fromkeys(WEIGHTS, 0.0)
    for t, expected in enumerate(shares):
        report = {site["site"]: site for site in plugin.summary()["experiences"][t]}
        for name in WEIGHTS:
            assert report[name]["removed_share"] == pytest.approx(expected[name], abs=1e-4)
            assert t == 0 or report[name]["removed_share"] > 0.1


def test_removed_share_is_that_of_all_chunks_of_an_experience():
    plugin = projection(0.9)
    shares = Shares(plugin)
    strategy = make(Toy(), [shares, plugin])
    for chunk in stream("online", per_class=6, experience_size=4):
        strategy.train(chunk)
    assert len(shares.shares) == 3
    for expected, report in zip(shares.shares, plugin.summary()["experiences"], strict=True):
        removed = {site["site"]: site["removed_share"] for site in report}
        assert {name: removed[name] for name in WEIGHTS} == pytest.approx(expected, abs=1e-4)


def test_captured_energy_is_that_of_the_features(reported):
    plugin, _, energies, *_ = reported
    last = {site["site"]: site for site in plugin.summary()["experiences"][-1]}
    for name in WEIGHTS:
        features, basis = energies[-1][name], plugin.bases[name][0]
        inside = (features @ basis).square().sum() / features.square().sum()
        assert last[name]["captured_energy"] == pytest.approx(inside.item(), abs=1e-5)
        assert last[name]["captured_energy"] >= 0.9


def test_the_summary_can_be_written(reported):
    plugin, *_ = reported
    summary = json.loads(json.dumps(plugin.summary()))
    assert summary == plugin.summary()
    assert (summary["threshold"], summary["where"]) == (0.9, plugin.where)
    assert summary["unprotected"] == ["head.classifier.weight", "head.classifier.bias"]
    names = [*WEIGHTS, "adapter.scale"]
    assert [[site["site"] for site in each] for each in summary["experiences"]] == [names] * 3
    for each in summary["experiences"]:
        assert [site["dim"] for site in each] == [DIM, 20, 1]
        assert all(0 <= site["size"] <= site["dim"] for site in each)
    sizes = [[site["size"] for site in each] for each in summary["experiences"]]
    for column in zip(*sizes, strict=True):
        assert list(column) == sorted(column)
    assert sizes[-1] == [plugin.bases[name][0].shape[1] for name in names]


def test_the_evaluator_and_its_loggers_are_told(reported):
    plugin, _, _, strategy, logger = reported
    metrics = strategy.evaluator.get_last_metrics()
    for site in plugin.summary()["experiences"][-1]:
        for key in ("Size", "Captured_Energy", "Removed_Share"):
            name = f"Projection_{key}/train_phase/train_stream/{site['site']}"
            assert metrics[name] == site[key.lower()]
            heard = [value for value in logger.values if value.name == name]
            assert len(heard) == 3
            assert heard[-1].value == site[key.lower()]
            assert [v.x_plot for v in heard] == sorted({v.x_plot for v in heard})


def test_the_headline_is_about_the_last_experience(reported):
    plugin, *_ = reported
    last = plugin.summary()["experiences"][-1]
    size, shares = sum(site["size"] for site in last), [site["removed_share"] for site in last]
    energy = [100 * site["captured_energy"] for site in last]
    line = plugin.headline()
    assert f" {min(energy):.1f} to {max(energy):.1f} % of the energy; " in line
    assert line.startswith(f"projection: {size} of {DIM + 20 + 1} directions at 3 sites, ")
    assert line.endswith(
        f"removed {100 * min(shares):.0f} to {100 * max(shares):.0f} % of the updates"
    )
    assert projection().headline() is None
