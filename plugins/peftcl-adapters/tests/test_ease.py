"""EASE: its subspaces and the means that no image gave, against NumPy."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from avalanche.training.plugins import EvaluationPlugin
from peftcl_adapters.ease import build_ease
from peftcl_adapters.subspaces import SubspacePrototypeHead, complete_prototypes

from avalanche_peftcl.errors import NotFiniteError
from avalanche_peftcl.models import forward_branches
from avalanche_peftcl.testing import toy_backbone, toy_benchmark

SETTINGS = {"mixed_precision": "no", "evaluator": EvaluationPlugin()}
TRAINING = {"r": 8, "train_epochs": 2, "train_mb_size": 6, "lr": 0.1} | SETTINGS


def everything(stream):
    """Return all images of a stream, their classes, and the number of their experience."""
    parts = [(x, y, t) for t, each in enumerate(stream) for x, y, *_ in each.dataset.eval()]
    images, classes, experiences = zip(*parts, strict=True)
    return torch.stack(images), np.array(classes), np.array(experiences)


def cosines(a, b):
    a = a / np.linalg.norm(a, axis=-1, keepdims=True)
    return a @ (b / np.linalg.norm(b, axis=-1, keepdims=True)).T


@pytest.fixture(scope="module")
def trained():
    """EASE after three experiences, and the sets of adapters as they were after each."""
    torch.manual_seed(0)
    benchmark, states = toy_benchmark(), []
    strategy = build_ease(backbone=toy_backbone(), alpha=0.3, **TRAINING)
    for experience in benchmark.train_stream:
        strategy.train(experience)
        states.append({k: v.clone() for k, v in strategy.model.sets.state_dict().items()})
    return strategy, benchmark, states


def test_each_experience_has_its_own_subspace(trained):
    strategy, _, states = trained
    model = strategy.model.eval()
    assert [len({name.split(".")[0] for name in each}) for each in states] == [1, 2, 3]
    for earlier, later in pairwise(states):
        assert all(torch.equal(later[name], value) for name, value in earlier.items())
    ups = [each.adapters[0].up.weight for each in model.sets]
    assert all(bool(up.any()) for up in ups)
    assert not torch.equal(ups[0], ups[1])
    assert [any(p.requires_grad for p in each.parameters()) for each in model.sets] == [0, 0, 1]
    assert model.forward_passes == 3
    assert model.train().forward_passes == 1
    assert model.eval().moving == [slice(64, 96)]


def test_it_predicts_by_the_reweighted_cosines_of_all_subspaces(trained):
    """Written out with loops over classes and subspaces, from images alone."""
    strategy, benchmark, _ = trained
    model = strategy.model.eval()
    images, classes, experiences = everything(benchmark.train_stream)
    test, *_ = everything(benchmark.test_stream)

    def subspaces(x):
        with torch.no_grad():
            each = [forward_branches(model.backbone, [s], x)[0] for s in model.sets]
        return np.stack([z.double().numpy() for z in each])  # (S, B, D)

    z, of_test = subspaces(images), subspaces(test)
    own = [int(experiences[classes == c][0]) for c in range(6)]
    p = np.zeros((6, 3, z.shape[2]))
    for c in range(6):
        for s in range(own[c] + 1):  # images of a class were seen up to its own subspace
            p[c, s] = z[s, classes == c].mean(0)
    for c in range(6):
        for s in range(own[c] + 1, 3):
            others = [j for j in range(6) if own[j] >= s]
            likeness = np.exp([cosines(p[c, own[c]], p[j, own[c]]) for j in others])
            likeness /= likeness.sum()
            p[c, s] = sum(w * p[j, s] for w, j in zip(likeness, others, strict=True))
    expected = np.zeros((len(test), 6))
    for c in range(6):
        for s in range(3):
            weight = 1.0 if s == own[c] else 0.3 / 2
            expected[:, c] += weight * cosines(of_test[s], p[c, s])
    with torch.no_grad():
        found = model(test).numpy()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_in_training_the_newest_set_runs_alone():
    benchmark, widths = toy_benchmark(), []
    strategy = build_ease(backbone=toy_backbone(), **TRAINING)
    handle = strategy.model.temporary.register_forward_hook(
        lambda head, given, out: widths.append(tuple(given[0].shape))
    )
    for experience in benchmark.train_stream[:2]:
        strategy.train(experience)
    handle.remove()
    assert {width for _, width in widths} == {32}
    assert bool(strategy.model.temporary.weight[:2].any())


@pytest.mark.parametrize("chunk", [4, 5])
def test_chunks_of_an_online_stream_share_a_set(chunk):
    benchmark = toy_benchmark("online", experience_size=chunk)
    strategy = build_ease(backbone=toy_backbone(), **(TRAINING | {"train_epochs": 1}))
    strategy.train(benchmark.train_stream)
    assert len(strategy.model.sets) == 3
    assert strategy.model.head.own.tolist() == [0, 0, 1, 1, 2, 2]


def test_a_class_met_again_has_a_mean_of_its_own_subspace():
    head = SubspacePrototypeHead(1)
    head.grow(1)
    head.observe(torch.tensor([[1.0], [3.0]]), torch.tensor([0, 0]))
    head.settle()
    head.widen(2)
    head.grow(2)
    head.meet([0, 1])
    head.observe(torch.tensor([[5.0, 1.0], [2.0, 4.0]]), torch.tensor([0, 1]))
    head.settle()
    assert head.row_of.tolist() == [0, 1, 0]
    assert head.own.tolist() == [0, 1, 1]
    assert head.prototypes[:, 0, 0].tolist() == [2.0, 2.0, 5.0]
    assert head.prototypes[:, 1, 0].tolist() == [pytest.approx((4.0 + 1.0) / 2), 4.0, 1.0]
    head.sums[0] = torch.nan
    with pytest.raises(NotFiniteError, match="class means of the subspaces"):
        head.settle()


def test_domains_have_subspaces_and_the_mean_that_fits_best_counts():
    """Written out with loops over classes, experiences and subspaces."""
    torch.manual_seed(0)
    benchmark = toy_benchmark("domain")
    strategy = build_ease(backbone=toy_backbone(), alpha=0.3, **TRAINING)
    strategy.train(benchmark.train_stream)
    model = strategy.model.eval()
    assert len(model.sets) == 3
    assert [any(p.requires_grad for p in each.parameters()) for each in model.sets] == [0, 0, 1]
    images, classes, experiences = everything(benchmark.train_stream)
    test, *_ = everything(benchmark.test_stream)
    with torch.no_grad():
        z, of_test = (
            np.stack(
                [forward_branches(model.backbone, [s], x)[0].double().numpy() for s in model.sets]
            )
            for x in (images, test)
        )
        found = model(test).numpy()
    whose = [(c, t) for c in range(6) for t in range(3)]
    p = {
        (c, t, s): z[s, (classes == c) & (experiences == t)].mean(0)
        for c, t in whose
        for s in range(t + 1)
    }
    for c, t in whose:
        for s in range(t + 1, 3):
            others = [(j, u) for j, u in whose if u >= s]
            likeness = np.exp([cosines(p[c, t, t], p[j, u, t]) for j, u in others])
            p[c, t, s] = sum(
                w * p[j, u, s] for w, (j, u) in zip(likeness / likeness.sum(), others, strict=True)
            )
    expected = np.zeros((len(test), 6, 3))
    for c, t in whose:
        for s in range(3):
            weight = 1.0 if s == t else 0.3 / 2
            expected[:, c, t] += weight * cosines(of_test[s], p[c, t, s])
    np.testing.assert_allclose(found, expected.max(axis=2), rtol=0, atol=1e-5)
    strategy.train(benchmark.train_stream[2])  # the last one again is no new one
    assert len(model.sets) == 3


def test_classes_without_an_image_are_told_of_nothing():
    means = torch.randn(3, 2, 4)
    known = torch.tensor([[True, False], [True, True], [False, False]])
    whole = complete_prototypes(means * known[..., None], known, torch.tensor([0, 1, 1]))
    torch.testing.assert_close(whole[0, 1], means[1, 1])  # the one class that is there
    assert not whole[2].any()
