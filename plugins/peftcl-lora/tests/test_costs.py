"""What the docstrings say of costs, against what is stored and counted."""

from functools import partial

import peftcl_lora
import pytest
from avalanche.training.plugins import EvaluationPlugin
from peftcl_lora.inflora import build_inflora
from peftcl_lora.lae import build_lae
from peftcl_lora.o_lora import build_o_lora
from peftcl_lora.sd_lora import build_sd_lora

from avalanche_peftcl.testing import count_costs, differing_costs, toy_backbone, toy_benchmark

P, L, R, D = 2, 3, 2, 32  # parts, blocks, rank, width
PAIR = P * L * R * (D + D)
METHODS = {
    "o_lora": (partial(build_o_lora, r=R), PAIR, 0),
    "inflora": (partial(build_inflora, r=R, threshold=0.9999), PAIR, 2),
    "sd_lora": (partial(build_sd_lora, r=R), PAIR + 1, 0),
    "sd_lora, continuous": (partial(build_sd_lora, r=R, continuous=True), PAIR + P * L, 0),
    "lae": (build_lae, 0, 0),
}


def floats(strategy):
    """Return how many floats the network holds beside the backbone and the head."""
    state = strategy.model.state_dict()
    kept = [v for name, v in state.items() if not name.startswith(("backbone.", "head."))]
    return sum(v.numel() for v in kept if v.is_floating_point())


def count_images(branch, seen):
    """Let ``seen`` have a number for each minibatch that passes the branch's middle block."""
    part = branch.layers["1"] if hasattr(branch, "layers") else branch.adapters["1"]
    part.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))


@pytest.mark.parametrize("method", METHODS)
def test_costs_are_what_is_said(method):
    build, an_experience, read = METHODS[method]
    strategy = build(
        backbone=toy_backbone(),
        train_epochs=2,
        train_mb_size=6,
        mixed_precision="no",
        evaluator=EvaluationPlugin(),
    )
    model, held, seen = strategy.model, [], []
    for branch in model.branches:
        count_images(branch, seen)
    for experience in toy_benchmark().train_stream:
        seen.clear()
        strategy.train(experience, eval_streams=[])
        held.append(floats(strategy))
        assert sum(seen) == (2 + read) * 12  # epochs and reading, of 12 images
    assert held[1] - held[0] == held[2] - held[1] == an_experience
    stored = [p.stored_floats for p in strategy.plugins if hasattr(p, "stored_floats")]
    assert stored == [] if method != "inflora" else 0 < stored[0] <= L * D * D / 2
    seen.clear()
    strategy.eval(toy_benchmark().test_stream[:1])
    assert sum(seen) == model.forward_passes * 6  # of 6 images
    assert model.forward_passes == (2 if method == "lae" else 1)


@pytest.mark.filterwarnings("ignore:.*classes at hand, and there is one")
@pytest.mark.parametrize(
    "component", list(peftcl_lora.peftcl_strategies()), ids=lambda component: component.name
)
def test_a_method_costs_what_it_says(component):
    """With classes of unlike number in each experience, so that they tell what is whose."""
    options = {"train_epochs": 1, "train_mb_size": 6, "mixed_precision": "no"}
    strategy = component.load()(backbone=toy_backbone(), evaluator=EvaluationPlugin(), **options)
    counted = count_costs(strategy, toy_benchmark(classes_per_experience=(1, 2, 3), per_class=4))
    assert differing_costs(component.costs, counted, D=D, L=L) == []
