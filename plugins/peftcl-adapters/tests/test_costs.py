"""What each method says that it costs, against passes and floats that are counted."""

import inspect
from functools import partial

import peftcl_adapters
import pytest
from avalanche.training.plugins import EvaluationPlugin

from avalanche_peftcl.models import RandomRidgeHead
from avalanche_peftcl.testing import count_costs, differing_costs, toy_backbone, toy_benchmark

pytestmark = pytest.mark.filterwarnings("ignore:.*classes at hand, and there is one")
SHORT = {"train_epochs": 1, "train_mb_size": 6, "align_epochs": 1, "align_samples": 4}
SHORT |= {"mixed_precision": "no"}
WIDTHS = {"ease": 64, "mos": 16, "c_ada": 16}  # r, by default


@pytest.mark.parametrize(
    "component", list(peftcl_adapters.peftcl_strategies()), ids=lambda component: component.name
)
def test_a_method_costs_what_it_says(component):
    """With classes of unlike number in each experience, so that they tell what is whose."""
    build = component.load()
    known = inspect.signature(build).parameters
    options = {name: value for name, value in SHORT.items() if name in known}
    if component.name == "ranpac":
        options["head"] = partial(RandomRidgeHead, n_features=40)
    strategy = build(backbone=toy_backbone(), evaluator=EvaluationPlugin(), **options)
    counted = count_costs(strategy, toy_benchmark(classes_per_experience=(1, 2, 3), per_class=4))
    sizes = {"D": 32, "L": 3, "M": 40, "r": WIDTHS.get(component.name, 0)}
    assert counted.classes == [1, 3, 6]
    assert differing_costs(component.costs, counted, **sizes) == []
