"""What each method says that it costs, against passes and floats that are counted."""

import peftcl_prompts
import pytest
import torch
from avalanche.training.plugins import EvaluationPlugin

from avalanche_peftcl.testing import count_costs, differing_costs, toy_backbone, toy_benchmark

pytestmark = pytest.mark.filterwarnings("ignore:.*classes at hand, and there is one")


METHODS = [c for c in peftcl_prompts.peftcl_strategies() if c.name != "s_li_prompts"]  # on texts


@pytest.mark.parametrize("component", METHODS, ids=lambda component: component.name)
def test_a_method_costs_what_it_says(component):
    """With classes of unlike number in each experience, so that they tell what is whose."""
    torch.manual_seed(0)
    short = {"align_epochs": 1} if component.name == "hide_prompt" else {}
    strategy = component.load()(
        backbone=toy_backbone(depth=5),
        evaluator=EvaluationPlugin(),
        train_epochs=1,
        train_mb_size=12,
        eval_mb_size=24,
        mixed_precision="no",
        **short,
    )
    scenario = "class" if "class" in component.scenarios else "domain"
    benchmark = toy_benchmark(scenario, classes_per_experience=(1, 2, 3), per_class=4)
    counted = count_costs(strategy, benchmark)
    assert differing_costs(component.costs, counted, D=32, L=5) == []
