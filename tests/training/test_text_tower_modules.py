"""Modules inside the text tower: what they learn, what moves with them, and what a stop changes."""

import pytest
import torch
from avalanche.core import SupervisedPlugin
from torch import nn

from avalanche_peftcl.errors import ConfigError, ExportError
from avalanche_peftcl.evaluation.joint_space import JointSpace
from avalanche_peftcl.models import (
    ImageTextBackbone,
    InputConfig,
    PEFTModel,
    TextTower,
    build_adapters,
    build_lora,
    build_text_context,
    build_zero_shot,
    build_zero_shot_ridge,
)
from avalanche_peftcl.testing import captioned_backbone, captioned_benchmark
from avalanche_peftcl.testing.probes import differs_when_rebuilt
from avalanche_peftcl.testing.resuming import ends_elsewhere, obstacles
from avalanche_peftcl.training.contrastive import build_contrastive
from avalanche_peftcl.training.naive import build_naive
from avalanche_peftcl.training.pegp import build_pegp
from avalanche_peftcl.training.plugins import GradientProjectionPlugin

E, D, NAMES = 48, 32, ["ant", "bee", "cat", "dog", "eel", "fox"]
KINDS = {
    "adapter": lambda b, tower="text": build_adapters(
        backbone=b, r=32, scale=1.0, dropout=0.1, tower=tower
    ),
    "lora": lambda b, tower="text": build_lora(backbone=b, r=32, tower=tower),
}
every_kind = pytest.mark.parametrize("kind", KINDS)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(D)
        self.mlp = nn.Sequential(nn.Linear(D, D), nn.GELU(), nn.Linear(D, D))

    def forward(self, x):
        return x + self.mlp(self.norm(x))


class Letters(nn.Module):
    """A vector a letter, two blocks, the mean."""

    def __init__(self):
        super().__init__()
        self.table, self.projection = nn.Embedding(128, D), nn.Linear(D, E)
        self.blocks = nn.ModuleList([Block(), Block()])

    def forward(self, tokens):
        x = self.table(tokens)
        for block in self.blocks:
            x = block(x)
        return self.projection(x.mean(dim=1))


def letters(texts):
    return torch.tensor([list(text.encode()[:18].ljust(18)) for text in texts])


@pytest.fixture
def joint(sharp):
    torch.manual_seed(0)
    return ImageTextBackbone(
        sharp.vit,
        nn.Linear(64, E, bias=False),
        InputConfig(img_size=8),
        out_features=E,
        logit_scale=20.0,
        text=TextTower(Letters(), letters),
    )


def zero_shot(backbone):
    return lambda width: build_zero_shot(in_features=width, backbone=backbone, templates=["a {}"])


def naive(backbone, kind, tower="text", **options):
    torch.manual_seed(0)
    defaults = {"loss": "local", "optimizer": "adam", "lr": 0.01, "weight_decay": 0.0}
    defaults |= {"train_epochs": 3, "train_mb_size": 2, "mixed_precision": "no"}
    return build_naive(
        backbone=backbone,
        module=KINDS[kind](backbone, tower),
        head=zero_shot(backbone),
        **defaults | options,
    )


def rows_now(strategy):
    """Return the rows of the head by hand: the texts of all classes by the tower as it is."""
    network = strategy.network
    words = [NAMES[c] for c in network.classes.keys[:, 1].tolist()]
    with torch.no_grad():
        return network.branch.text.encode_text(words, ["a {}"])


def predict(strategy, *experiences):
    images = torch.stack([x for e in experiences for x, *_ in e.dataset.eval()])
    with torch.no_grad():
        return strategy.network.eval()(images)


@every_kind
@pytest.mark.parametrize("projected", [True, False], ids=["projected", "free"])
def test_old_texts_move_with_the_tower_unless_they_are_projected(
    joint, small_benchmark, kind, projected
):
    """By Adam, with the step projected; the images' side is the frozen one."""
    weights = [p.clone() for p in joint.text.module.parameters()]
    plugins = [GradientProjectionPlugin(1.0, where="step", n_samples=None)] if projected else []
    strategy = naive(joint, kind, plugins=plugins)
    frozen = joint.encode_text(NAMES, ["a {}"]).clone()
    first, second, _ = small_benchmark(class_names=NAMES).train_stream
    strategy.train(first)
    logits, old = predict(strategy, first), strategy.network.head.rows.clone()
    assert torch.equal(old, rows_now(strategy))
    assert (old - frozen[:2]).abs().max() > 1e-2
    loss = torch.nn.functional.cross_entropy(
        predict(strategy, first), torch.tensor(list(first.dataset.targets))
    )
    images = torch.stack([x for x, *_ in first.dataset.eval()])
    z = nn.functional.normalize(joint(images), dim=1)
    before = nn.functional.cross_entropy(
        20 * z @ frozen[:2].T, torch.tensor(list(first.dataset.targets))
    )
    assert loss < before - 0.005
    strategy.train(second)
    moved = (predict(strategy, first)[:, :2] - logits[:, :2]).abs().max()
    assert torch.equal(strategy.network.head.rows, rows_now(strategy))
    assert (strategy.network.head.rows[2:] - frozen[2:4]).abs().max() > 1e-3
    assert moved < 1e-4 if projected else moved > 1e-2
    assert all(
        torch.equal(a, b) for a, b in zip(weights, joint.text.module.parameters(), strict=True)
    )
    assert all(p.grad is None for p in joint.parameters())


def test_a_step_is_that_of_the_classes_at_hand(joint, small_benchmark):
    """The gradient by hand; old rows are held as they were, whoever looks meanwhile."""
    strategy = naive(joint, "lora", loss="seen")
    first = small_benchmark(class_names=NAMES).train_stream[0]
    strategy.train(first)
    held = rows_now(strategy)
    with torch.no_grad():
        strategy.network.start_experience([(0, 1), (0, 2), (0, 3)])
        strategy.network.start_rows(2, NAMES)
    head, text = strategy.network.head, strategy.network.branch.text
    for p in text.parameters():
        p.data += 0.1 * torch.randn_like(p)
    z = torch.randn(5, E)
    with torch.no_grad():
        head(z)  # an evaluation
    assert head.at_hand.tolist() == [1, 2, 3]
    logits = head(z)
    rows = torch.cat([held[:1], text.encode_text([NAMES[c] for c in (1, 2, 3)], ["a {}"])])
    unit = nn.functional.normalize(z, dim=1).double()
    torch.testing.assert_close(logits, (20 * unit @ rows.double().T).float())
    along = torch.randn_like(logits)
    found = torch.autograd.grad((logits * along).sum(), list(text.parameters()))
    wanted = torch.autograd.grad((20 * (unit @ rows.double().T) * along).sum(), text.parameters())
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other)


def test_metrics_read_the_trained_texts_and_the_frozen_ones(joint, small_benchmark):
    strategy = naive(joint, "lora")
    strategy.train(small_benchmark(class_names=NAMES).train_stream[0])
    space = JointSpace(strategy, "retrieval")
    with torch.no_grad():
        trained = strategy.network.branch.text.encode_text(NAMES)
    assert torch.equal(space.texts(NAMES), trained.double())
    assert torch.equal(space.texts(NAMES, adapted=False), joint.encode_text(NAMES).double())
    assert (space.texts(NAMES) - space.texts(NAMES, adapted=False)).abs().max() > 1e-3


@pytest.mark.parametrize("kind", ["adapter", pytest.param("lora", marks=pytest.mark.slow)])
def test_a_run_that_is_stopped_goes_on_to_the_bit(joint, small_benchmark, kind):
    stream = small_benchmark(class_names=NAMES, per_class=3).train_stream[:2]

    def build():
        plugins = [GradientProjectionPlugin(0.9, n_samples=None)]
        return naive(joint, kind, "both", plugins=plugins, loss="seen")

    assert obstacles(build()) == []
    assert ends_elsewhere(build, stream, after=2) == []


class Looks(SupervisedPlugin, supports_distributed=False):
    def after_training_epoch(self, strategy, **kwargs):
        predict(strategy, strategy.experience)
        strategy.network.train()
        strategy.network.state_dict()


def test_an_evaluation_while_it_trains_changes_nothing(joint, small_benchmark):
    ends = []
    for plugins in ([], [Looks()]):
        strategy = naive(joint, "lora", loss="seen", plugins=plugins)
        for experience in small_benchmark(class_names=NAMES).train_stream[:2]:
            strategy.train(experience)
        ends.append(strategy.network.state_dict())
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())


@pytest.mark.parametrize("kind", ["lora", pytest.param("adapter", marks=pytest.mark.slow)])
def test_pegp_runs_with_its_stages(joint, small_benchmark, kind):
    torch.manual_seed(0)
    strategy = build_pegp(
        backbone=joint,
        module=KINDS[kind](joint, "both"),
        head=zero_shot(joint),
        train_epochs=2,
        mixed_precision="no",
    )
    for experience in small_benchmark(class_names=NAMES).train_stream:
        strategy.train(experience)
    assert torch.equal(strategy.network.head.rows, rows_now(strategy))
    sites = {site["site"] for site in strategy.projection.summary()["experiences"][-1]}
    assert any("branch.text.tuners" in name for name in sites)
    assert any("branch.text.tuners" not in name for name in sites)


@every_kind
def test_an_exported_network_needs_no_text_tower(joint, small_benchmark, kind):
    strategy = naive(joint, kind, "both", train_epochs=1)
    experience = small_benchmark(class_names=NAMES).train_stream[0]
    strategy.train(experience)
    images = torch.stack([x for x, *_ in experience.dataset.eval()])
    model = strategy.network.eval()
    assert differs_when_rebuilt(model, joint, images) is None
    joint.text = None
    joint.has_text = False
    assert differs_when_rebuilt(model, joint, images) is None


def test_contrastive_trains_both_sides_and_projection_keeps_old_texts():
    moved, texts = {}, ["a bee", "one small cat"]
    for threshold in (None, 1.0):
        torch.manual_seed(0)
        benchmark, backbone = captioned_benchmark((3, 4), per_word=1), captioned_backbone()
        with_blocks = Letters()
        with_blocks.projection = nn.Linear(D, 16)
        backbone.text = TextTower(with_blocks, letters)
        plugins = [] if threshold is None else [GradientProjectionPlugin(threshold, n_samples=None)]
        strategy = build_contrastive(
            backbone=backbone,
            module=build_lora(backbone=backbone, r=4, tower="text"),
            plugins=plugins,
            lr=0.01,
            train_epochs=4,
            train_mb_size=12,
            mixed_precision="no",
        )
        frozen = backbone.encode_text(texts)
        first, second = benchmark.train_stream
        strategy.train(first)
        with torch.no_grad():
            old = strategy.encode(texts)
        assert (old - frozen).abs().max() > 1e-2
        strategy.train(second)
        with torch.no_grad():
            moved[threshold] = float((strategy.encode(texts) - old).abs().max())
        strategy.eval(benchmark.test_stream)
        assert torch.equal(backbone.encode_text(texts), frozen)
        assert all(p.grad is None for p in backbone.text.module.parameters())
    assert moved[1.0] < 1e-4 < moved[None] / 10, moved


def test_what_cannot_be_used_is_refused(joint):
    branch = KINDS["lora"](joint)
    with pytest.raises(ConfigError, match="trains the text side, which a LinearHead does not read"):
        PEFTModel(joint, branch)
    context = build_text_context(in_features=E, backbone=joint)
    with pytest.raises(ConfigError, match="trains the text side, which a TextContextHead does not"):
        PEFTModel(joint, branch, context)
    ridge = build_zero_shot_ridge(in_features=E, backbone=joint)
    with pytest.raises(ConfigError, match="trains the text side, which a ZeroShotRidgeHead does n"):
        PEFTModel(joint, branch, ridge)
    with pytest.raises(ExportError, match="the module is in the text tower too, of which peft's"):
        KINDS["lora"](joint, "both").adapter_state()
    with pytest.raises(ConfigError, match='recipe="released" projects what is in the image tower'):
        build_pegp(backbone=joint, module=branch, head=zero_shot(joint), recipe="released")
