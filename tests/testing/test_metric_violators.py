"""Metrics that break their contract, each in one way; the test of that name must notice."""

import pytest
import torch
from avalanche.evaluation import PluginMetric
from avalanche.evaluation.metric_results import MetricValue

from avalanche_peftcl.testing import MetricContract


class Forgetful(PluginMetric[int]):
    """Counts the images that were trained on, and says that nothing is to be kept."""

    remembers = ()

    def __init__(self):
        super().__init__()
        self.seen = 0

    def reset(self):
        self.seen = 0

    def result(self):
        return self.seen

    def after_training_iteration(self, strategy):
        self.seen += len(strategy.mb_y)

    def after_training_exp(self, strategy):
        return MetricValue(self, "Images", self.value(), strategy.clock.train_iterations)

    def value(self):
        return self.seen

    def summary(self):
        return {"seen": self.seen}


class Images(Forgetful):
    remembers = ("seen",)


class Honest(MetricContract):
    kind = Images

    def create_metric(self):
        return self.kind()


def metric_with(**members):
    """Return an honest contract whose metric has other members."""
    return type("Violator", (Honest,), {"kind": type("Violating", (Images,), members)})


def draw(self, strategy):
    torch.rand(())


def zero_the_head(self, strategy):
    with torch.no_grad():
        strategy.model.head.weight[0] = 0.0


VIOLATORS = [
    ("test_does_not_change_the_run", metric_with(before_training_exp=draw)),
    ("test_does_not_change_the_run", metric_with(after_eval=zero_the_head)),
    ("test_values_are_numbers", metric_with(value=lambda self: f"{self.seen} images")),
    ("test_values_are_numbers", metric_with(after_training_exp=lambda self, strategy: None)),
    ("test_what_it_tells_is_plain", metric_with(summary=lambda self: {"seen": torch.ones(2)})),
    ("test_what_it_tells_is_plain", metric_with(summary=lambda self: [self.seen])),
    (
        "test_what_it_tells_is_plain",
        metric_with(summary=lambda self: {"a": {self.seen} if self.seen else 0}),
    ),
    ("test_goes_on_from_its_state", type("Violator", (Honest,), {"kind": Forgetful})),
    ("test_reset_forgets", metric_with(reset=lambda self: None)),
]


@pytest.mark.parametrize(("name", "violator"), VIOLATORS)
def test_noticed(notices, name, violator):
    assert notices(name, Honest, violator)


def test_every_contract_test_has_a_violator(contract_tests):
    assert {name for name, _ in VIOLATORS} == contract_tests(MetricContract)
