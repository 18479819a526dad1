"""What gradient projection reports: removed shares, captured energy, metrics, headline."""

import json

import pytest
from avalanche.core import SupervisedPlugin
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.logging import BaseLogger
from avalanche.training.plugins import EvaluationPlugin

from avalanche_peftcl.testing import toy_benchmark
from avalanche_peftcl.training.plugins import GradientProjectionPlugin

DIM = 32
WEIGHTS = ("adapter.down.weight", "adapter.up.weight")


def stream(scenario="class", *, per_class=3, **options):
    """Three experiences of ``2 * per_class`` images: fewer rows than the adapter is wide."""
    return toy_benchmark(scenario, per_class=per_class, **options).train_stream


def projection(threshold=1.0, **options):
    return GradientProjectionPlugin(threshold, **({"n_samples": None} | options))


def weights(model):
    parameters = dict(model.named_parameters())
    return {name: parameters[name].detach().clone() for name in WEIGHTS}


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
def reported(request, toy, make_strategy, images, look):
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
    strategy = make_strategy(toy(), [shares, plugin], evaluator=evaluator)
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


def test_removed_share_is_that_of_all_chunks_of_an_experience(toy, make_strategy):
    plugin = projection(0.9)
    shares = Shares(plugin)
    strategy = make_strategy(toy(), [shares, plugin])
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
    last = plugin.summary()["experiences"][-1]
    expected = {
        "Size": sum(site["size"] for site in last),
        "Captured_Energy": min(site["captured_energy"] for site in last),
        "Removed_Share": sum(site["removed_share"] for site in last) / len(last),
    }
    told = {name for name in metrics if name.startswith("Projection_")}
    assert told == {f"Projection_{key}/train_phase/train_stream" for key in expected}
    for key, value in expected.items():
        name = f"Projection_{key}/train_phase/train_stream"
        assert metrics[name] == pytest.approx(value, abs=1e-12)
        heard = [value for value in logger.values if value.name == name]
        assert len(heard) == 3
        assert [v.x_plot for v in heard] == sorted({v.x_plot for v in heard})


def test_sites_are_logged_on_request(toy, make_strategy):
    evaluator = EvaluationPlugin(loggers=[BaseLogger()])
    plugin = projection(0.9, log_sites=True)
    strategy = make_strategy(toy(), [plugin], evaluator=evaluator)
    strategy.train(stream(per_class=6)[0])
    metrics = evaluator.get_last_metrics()
    for site in plugin.summary()["experiences"][-1]:
        for key in ("Size", "Captured_Energy", "Removed_Share"):
            name = f"Projection_{key}/train_phase/train_stream/{site['site']}"
            assert metrics[name] == site[key.lower()]


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
