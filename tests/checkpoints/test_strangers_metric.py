"""A metric as a stranger writes it, with no word of checkpoints, resumes to the same values."""

import re
from collections import defaultdict

import numpy as np
import pytest
import torch
from avalanche.core import SupervisedPlugin
from avalanche.evaluation import PluginMetric
from avalanche.evaluation.metric_results import MetricValue
from avalanche.evaluation.metrics import Mean
from avalanche.training.plugins import EvaluationPlugin

from avalanche_peftcl import Component
from avalanche_peftcl.checkpoints import maybe_load_checkpoint, save_checkpoint
from avalanche_peftcl.config import RunConfig
from avalanche_peftcl.errors import CheckpointError, CheckpointWarning, ConfigError
from avalanche_peftcl.registry import Registry, discover
from avalanche_peftcl.registry.packages import Entry, Provider
from avalanche_peftcl.runs.reading import read_record
from avalanche_peftcl.runs.run import run
from avalanche_peftcl.testing import toy_backbone, toy_benchmark
from avalanche_peftcl.training.naive import build_naive


class Confidence(PluginMetric[float]):
    """How sure the network is of what it says, by class, and how that moves over a run."""

    def __init__(self, top=1):
        super().__init__()
        self.top, self.softmax = top, torch.softmax
        self.reset()

    def reset(self):
        self.overall = Mean()
        self.by_class = defaultdict(Mean)
        self.images = torch.zeros(10, dtype=torch.long)
        self.history = [np.zeros(10)]
        self.row = None

    def result(self):
        return self.overall.result()

    def before_training_exp(self, strategy):
        self.row = strategy.experience.current_experience

    def after_eval_iteration(self, strategy):
        shares, said = self.softmax(strategy.mb_output, 1).topk(self.top, 1)
        for share, label in zip(shares[:, 0].tolist(), said[:, 0].tolist(), strict=True):
            self.overall.update(share)
            self.by_class[label].update(share)
            self.images[label] += 1

    def after_eval(self, strategy):
        found = np.array([self.by_class[c].result() for c in range(10)])
        moved = float(np.abs(found - self.history[-1]).sum())
        self.history.append(found)
        values = {"Confidence": self.result(), "Moved": moved, "Row": self.row or 0}
        values |= {f"Images{c}": int(n) for c, n in enumerate(self.images)}
        step = strategy.clock.train_iterations
        return [MetricValue(self, name, value, step) for name, value in values.items()]

    def summary(self):
        return {"history": [row.tolist() for row in self.history], 3: float("nan")}

    def __str__(self):
        return "Confidence"


class Holder(Confidence):
    """Holds what nobody can write down."""

    def __init__(self):
        super().__init__()
        self.handle = object()


class Careless(Holder):
    remembers = ()


# --- in a script ---------------------------------------------------------------------------------


def strategy():
    return build_naive(
        backbone=toy_backbone(depth=1),
        train_epochs=1,
        train_mb_size=6,
        evaluator=EvaluationPlugin(Confidence(), loggers=[]),
    )


def test_a_script_goes_on_to_the_same_values(tmp_path):
    path, told = tmp_path / "a.checkpoint", []
    for stops in (False, True):
        torch.manual_seed(0)
        built, benchmark = strategy(), toy_benchmark()
        for t, experience in enumerate(benchmark.train_stream):
            if stops and t:
                save_checkpoint(built, path, benchmark=benchmark)
                torch.manual_seed(t)
                built, start = maybe_load_checkpoint(strategy(), path, benchmark=benchmark)
                assert start == t
            built.train(experience, eval_streams=[])
            built.eval(benchmark.test_stream)
        told.append(built.evaluator.get_all_metrics())
    assert told[0] == told[1]
    assert {"Confidence", "Moved", "Images5"} <= told[0].keys()
    assert len(set(told[0]["Moved"][1])) == 3


# --- in a run ------------------------------------------------------------------------------------


class Stopped(BaseException):
    pass


class Stop(SupervisedPlugin):
    """Stops a run as its third experience begins."""

    stops = False

    def before_training_exp(self, strategy, **kwargs):
        if self.stops and strategy.experience.current_experience == 2:
            raise Stopped


@pytest.fixture(scope="module")
def registry():
    offered = [("metric", kind.__name__.lower(), kind) for kind in (Confidence, Holder, Careless)]
    offered.append(("strategy_plugin", "stop", Stop))
    provider = Provider("a-stranger", "1.0")
    more = [Entry(k, Component(n, build, source="none"), provider) for k, n, build in offered]
    return Registry([*discover().entries(), *more])


@pytest.fixture
def stopped(registry, tmp_path, monkeypatch):
    """Return a function that runs with a metric until it is stopped."""

    def go(metric):
        config = settings(tmp_path / "run", metric)
        monkeypatch.setattr(Stop, "stops", True)
        with pytest.raises(Stopped):
            run(config, registry=registry)
        monkeypatch.setattr(Stop, "stops", False)
        return config

    return go


def settings(output, metric):
    return RunConfig.model_validate(
        {
            "output": output,
            "num_threads": 1,
            "backbone": {"name": "vit_glyph", "img_size": 16},
            "benchmark": {"name": "digits", "n_experiences": 5, "train_per_class": 2},
            "strategy": {"name": "naive", "train_epochs": 1},
            "plugins": ["stop"],
            "metrics": [metric],
        }
    )


@pytest.mark.slow
def test_a_run_goes_on_to_the_same_values(stopped, registry, tmp_path):
    config = stopped("confidence")
    again = run(config, registry=registry, resume=True).metrics
    whole = run(settings(tmp_path / "whole", "confidence"), registry=registry).metrics
    assert again["resume_obstacles"] == []
    values = [
        {k: v for k, v in each["further_metrics"].items() if not re.search("Seconds|Memory", k)}
        for each in (again, whole)
    ]
    assert values[0] == values[1]
    assert {"Confidence", "Moved", "Images9"} <= values[0].keys()
    assert again["accuracy_matrix"] == whole["accuracy_matrix"]
    for record in (again, whole):
        assert record["metric_summaries"].keys() == {"Confidence"}
    assert again["metric_summaries"] == whole["metric_summaries"]
    summary = read_record(tmp_path / "whole").metric_summaries["Confidence"]
    assert summary == whole["metric_summaries"]["Confidence"]
    assert summary["3"] is None
    assert len(summary["history"]) == 6
    moved = np.abs(np.diff(summary["history"], axis=0)).sum(1)
    assert moved.tolist() == pytest.approx(whole["further_metrics"]["Moved"])


def test_a_summary_is_in_the_record_after_every_experience(stopped):
    record = read_record(stopped("confidence").output)
    assert record.experiences.finished == 2
    assert len(record.metric_summaries["Confidence"]["history"]) == 3


def test_a_summary_that_is_not_plain_stops_the_run_in_a_line(registry, tmp_path, monkeypatch):
    monkeypatch.setattr(Confidence, "summary", lambda self: {"images": self.images})
    told = r"Confidence\.summary\(\) returns .* Tensor is not JSON serializable; return dicts,"
    with pytest.raises(ConfigError, match=told):
        run(settings(tmp_path / "run", "confidence"), registry=registry)


def test_without_a_summary_the_record_has_none(registry, tmp_path, monkeypatch):
    monkeypatch.delattr(Confidence, "summary")
    config = settings(tmp_path / "run", "confidence")
    assert run(config, registry=registry).metrics["metric_summaries"] == {}


def test_a_metric_that_holds_what_is_not_known_says_so_as_the_run_begins(stopped, registry):
    told = r"cannot be resumed: Holder\.handle is a object, .* remembers = \(\) for nothing"
    with pytest.warns(CheckpointWarning, match=told):
        config = stopped("holder")
    with pytest.raises(
        CheckpointError, match=r"left no checkpoint, for Holder\.handle is a object"
    ):
        run(config, registry=registry, resume=True)


def test_a_metric_that_keeps_nothing_stops_no_run_from_going_on(stopped, registry):
    assert run(stopped("careless"), registry=registry, resume=True).metrics["complete"] is True
