"""Options that every strategy takes."""

import pytest

from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.registry import discover
from avalanche_peftcl.testing import toy_backbone
from avalanche_peftcl.training.closed_form import build_closed_form
from avalanche_peftcl.training.joint import build_joint
from avalanche_peftcl.training.naive import build_naive
from avalanche_peftcl.training.nearest_class_mean import build_nearest_class_mean
from avalanche_peftcl.training.ntk_cl import build_ntk_cl
from avalanche_peftcl.training.options import TrainingOptions
from avalanche_peftcl.training.pegp import build_pegp

BUILD = {
    "naive": build_naive,
    "ntk_cl": build_ntk_cl,
    "pegp": build_pegp,
    "joint": build_joint,
    "nearest_class_mean": build_nearest_class_mean,
    "closed_form": build_closed_form,
}
OTHERWISE = {
    "naive": {},
    "joint": {},
    "ntk_cl": {"loss": "local"},
    "pegp": {
        "loss": "local",
        "lr": 0.0028125,
        "weight_decay": 0.0,
        "train_mb_size": 24,
        "train_epochs": 5,
    },
}


@pytest.mark.parametrize("name", OTHERWISE)
def test_every_strategy_takes_them_with_defaults_of_its_own(name):
    described = discover(only=["avalanche-peftcl"]).schema("strategy", name).describe()
    handed_in = {"device", "plugins", "evaluator"}
    expected = {k: repr(v) for k, v in (vars(TrainingOptions()) | OTHERWISE[name]).items()}
    found = {option: default for option, _, default in described if option in expected}
    assert found == {k: v for k, v in expected.items() if k not in handed_in}


@pytest.mark.parametrize("name", BUILD)
def test_they_reach_the_strategy(name):
    options = {"eval_mb_size": 5, "mixed_precision": "no"}
    if name not in ("nearest_class_mean", "closed_form"):
        options |= {
            "train_mb_size": 3,
            "train_epochs": 7,
            "max_grad_norm": 2.0,
            "accumulation_steps": 4,
        }
    strategy = BUILD[name](backbone=toy_backbone(), **options)
    assert {key: getattr(strategy, key) for key in options} == options
    with pytest.raises(ConfigError, match="plugin_order must be before or after"):
        BUILD[name](backbone=toy_backbone(), plugin_order="last")


@pytest.mark.parametrize("name", OTHERWISE)
def test_rates_reach_the_optimizer(name):
    strategy = BUILD[name](backbone=toy_backbone(), lr=0.5, momentum=0.25, weight_decay=0.125)
    group = strategy.optimizer.param_groups[0]
    momentum = group["betas"][0] if "betas" in group else group["momentum"]
    assert (group["lr"], momentum, group["weight_decay"]) == (0.5, 0.25, 0.125)
