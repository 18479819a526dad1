"""What the built-in strategies say that they cost, against passes and floats that are counted."""

import inspect

import pytest
import torch
from avalanche.training.plugins import EvaluationPlugin

from avalanche_peftcl import Costs
from avalanche_peftcl.registry import discover
from avalanche_peftcl.testing import (
    Counted,
    captioned_backbone,
    captioned_benchmark,
    count_costs,
    differing_costs,
    toy_backbone,
    toy_benchmark,
)
from avalanche_peftcl.testing.costs import _Counter

pytestmark = pytest.mark.filterwarnings("ignore:.*classes at hand, and there is one")
STRATEGIES = ("closed_form", "joint", "naive", "nearest_class_mean", "ntk_cl", "pegp")
SHORT = {"train_epochs": 1, "train_mb_size": 6, "mixed_precision": "no"}


def component(name):
    return discover().get("strategy", name).component


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_strategy_costs_what_it_says(name):
    """With classes of unlike number in each experience, so that they tell what is whose."""
    build = component(name).load()
    known = inspect.signature(build).parameters
    options = {k: v for k, v in SHORT.items() if k in known}
    strategy = build(backbone=toy_backbone(), evaluator=EvaluationPlugin(), **options)
    counted = count_costs(strategy, toy_benchmark(classes_per_experience=(1, 2, 3), per_class=4))
    assert counted.classes[-1] == 6
    assert differing_costs(component(name).costs, counted, D=32, L=3, r=5) == []


def test_contrastive_costs_what_it_says():
    """It has no classes: what it keeps is the module, in each experience the same."""
    torch.manual_seed(0)
    costs, counter = component("contrastive").costs, _Counter()
    strategy = component("contrastive").load()(
        backbone=captioned_backbone(), evaluator=EvaluationPlugin(), plugins=[counter], **SHORT
    )
    strategy.train(captioned_benchmark().train_stream)
    kept = [v for n, v in strategy.model.state_dict().items() if not n.startswith("backbone.")]
    assert sum(v.numel() for v in kept) == costs.stored(T=2, P=counter.trains, classes=0)
    assert costs.test == costs.step == str(strategy.model.forward_passes)


def test_every_strategy_of_the_core_says_what_it_costs(monkeypatch):
    monkeypatch.setenv("AVALANCHE_PEFTCL_PLUGINS", "")
    silent = [e.component.name for e in discover().entries("strategy") if not e.component.costs]
    assert silent == []


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ({}, []),
        ({"step": "2"}, ["step, experience 1: 2 said, 1 counted"]),
        ({"step": "2", "at_most": ("step",)}, []),
        ({"test": "T"}, ["test, experience 2: 2 said, 1 counted"]),
        ({"once": "2*D"}, ["floats, experience 1: 200 said, 100 counted"]),
        ({"once": "2*D", "at_most": ("once",)}, []),
        ({"once": "9*D", "at_most": ("once",)}, ["floats, experience 2: 900 said, 100 counted"]),
        ({"per_class": "D", "once": "0"}, ["floats, experience 2: 300 said, 100 counted"]),
    ],
)
def test_what_is_said_wrongly_is_told(said, told):
    """Of one class, then three; nothing trains in the second experience."""
    counted = Counted([1.0, None], [1.0, 1.0], [100, 100], [1, 3], 0)
    found = differing_costs(Costs(**({"once": "D"} | said)), counted, D=100.0)
    assert found[:1] == told
