"""O-LoRA: its two terms against NumPy, and that old pairs stay as they were."""

import numpy as np
import pytest
import torch
from avalanche.core import SupervisedPlugin
from avalanche.training.plugins import EvaluationPlugin
from peftcl_lora.o_lora import build_o_lora

from avalanche_peftcl.testing import toy_backbone, toy_benchmark

SETTINGS = {"mixed_precision": "no", "evaluator": EvaluationPlugin()}


class Terms(SupervisedPlugin):
    """Notes the named terms of each loss and the network's state when they were computed."""

    def __init__(self):
        super().__init__()
        self.noted = []

    def after_backward(self, strategy, **kwargs):
        terms = {name: term.item() for name, term in strategy.mb_losses.items()}
        state = {k: v.clone() for k, v in strategy.model.branch.state_dict().items()}
        self.noted.append((terms, state))


@pytest.fixture(scope="module")
def trained():
    """What was noted in three experiences of one epoch, and how many steps each has."""
    torch.manual_seed(0)
    terms, benchmark = Terms(), toy_benchmark()
    strategy = build_o_lora(
        backbone=toy_backbone(),
        r=2,
        orthogonality=0.5,
        norm=0.25,
        lr=0.01,
        train_epochs=1,
        train_mb_size=6,
        plugins=[terms],
        **SETTINGS,
    )
    for experience in benchmark.train_stream:
        strategy.train(experience)
    return strategy, terms.noted


def test_the_loss_has_the_published_terms(trained):
    _, noted = trained
    assert [set(terms) for terms, _ in noted] == [{"norm"}] * 2 + [{"orthogonality", "norm"}] * 4
    for terms, state in noted:
        overlap = norm = 0.0
        for index in range(3):
            down, up = (state[f"layers.{index}.{name}"].numpy() for name in ("down", "up"))
            for part in range(2):
                norm += np.linalg.norm(down[part]) + np.linalg.norm(up[part])
                old = state[f"layers.{index}.past_down"][:, part].flatten(0, 1).numpy()
                overlap += np.abs(old @ down[part].T).sum()
        assert terms["norm"] == pytest.approx(0.25 * norm, rel=1e-5)
        if "orthogonality" in terms:
            assert terms["orthogonality"] == pytest.approx(0.5 * overlap, rel=1e-5)


def test_old_pairs_stay_as_they_were(trained):
    strategy, noted = trained
    layer = strategy.model.branch.paired()[1]
    assert layer.past_down.shape == (2, 2, 2, 32)
    _, last_of_first = noted[1]
    _, first_of_second = noted[2]
    assert torch.equal(
        first_of_second["layers.1.past_up"], strategy.model.branch.layers["1"].past_up[:1]
    )
    assert not torch.equal(first_of_second["layers.1.past_up"][0], last_of_first["layers.1.up"])
    assert bool((layer.past_up != 0).all())
    assert {n for n, p in strategy.model.branch.named_parameters() if p.requires_grad} == {
        f"layers.{i}.{name}" for i in range(3) for name in ("down", "up")
    }


def test_orthogonality_makes_new_pairs_orthogonal():
    def left(weight):
        torch.manual_seed(0)
        strategy = build_o_lora(
            backbone=toy_backbone(),
            r=2,
            orthogonality=weight,
            lr=0.05,
            blocks=[2],
            train_epochs=8,
            train_mb_size=12,
            **SETTINGS,
        )
        for experience in toy_benchmark(classes_per_experience=(2, 2)).train_stream:
            strategy.train(experience)
        (layer, *_) = strategy.model.branch.paired()
        return (layer.past_down[0] @ layer.down.mT).abs().sum().item()

    assert left(5.0) < 0.2 * left(0.0)
