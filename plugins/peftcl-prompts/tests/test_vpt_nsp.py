"""VPT-NSP: moments by hand, projectors by NumPy, affinities of old images."""

import numpy as np
import pytest
import torch
from avalanche.training.plugins import EvaluationPlugin
from peftcl_prompts.null_space import first_small, null_space_projector
from peftcl_prompts.vpt_nsp import (
    NullSpacePlugin,
    TemperedCrossEntropy,
    build_deep_prompts,
    build_vpt_nsp,
)

from avalanche_peftcl.models import forward_branches
from avalanche_peftcl.testing import learnable_benchmark, seeing_backbone


def test_the_null_space_begins_behind_the_sharpest_bend():
    values = np.concatenate([np.linspace(10, 9, 12), np.linspace(0.2, 0.1, 20)])
    assert first_small(values) == 13  # the bend is at value 12, the first low one
    many = np.concatenate([np.linspace(10, 9, 120), np.linspace(0.2, 0.1, 200)])
    assert abs(first_small(many) - 120) < 25  # smoothed by ten values
    assert first_small(np.array([1.0, 0.0])) == 1
    assert first_small(np.array([1.0])) == 0


def test_a_projector_keeps_old_rows_as_they_are():
    rng = np.random.default_rng(0)
    inside = np.linalg.qr(rng.normal(size=(10, 6)))[0]
    old = np.linalg.qr(rng.normal(size=(50, 6)))[0] @ inside.T  # of rank 6, all values alike
    found = null_space_projector(torch.from_numpy(old.T @ old), strength=1.0).double().numpy()
    np.testing.assert_allclose(old @ found, 0, atol=1e-6)
    whole = found * 3**0.5  # of the four free directions all but the one at the bend
    np.testing.assert_allclose(whole @ whole, whole, atol=1e-6)
    assert np.trace(whole) == pytest.approx(3, abs=1e-5)


def test_a_projector_is_that_of_numpy():
    rng = np.random.default_rng(0)
    gram = rng.normal(size=(40, 10))
    gram = gram.T @ gram
    u, values, _ = np.linalg.svd(gram)
    small = u[:, first_small(values) :]
    inside = small @ small.T / np.linalg.norm(small @ small.T)
    for strength in (1.0, 0.5, 0.0):
        found = null_space_projector(torch.from_numpy(gram), strength=strength).numpy()
        np.testing.assert_allclose(
            found, strength * inside + (1 - strength) * np.eye(10), atol=1e-6
        )


def prefixes_of(backbone, branch):
    """Return keys and values that each block makes of its prompts."""
    found = {}
    for index, prompts in zip(branch.blocks, branch.prompts, strict=True):
        block = backbone.blocks[index]
        _, keys, values = block.attn.qkv(block.norm1(prompts)).chunk(3, dim=1)
        found[index] = keys, values
    return found


@torch.no_grad()
def test_a_pass_is_that_by_hand(feature_by_hand):
    torch.manual_seed(0)
    backbone, images = seeing_backbone(), torch.rand(3, 3, 16, 16)
    branch = build_deep_prompts(backbone=backbone, length=3, blocks=[0, 2]).eval()
    (found,) = forward_branches(backbone, [branch], images)
    prefixes = prefixes_of(backbone, branch)
    hand = torch.stack([feature_by_hand(backbone, image, prefixes) for image in images])
    torch.testing.assert_close(found, hand, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def of_first_block(backbone, prompts, images):
    """Return ``q W_k`` of all heads and the weights on prompts, by hand; the input is fixed.

    The queries are ``(B, H, N, D)``, the weights ``(B, H, N, P)``.
    """
    block = backbone.blocks[0]
    attention, x = block.attn, block.norm1(backbone.embed(images))
    width = 32 // attention.num_heads
    w_q, w_k, _ = attention.qkv.weight.chunk(3)
    b_q, b_k, _ = attention.qkv.bias.chunk(3)
    mapped, weights = [], []
    every = torch.cat([block.norm1(prompts).expand(len(x), -1, -1), x], dim=1)
    for h in range(attention.num_heads):
        own = slice(h * width, (h + 1) * width)
        q = x @ w_q[own].T + b_q[own]
        k = every @ w_k[own].T + b_k[own]
        mapped.append(q @ w_k[own])
        softmax = (q @ k.transpose(1, 2) / width**0.5).softmax(dim=2)
        weights.append(softmax[..., : len(prompts)])
    return torch.stack(mapped, dim=1).double(), torch.stack(weights, dim=1).double()


def train(*, strength, epochs=3):
    torch.manual_seed(0)
    backbone = seeing_backbone()
    strategy = build_vpt_nsp(
        backbone=backbone,
        evaluator=EvaluationPlugin(),
        strength=strength,
        temperature=1.0,
        train_epochs=epochs,
        train_mb_size=8,
        lr=0.1,
        weight_decay=0.0,
        mixed_precision="no",
    )
    (plugin,) = (p for p in strategy.plugins if isinstance(p, NullSpacePlugin))
    prompts, images, held = [], [], []
    for experience in learnable_benchmark(per_class=4).train_stream:
        strategy.train(experience)
        prompts.append(strategy.network.branch.prompts.detach().clone())
        images.append(torch.stack([x for x, *_ in experience.dataset.eval()]))
        held.append((list(plugin.affinity), list(plugin.attention)))
    return backbone, prompts, images, held, plugin


@pytest.fixture(scope="module")
def protected():
    return train(strength=1.0)


def test_moments_are_means_over_images_heads_and_queries(protected):
    backbone, prompts, images, held, plugin = protected
    sums = [0.0, 0.0]
    for number in range(2):
        mapped, weights = of_first_block(backbone, prompts[number][0], images[number])
        rows = mapped.flatten(0, 2)
        sums[0] += rows.T @ rows / len(rows)
        columns = weights.flatten(0, 1)  # (B * H, N, P)
        sums[1] += (columns.mT @ columns).mean(dim=0)
        for found, expected in zip(held[number], sums, strict=True):
            torch.testing.assert_close(found[0], expected, atol=1e-6, rtol=1e-4)
    assert plugin.stored_floats == 3 * (32 * 32 + 4 * 4 + 4 * 32)


def test_affinities_of_old_images_stay(protected):
    backbone, prompts, images, *_ = protected
    moved = {}
    for name, (after_one, after_two) in {
        "protected": prompts,
        "free": train(strength=0.0)[1],
    }.items():
        mapped, weights = of_first_block(backbone, after_one[0], images[0])
        step = (after_two - after_one)[0].double()
        affinity = (mapped @ step.T).norm() / (mapped.norm() * step.norm())
        output = (weights @ step).norm() / (weights.norm() * step.norm())
        moved[name] = float(affinity), float(output)
        assert step.norm() > 1e-3
    assert moved["protected"][0] < 0.05 * moved["free"][0]
    assert moved["protected"][1] < 0.2 * moved["free"][1]


def test_all_that_was_stepped_lies_in_the_null_spaces(protected):
    _, prompts, _, held, _ = protected
    for block in range(3):
        step = (prompts[1] - prompts[0])[block].double().numpy()
        for moments, rows in ((held[0][0], step), (held[0][1], step.T)):
            u, values, _ = np.linalg.svd(moments[block].numpy())
            large = u[:, : first_small(values)]
            assert np.linalg.norm(rows @ large) < 1e-5 * np.linalg.norm(rows)


def test_mean_and_deviation_are_kept_from_the_second_experience(protected):
    *_, plugin = protected
    strategy = type("S", (), {"loss": torch.zeros(())})()
    branch = plugin.branch
    with torch.no_grad():
        branch.prompts.mul_(1.5).add_(0.25)
    plugin.before_backward(strategy)
    new, old = branch.prompts.detach().numpy(), plugin.last_prompts.numpy()
    apart = [np.abs(f(new, axis=2) - f(old, axis=2)).mean(axis=1).sum() for f in (np.mean,)]
    apart += [np.abs(new.std(axis=2, ddof=1) - old.std(axis=2, ddof=1)).mean(axis=1).sum()]
    assert strategy.loss.item() == pytest.approx(sum(apart), rel=1e-5)


def test_the_temperature_divides_logits():
    logits, targets = torch.tensor([[2.0, 0.0]]), torch.tensor([0])
    expected = np.log(1 + np.exp(-0.5))
    assert TemperedCrossEntropy(4.0)(logits, targets).item() == pytest.approx(expected)
