"""What stands in front of the texts of class names trains, and old logits stay with projection."""

import pytest
import torch
from torch import nn

from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.functional import released_basis
from avalanche_peftcl.models import (
    ImageTextBackbone,
    InputConfig,
    TextTower,
    build_linear_adapter,
    build_prompt,
    build_text_context,
    build_zero_shot,
)
from avalanche_peftcl.training.naive import build_naive
from avalanche_peftcl.training.pegp import build_pegp
from avalanche_peftcl.training.plugins import GradientProjectionPlugin
from tests.training.conftest import ROOMY

E, NAMES = 48, ["ant", "bee", "cat", "dog", "eel", "fox"]
KINDS = ROOMY | {"linear": lambda b: build_linear_adapter(backbone=b, r=32)}
every_kind = pytest.mark.parametrize("kind", KINDS)


class Letters(nn.Module):
    """An embedding a letter, summed."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(128, E)

    def forward(self, tokens):
        return self.table(tokens).sum(dim=1)


def letters(texts):
    return torch.tensor([list(text.encode()[:8].ljust(8)) for text in texts])


@pytest.fixture
def joint(sharp):
    torch.manual_seed(0)
    size, text = InputConfig(img_size=8), TextTower(Letters(), letters)
    projection = nn.Linear(64, E, bias=False)
    return ImageTextBackbone(
        sharp.vit, projection, size, out_features=E, logit_scale=20.0, text=text
    )


def zero_shot(backbone):
    return lambda width: build_zero_shot(in_features=width, backbone=backbone)


def logits(strategy, *experiences):
    images = [x for e in experiences for x, *_ in e.dataset.eval()]
    with torch.no_grad():
        return strategy.model.eval()(torch.stack(images))


def moved(now, before):
    """Return how far logits of the classes that were known have moved."""
    return (now[:, : before.shape[1]] - before).abs().max().item()


@every_kind
@pytest.mark.parametrize("projected", [True, False], ids=["projected", "free"])
def test_old_logits_stay_with_fine_tuning_in_turn(joint, small_benchmark, kind, projected):
    """Few images, features of low rank: everything is protected, and there is room to learn."""
    torch.manual_seed(0)
    plugins = [GradientProjectionPlugin(1.0, where="step", n_samples=None)] if projected else []
    strategy = build_naive(
        backbone=joint,
        module=KINDS[kind](joint),
        head=zero_shot(joint),
        loss="local",
        optimizer="adam",
        lr=0.1,
        weight_decay=0.0,
        train_epochs=3,
        train_mb_size=2,
        plugins=plugins,
    )
    first, second, third = small_benchmark(class_names=NAMES).train_stream
    strategy.train(first)
    old, new = logits(strategy, first), logits(strategy, second)
    strategy.train(second)
    drift = moved(logits(strategy, first), old)
    assert drift < 2e-5 if projected else drift > 0.1
    assert moved(logits(strategy, second), new) > 5e-4
    older = logits(strategy, first, second)
    strategy.train(third)
    drift = moved(logits(strategy, first, second), older)
    assert drift < 2e-5 if projected else drift > 0.1


@every_kind
def test_old_logits_stay_with_pegp(joint, small_benchmark, kind):
    torch.manual_seed(0)
    strategy = build_pegp(
        backbone=joint,
        module=KINDS[kind](joint),
        head=zero_shot(joint),
        threshold=1.0,
        where="step",
        n_samples=None,
        lr=0.1,
        train_epochs=3,
        train_mb_size=2,
        head_epochs=0,
        merge_epochs=0,
    )
    first, second, _ = small_benchmark(class_names=NAMES).train_stream
    strategy.train(first)
    old, new = logits(strategy, first), logits(strategy, second)
    strategy.train(second)
    assert moved(logits(strategy, first), old) < 2e-5
    assert moved(logits(strategy, second), new) > 5e-4
    sites = strategy.projection.summary()["experiences"][-1]
    assert any(site["size"] < site["dim"] for site in sites)


@pytest.mark.parametrize("kind", ["linear", "prompt"])
def test_old_logits_stay_while_contexts_of_texts_train_too(joint, small_benchmark, kind):
    """Of each experience its own: nothing of old ones trains, and images stay by projection."""
    torch.manual_seed(0)
    strategy = build_pegp(
        backbone=joint,
        module=KINDS[kind](joint),
        head=lambda width: build_text_context(in_features=width, backbone=joint, n_context=3),
        threshold=1.0,
        where="step",
        n_samples=None,
        lr=0.1,
        train_epochs=3,
        train_mb_size=2,
        head_epochs=0,
        merge_epochs=0,
    )
    first, second, _ = small_benchmark(class_names=NAMES).train_stream
    strategy.train(first)
    old = logits(strategy, first)
    before = strategy.model.branch.state_dict()
    before = {name: tensor.clone() for name, tensor in before.items()}
    strategy.train(second)
    assert moved(logits(strategy, first), old) < 2e-5
    after = strategy.model.branch.state_dict()
    assert any(not torch.equal(after[name], before[name]) for name in before)


@every_kind
def test_what_pegp_does_by_itself_runs_with_a_head_that_does_not_train(
    joint, small_benchmark, kind
):
    """There is no head to train alone; the second stage is there."""
    torch.manual_seed(0)
    strategy = build_pegp(
        backbone=joint, module=KINDS[kind](joint), head=zero_shot(joint), train_epochs=2
    )
    for experience in small_benchmark(class_names=NAMES).train_stream:
        before = [p.detach().clone() for p in strategy.model.branch.parameters()]
        strategy.train(experience)
        after = list(strategy.model.branch.parameters())
        assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
        texts = joint.encode_text(NAMES[: len(strategy.model.head.rows)])
        assert torch.equal(strategy.model.head.rows, texts)
        assert all(p.grad is None for p in joint.text.module.parameters())


SITES = {"linear": "down.weight", "prompt": "extensions.0.tokens"}
RELEASED = {
    "linear": lambda b: build_linear_adapter(backbone=b, r=5, start="released"),
    "prompt": lambda b: build_prompt(backbone=b, length=10, init_bound=1.0),
    "adapter": KINDS["adapter"],
}


@pytest.mark.parametrize(
    "kind", ["linear", "prompt", pytest.param("adapter", marks=pytest.mark.slow)]
)
def test_the_recipe_of_the_release_projects_what_it_has_on_clip(joint, small_benchmark, kind):
    """With its merging: epochs, then as many without projection, and the mean of both."""
    torch.manual_seed(0)
    strategy = build_pegp(
        backbone=joint,
        module=RELEASED[kind](joint),
        head=lambda width: build_text_context(in_features=width, backbone=joint, n_context=3),
        recipe="released",
        threshold=0.9,
        n_samples=None,
        optimizer="sgd",
        lr=0.1,
        momentum=0.9,
        anneal=True,
        train_epochs=2,
        train_mb_size=4,
        head_epochs=0,
        merge_epochs=2,
        merge_share=0.5,
        near="features",
    )
    stream = small_benchmark(class_names=NAMES, per_class=6).train_stream
    for experience in stream:
        strategy.train(experience)
    reports = strategy.projection.summary()["experiences"]
    assert strategy.projection.where == "gradient"
    assert [len(sites) for sites in reports] == [len(reports[0])] * 3
    assert all(site["removed_share"] == 0 for site in reports[0])
    assert any(0 < site["removed_share"] < 1 for site in reports[2])
    assert all(0 < sites[0]["size"] < sites[0]["dim"] for sites in reports[1:])


@pytest.mark.parametrize("kind", ["linear", "prompt"])
def test_its_gradients_are_projected_in_the_spaces_that_the_release_takes(
    joint, small_benchmark, kind
):
    torch.manual_seed(0)
    branch = RELEASED[kind](joint)
    strategy = build_pegp(
        backbone=joint,
        module=branch,
        head=zero_shot(joint),
        recipe="released",
        threshold=1 - 1e-6,  # of fourth powers; less is held by the mean alone
        n_samples=None,
        optimizer="sgd",
        lr=0.1,
        train_epochs=1,
        head_epochs=0,
        merge_epochs=0,
    )
    first, second, _ = small_benchmark(class_names=NAMES, per_class=6).train_stream
    strategy.train(first)
    basis = strategy.projection.bases[f"branch.{SITES[kind]}"][0]
    if kind == "linear":
        images = torch.stack([x for x, *_ in first.dataset.eval()])
        z = joint(images).double()
        expected = released_basis(None, z.T @ z, threshold=1 - 1e-6)
        torch.testing.assert_close(
            basis @ basis.T, (expected @ expected.T).float(), atol=1e-4, rtol=0
        )
    parameter = branch.get_parameter(SITES[kind])
    before = parameter.detach().clone()
    strategy.train(second)
    moved = parameter.detach() - before
    assert basis.shape[1]
    assert moved.abs().max() > 1e-4
    assert (moved @ basis).abs().max() < 1e-5 * moved.abs().max() * len(basis)


def test_prefixes_were_not_released(joint):
    with pytest.raises(ConfigError, match="is for adapters, LoRA and prompts against inputs"):
        build_pegp(
            backbone=joint, module=KINDS["prefix"](joint), head=zero_shot(joint), recipe="released"
        )
