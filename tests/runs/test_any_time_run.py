"""Accuracy at any time in a run: in its record, and the same where the run was stopped."""

from pathlib import Path

import pytest
from avalanche.core import SupervisedPlugin

from avalanche_peftcl import Component
from avalanche_peftcl.config import RunConfig
from avalanche_peftcl.registry import Registry, discover
from avalanche_peftcl.registry.packages import Entry, Provider
from avalanche_peftcl.runs.run import run

NAMES = ("Any_Time_Accuracy", "Average_Minimum_Accuracy", "Worst_Case_Accuracy")


class Stopped(BaseException):
    """What stops a run here; nobody catches it."""


class Stops(SupervisedPlugin, supports_distributed=False):
    """Stops a run at a minibatch."""

    at: int | None = None

    def before_training_iteration(self, strategy, **kwargs):
        if strategy.clock.train_iterations == self.at:
            raise Stopped


@pytest.fixture(scope="module")
def registry():
    stops = Component("stops", Stops, source="test")
    entry = Entry("strategy_plugin", stops, Provider("test-package", "1.2"))
    return Registry([*discover().entries(), entry])


@pytest.fixture(scope="module")
def whole(registry, tmp_path_factory):
    """The record of a run that nothing stopped."""
    return run(settings(tmp_path_factory.mktemp("whole")), registry=registry).record


def settings(output: Path, **changed) -> RunConfig:
    given = {
        "output": output,
        "num_threads": 1,
        "backbone": {"name": "vit_glyph", "img_size": 16},
        "benchmark": {"name": "digits", "classes_per_experience": [4, 3, 3], "train_per_class": 4},
        "strategy": {"name": "naive", "train_epochs": 2, "train_mb_size": 4},
        "plugins": ["stops"],
        "metrics": [{"name": "any_time", "every": 3, "images_per_experience": 10}],
        "evaluate": "seen",
    }
    return RunConfig.model_validate(given | changed)


def test_the_record_has_its_numbers_and_nothing_else_differs(whole, registry, tmp_path):
    plain = run(settings(tmp_path / "b", metrics=[]), registry=registry).record
    assert whole.accuracy_matrix == plain.accuracy_matrix
    assert whole.accuracy == plain.accuracy
    found = whole.further_metrics
    assert found.keys() == {f"{name}/eval_phase/test_stream" for name in NAMES}
    area, minimum, worst = (found[f"{name}/eval_phase/test_stream"] for name in NAMES)
    assert minimum[0] is None
    assert all(0 <= value <= 1 for value in [*area, *minimum[1:], *worst])

    curve = dict(whole.metric_summaries["AnyTimeMetric"])
    assert curve["iterations"] == [3, 6, 8, 9, 12, 14, 15, 18, 20]
    assert [curve[k] for k in ("area", "average_minimum", "worst_case")] == [
        values[-1] for values in (area, minimum, worst)
    ]


@pytest.mark.parametrize(
    "at", [14, *(pytest.param(n, marks=pytest.mark.slow) for n in (3, 8, 9, 17))]
)
def test_a_run_that_is_gone_on_with_has_the_same_curve(at, whole, registry, tmp_path):
    """Its experiences have 8, 6 and 6 minibatches."""
    config = settings(tmp_path / "a", checkpoint_every=2)
    Stops.at = at
    try:
        with pytest.raises(Stopped):
            run(config, registry=registry)
    finally:
        Stops.at = None
    again = run(config, registry=registry, resume=True).record
    for part in ("metric_summaries", "further_metrics", "accuracy_matrix", "accuracy"):
        assert getattr(again, part) == getattr(whole, part), part


def test_a_run_that_trains_nothing_has_a_curve_too(registry, tmp_path):
    changed = {"strategy": "closed_form", "head": "ridge", "plugins": []}
    online = {"name": "digits", "n_experiences": 2, "train_per_class": 4, "scenario": "online"}
    record = run(settings(tmp_path / "a", **changed, benchmark=online), registry=registry).record
    curve = dict(record.metric_summaries["AnyTimeMetric"])
    assert curve["iterations"] == [2, 3, 4]  # two chunks of ten images each
