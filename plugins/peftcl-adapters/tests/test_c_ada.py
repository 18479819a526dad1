"""C-ADA: its parts are one wider adapter, the old ones frozen, the new one kept orthogonal."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from avalanche.core import SupervisedPlugin
from avalanche.training.plugins import EvaluationPlugin
from peftcl_adapters.c_ada import build_c_ada, build_growing_adapters

from avalanche_peftcl.models import Adapter, forward_branches
from avalanche_peftcl.testing import BranchContract, toy_backbone, toy_benchmark

TRAINING = {"r": 4, "train_epochs": 2, "train_mb_size": 6, "lr": 0.1, "mixed_precision": "no"}
TRAINING |= {"evaluator": EvaluationPlugin()}


@pytest.mark.slow
class TestBranch(BranchContract):
    def create_branch(self, backbone):
        return build_growing_adapters(backbone=backbone, r=2)


@pytest.fixture(scope="module")
def trained():
    """C-ADA after three experiences, its branch as it was after each, the terms of its loss."""
    torch.manual_seed(0)
    states, terms = [], []

    class Note(SupervisedPlugin):
        remembers = ()

        def before_forward(self, strategy, **kwargs):
            self.now = weights(strategy.model.branch)

        def after_backward(self, strategy, **kwargs):
            term = strategy.mb_losses.get("orthogonality")
            terms.append((self.now, None if term is None else float(term.detach())))

    strategy = build_c_ada(
        backbone=toy_backbone(), plugins=[Note()], orthogonality_weight=0.5, **TRAINING
    )
    for experience in toy_benchmark().train_stream:
        strategy.train(experience)
        states.append({k: v.clone() for k, v in strategy.model.branch.state_dict().items()})
    return strategy, states, terms


def weights(branch):
    """Return down ``(r, D)`` and up ``(r, D)`` of each block in each part."""
    return [
        [(a.down.weight.detach().clone(), a.up.weight.detach().T.clone()) for a in part.adapters]
        for part in branch.sets
    ]


def test_its_parts_are_the_columns_of_one_adapter(trained):
    strategy, *_ = trained
    model = strategy.model.eval()
    branch, backbone = model.branch, model.backbone
    images = torch.rand(3, 3, 16, 16)
    wide = []
    for index in range(backbone.depth):
        parts = [part.adapters[index] for part in branch.sets]
        adapter = Adapter(backbone.embed_dim, r=12, scale=0.1).eval()
        adapter.down.weight.data = torch.cat([p.down.weight for p in parts])
        adapter.down.bias.data = torch.cat([p.down.bias for p in parts])
        adapter.up.weight.data = torch.cat([p.up.weight for p in parts], dim=1)
        adapter.up.bias.data = sum(p.up.bias for p in parts)
        wide.append(adapter)
    with torch.no_grad():
        tokens = backbone.embed(images)
        for index in range(backbone.depth):
            hidden = backbone.attend(index, tokens)
            shift = branch.shifts[index]
            frozen = hidden + backbone.feed(index, hidden)
            tokens = shift.scale * frozen + shift.shift + wide[index](hidden)
        (found,) = forward_branches(backbone, [branch], images)
        torch.testing.assert_close(found, backbone.pool(tokens), rtol=1e-4, atol=1e-5)


def test_old_columns_and_the_shift_stay(trained):
    strategy, states, _ = trained
    for number, (earlier, later) in enumerate(pairwise(states), start=1):
        assert all(torch.equal(later[name], value) for name, value in earlier.items())
        new = [name for name in later if name.startswith(f"sets.{number}.") and "up" in name]
        assert new
        assert all(bool(later[name].any()) for name in new)
    assert not torch.equal(states[0]["shifts.0.scale"], torch.ones(32))
    training = {n for n, p in strategy.model.branch.named_parameters() if p.requires_grad}
    assert training == {name for name in states[2] if "sets.2.adapters" in name}
    assert strategy.model.forward_passes == 1


def test_the_term_is_the_squared_inner_product_with_old_columns(trained):
    *_, terms = trained
    assert terms[0][1] is None
    for parts, found in terms:
        if len(parts) == 1:
            continue
        *old, new = parts
        expected = [
            np.square(new[i][k].numpy() @ np.concatenate([o[i][k].numpy() for o in old]).T).mean()
            for i in range(len(new))
            for k in (0, 1)
        ]
        np.testing.assert_allclose(found, 0.5 * np.mean(expected), rtol=1e-4)


@pytest.mark.parametrize(("scenario", "parts"), [("domain", 3), ("online", 3)])
def test_a_part_begins_with_each_experience_and_with_no_chunk(scenario, parts):
    strategy = build_c_ada(backbone=toy_backbone(), **(TRAINING | {"train_epochs": 1}))
    stream = list(toy_benchmark(scenario).train_stream)
    for experience in [*stream, stream[-1]]:  # the last one again is no new one
        strategy.train(experience)
    branch = strategy.model.branch
    assert len(branch.sets) == parts
    training = {n.split(".")[1] for n, p in branch.named_parameters() if p.requires_grad}
    assert training == {str(parts - 1)}
