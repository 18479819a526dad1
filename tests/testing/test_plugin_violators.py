"""Plugins that break their contract, each in one way; the test of that name must notice."""

import os

import pytest
import torch
from avalanche.core import SupervisedPlugin

from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.testing import PluginContract


class Forgetful(SupervisedPlugin):
    """Makes the loss smaller from step to step, and says that nothing of it is to be kept."""

    remembers = ()

    def __init__(self):
        super().__init__()
        self.steps = 0

    def before_backward(self, strategy, **kwargs):
        self.steps += 1
        strategy.loss = strategy.loss / (1 + 0.1 * self.steps)

    def summary(self):
        return {"steps": self.steps}

    def headline(self):
        return f"{self.steps} steps"

    @property
    def stored_floats(self):
        return 1


class Shrinking(Forgetful):
    remembers = ("steps",)


class Honest(PluginContract):
    kind = Shrinking

    def create_plugin(self):
        return self.kind()


def plugin_with(**members):
    """Return an honest contract whose plugin has other members."""
    return type("Violator", (Honest,), {"kind": type("Violating", (Shrinking,), members)})


def one_task_only(self, strategy, **kwargs):
    if max(strategy.experience.task_labels):
        raise ConfigError("one task only")


def lose_a_weight(self, strategy, **kwargs):
    with torch.no_grad():
        strategy.model.head.bias[0] = float("nan")


def tune_a_norm(self, strategy, **kwargs):
    with torch.no_grad():
        strategy.model.backbone.vit.norm.bias += 1e-6


def leave_in_train_mode(self, strategy, **kwargs):
    strategy.model.backbone.vit.norm.training = True


def ask_for_a_gradient(self, strategy, **kwargs):
    strategy.model.backbone.vit.norm.weight.requires_grad_(True)


def ask_for_none(self, strategy, **kwargs):
    strategy.model.backbone.vit.norm.weight.requires_grad_(False)


def learn_at_test(self, strategy, **kwargs):
    with torch.no_grad():
        strategy.model.head.bias += 1e-3


def smooth(self, strategy, **kwargs):
    strategy.mb_output = strategy.mb_output - 0.1 * strategy.mb_output.mean(0)


def draw(self, strategy, **kwargs):
    torch.rand(())


def jolt(self, strategy, **kwargs):
    with torch.no_grad():
        strategy.model.head.bias += int.from_bytes(os.urandom(4)) / 2**32


VIOLATORS = [
    ("test_trains_and_evaluates", plugin_with(before_training_exp=one_task_only)),
    ("test_trains_and_evaluates", plugin_with(after_training_exp=lose_a_weight)),
    ("test_frozen_network_is_left_alone", plugin_with(after_training_exp=tune_a_norm)),
    ("test_frozen_network_is_left_alone", plugin_with(before_forward=leave_in_train_mode)),
    (
        "test_frozen_network_is_left_alone",
        plugin_with(before_forward=ask_for_a_gradient, after_update=ask_for_none),
    ),
    ("test_no_effect_in_evaluation", plugin_with(after_eval_exp=learn_at_test)),
    ("test_no_effect_in_evaluation", plugin_with(after_eval_forward=smooth)),
    ("test_no_effect_in_evaluation", plugin_with(before_eval=draw)),
    ("test_same_seed_same_numbers", plugin_with(after_training_exp=jolt)),
    ("test_goes_on_from_its_state", type("Violator", (Honest,), {"kind": Forgetful})),
    ("test_what_it_tells_is_plain", plugin_with(summary=lambda self: {"mean": torch.zeros(1)})),
    ("test_what_it_tells_is_plain", plugin_with(headline=lambda self: "two\nlines")),
    ("test_what_it_tells_is_plain", plugin_with(stored_floats=2.5)),
]


@pytest.mark.parametrize(("name", "violator"), VIOLATORS)
def test_noticed(notices, name, violator):
    assert notices(
        name, Honest, violator, (AssertionError, ConfigError, ArithmeticError, TypeError)
    )


def test_every_contract_test_has_a_violator(contract_tests):
    assert {name for name, _ in VIOLATORS} == contract_tests(PluginContract)
