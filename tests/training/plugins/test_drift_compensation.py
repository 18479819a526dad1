"""Fitted heads move with the features, at the right time, by what the images at hand tell."""

import sys

import pytest
import torch
from avalanche.core import SupervisedPlugin
from avalanche.training import Naive
from avalanche.training.plugins import EvaluationPlugin

from avalanche_peftcl.errors import ConfigError, NotFiniteError
from avalanche_peftcl.models import (
    Branch,
    Head,
    LinearDrift,
    LinearHead,
    PEFTModel,
    PrototypeHead,
    RidgeHead,
)
from avalanche_peftcl.testing import toy_backbone, toy_benchmark
from avalanche_peftcl.training import PEFTTemplate
from avalanche_peftcl.training.naive import build_naive
from avalanche_peftcl.training.nearest_class_mean import build_nearest_class_mean
from avalanche_peftcl.training.ntk_cl import build_ntk_cl
from avalanche_peftcl.training.pegp import build_pegp
from avalanche_peftcl.training.plugins import DriftCompensationPlugin, HeadPlugin

pytestmark = pytest.mark.filterwarnings("ignore:No loggers specified")

SMALL = {"train_mb_size": 7, "eval_mb_size": 5, "train_epochs": 1, "mixed_precision": "no"}
RULES = ("linear", "smoothed", "nearest", "gaussian")
DIM = 32


class Turning(Branch):
    """What it pools goes through a matrix that nothing trains; a test turns it."""

    def __init__(self):
        super().__init__()
        self.register_buffer("matrix", torch.eye(DIM))
        self.bend = torch.nn.Parameter(torch.zeros(1))  # something trains, and never matters

    def pool(self, backbone, tokens):
        return super().pool(backbone, tokens) @ self.matrix + 0 * self.bend


class Turn(SupervisedPlugin, supports_distributed=False):
    """Changes the network when an experience was trained, as a running mean of weights does."""

    def __init__(self, matrices):
        super().__init__()
        self.matrices = list(matrices)

    def after_training_exp(self, strategy, **kwargs):
        if self.matrices:
            strategy.network.branch.matrix.copy_(self.matrices.pop(0))


def rotation(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(DIM, DIM, generator=generator)).Q


def accuracy(strategy, benchmark, experiences):
    model, right = strategy.model.eval(), []
    for experience in list(benchmark.test_stream)[:experiences]:
        data = experience.dataset
        images = torch.stack([data[i][0] for i in range(len(data))])
        labels = torch.tensor([int(data[i][1]) for i in range(len(data))])
        with torch.no_grad():
            right.append((model(images).argmax(1) == labels).float())
    return float(torch.cat(right).mean())


def features(strategy, experience):
    data = experience.dataset.eval()
    images = torch.stack([data[i][0] for i in range(len(data))])
    with torch.no_grad():
        return strategy.model.eval().embed(images)


def turned(plugins, matrices, *, head=PrototypeHead, scenario="class", order=(0, 1, 2), **options):
    """Return a strategy whose features turn at the end of each experience, and its benchmark."""
    backbone = toy_backbone()
    benchmark = toy_benchmark(scenario, per_class=24, **options)
    model = PEFTModel(backbone, Turning(), head(DIM))
    strategy = PEFTTemplate(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.01),
        train_mb_size=24,
        eval_mb_size=24,
        plugins=[*plugins, Turn(matrices)],
        evaluator=EvaluationPlugin(),
    )
    for t in order:
        strategy.train(benchmark.train_stream[t])
    return strategy, benchmark


# --- what it is for -------------------------------------------------------------------------------


def test_old_classes_are_known_again_when_features_turn():
    matrices = [torch.eye(DIM), rotation(0), rotation(1)]
    torch.manual_seed(0)
    stale, benchmark = turned([], matrices)
    moved, _ = turned([DriftCompensationPlugin(ridge=1e-6)], matrices)
    still, _ = turned([], [torch.eye(DIM)])
    wanted = accuracy(still, benchmark, 2)
    assert wanted > 0.9
    assert accuracy(stale, benchmark, 2) < 0.6
    assert accuracy(moved, benchmark, 2) == pytest.approx(wanted, abs=0.05)
    new = list(benchmark.test_stream)[2:]
    assert all(torch.equal(features(stale, e), features(moved, e)) for e in new)


def test_means_of_features_that_turned_are_those_of_the_turned_rows():
    """With more images than dimensions and no penalty, to the rounding of float32 features."""
    turn = rotation(3)
    strategy, benchmark = turned(
        [DriftCompensationPlugin(ridge=0.0)], [torch.eye(DIM), turn], order=(0, 1)
    )
    old = features(strategy, benchmark.train_stream[0])  # read again with the turned network
    means = torch.stack([old[:24].mean(0), old[24:].mean(0)])
    values = torch.linalg.svdvals(features(strategy, benchmark.train_stream[1]).double())
    condition = float(values[0] / values[DIM - 2])  # the last norm's output has D - 1 dimensions
    bound = 24 * torch.finfo(torch.float32).eps * condition * float(means.abs().max())
    found = strategy.model.head.prototypes[:2]
    assert (means @ turn.T - means).abs().max() > 5 * bound  # or it would not matter
    torch.testing.assert_close(found, means, rtol=0, atol=bound)


class Ridge(Head):
    """A stranger's head in closed form with first and second moments."""

    fitted = True
    row_tensors = ("sums", "weight")

    def __init__(self, in_features):
        super().__init__(in_features)
        self.register_buffer("gram", torch.zeros(in_features, in_features).double())
        self.register_buffer("sums", torch.zeros(0, in_features).double())
        self.register_buffer("weight", torch.zeros(0, in_features))
        self.moves, self.unsettled = [], False

    def observe(self, features, rows):
        h = features.double()
        self.gram += h.T @ h
        self.sums.index_add_(0, rows, h)

    def move(self, drift):
        self.moves.append(drift)
        if isinstance(drift, LinearDrift):
            self.gram = drift.congruence(self.gram)
        self.sums = drift(self.sums)

    def settle(self):
        ridge = self.gram + 1e-6 * torch.eye(self.in_features).double()
        self.weight = torch.linalg.solve(ridge, self.sums.T).T.float()

    def forward(self, features):
        return features.float() @ self.weight.T


def test_second_moments_move_too():
    turn = rotation(4)
    strategy, benchmark = turned(
        [DriftCompensationPlugin(ridge=0.0)], [torch.eye(DIM), turn], head=Ridge, order=(0, 1)
    )
    rows = torch.cat([features(strategy, benchmark.train_stream[t]) for t in (0, 1)]).double()
    expected = rows.T @ rows
    size = float(expected.abs().max())
    torch.testing.assert_close(strategy.model.head.gram, expected, rtol=0, atol=1e-2 * size)
    assert (rotation(4) - torch.eye(DIM)).norm() > 1  # or nothing had to move


# --- nothing is done where nothing moved ----------------------------------------------------------


@pytest.mark.parametrize("rule", [r for r in RULES if r != "smoothed"])
def test_a_network_that_does_not_move_predicts_the_same_bits(rule, backbone):
    held = []
    for plugins in ([], [DriftCompensationPlugin(rule, n_samples=5)]):
        torch.manual_seed(0)
        strategy = build_nearest_class_mean(backbone=backbone, plugins=plugins)
        strategy.train(toy_benchmark().train_stream)
        held.append(strategy.model.head.prototypes)
    assert torch.equal(*held)
    sections = [report["sections"] for report in plugins[0].summary()["experiences"]]
    assert sections == [[{"drift": 0.0, "explained": None}]] * 2


class Beside(PEFTModel):
    """A network with class means beside what trains, which do not matter in training."""

    def __init__(self, model):
        super().__init__(model.backbone, model.branch, model.head)
        self.prototypes = PrototypeHead(DIM)

    def start_experience(self, pairs, *, fresh=True):
        super().start_experience(pairs, fresh=fresh)
        self.prototypes.grow(len(self.classes))

    @property
    def heads(self):
        return (self.prototypes, self.head)


def test_training_and_random_numbers_are_those_without_it():
    held = []
    for plugins in ([], [DriftCompensationPlugin()]):
        torch.manual_seed(0)
        strategy = build_naive(backbone=toy_backbone(), plugins=plugins, lr=0.1, **SMALL)
        strategy.model = Beside(strategy.model)
        strategy.plugins.append(HeadPlugin())
        strategy.train(toy_benchmark().train_stream)
        held.append((dict(strategy.model.named_parameters()), torch.rand(3)))
    (one, drawn), (other, also) = held
    assert torch.equal(drawn, also)
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    assert plugins[0].summary()["experiences"][-1]["sections"][0]["drift"] > 0.01


# --- when -----------------------------------------------------------------------------------------

BUILD = {"naive": build_naive, "ntk_cl": build_ntk_cl, "pegp": build_pegp}


@pytest.mark.parametrize("plugin_order", ["before", "after"])
@pytest.mark.parametrize("name", BUILD)
def test_it_moves_heads_between_the_end_of_training_and_their_observing(name, plugin_order):
    """And reads the network as the heads do: after running means and merging."""
    torch.manual_seed(0)
    plugin, heard = DriftCompensationPlugin(), []
    more = {"merge_epochs": 1, "head_epochs": 0, "n_samples": 4} if name == "pegp" else {}

    class Hears(PrototypeHead):
        def observe(self, features, rows):
            heard.append(("observe", features))
            super().observe(features, rows)

        def move(self, drift):
            heard.append(("move", drift))
            super().move(drift)

    strategy = BUILD[name](
        backbone=toy_backbone(),
        head=Hears,
        lr=0.1,
        plugins=[plugin],
        plugin_order=plugin_order,
        **SMALL,
        **more,
    )
    seen, read = [], plugin._read

    def listens(*args, **kwargs):
        seen.append(read(*args, **kwargs))
        return seen[-1]

    plugin._read = listens
    benchmark = toy_benchmark()
    strategy.train(benchmark.train_stream[0])
    assert [what for what, _ in heard[1:]] == ["observe"] * (len(heard) - 1)
    assert heard.pop(0)[0] == "move"  # whether it can
    assert seen == []
    heard.clear()
    strategy.train(benchmark.train_stream[1])
    before, after = (torch.cat([batch.features for batch in each]).float() for each in seen)
    assert heard[0][0] == "move"
    observed = torch.cat([features for what, features in heard[1:] if what == "observe"])
    assert torch.equal(after, observed.float())
    drift = heard[0][1]
    assert not torch.equal(before, after)
    expected = plugin.drift(before, after).matrix
    assert torch.equal(drift.matrix, expected)


def test_chunks_of_an_online_stream_are_compensated_one_by_one():
    plugin = DriftCompensationPlugin()
    strategy = build_naive(backbone=toy_backbone(), head=Ridge, plugins=[plugin], lr=0.1, **SMALL)
    benchmark = toy_benchmark("online", experience_size=6)
    strategy.train(benchmark.train_stream)
    moves = strategy.model.head.moves
    assert len(moves) == 1 + 5  # a trial, and all of six chunks but the first
    told = plugin.summary()["experiences"]
    assert [report["experience"] for report in told] == [1, 2, 3]
    assert plugin.stored_floats == 0


def test_it_reads_the_same_drawn_images_before_and_after():
    plugin = DriftCompensationPlugin(n_samples=5, seed=7)
    strategy = build_nearest_class_mean(backbone=toy_backbone(), plugins=[plugin])
    read, seen = plugin._read, []
    plugin._read = lambda *a, **k: seen.append(read(*a, **k)) or seen[-1]
    strategy.train(toy_benchmark().train_stream)
    drawn = [torch.cat([batch.features for batch in each]) for each in seen]
    assert [len(each) for each in drawn] == [5] * 4
    assert torch.equal(drawn[0], drawn[1])
    assert torch.equal(drawn[2], drawn[3])


@pytest.mark.parametrize(("n_samples", "passes"), [(None, 2), (5, 3)])
def test_what_it_has_read_of_all_images_is_what_heads_observe(n_samples, passes, monkeypatch):
    """After training each image runs through the network once, however many ask for it."""
    module = sys.modules["avalanche_peftcl.training.feature_pass"]  # a function of that name too
    read, sizes = module.DataLoader, []

    def counted(data, **kwargs):
        sizes.append(len(data))
        return read(data, **kwargs)

    monkeypatch.setattr(module, "DataLoader", counted)
    held = []
    for plugins in ([DriftCompensationPlugin(n_samples=n_samples)], []):
        strategy = build_nearest_class_mean(
            backbone=toy_backbone(), head=RidgeHead, plugins=plugins, mixed_precision="no"
        )
        strategy.train(toy_benchmark().train_stream[0])
        sizes.clear()
        strategy.train(toy_benchmark().train_stream[1])
        held.append((strategy.model.head.gram, len(sizes)))
    (with_it, many), (without, one) = held
    assert (many, one) == (passes, 1)
    # of a network that stays as it is the map is the identity up to the solve's rounding
    torch.testing.assert_close(with_it, without, atol=1e-4, rtol=1e-4)


def test_only_moving_sections_move():
    class Half(PEFTModel):
        @property
        def moving(self):
            return [slice(16, 32)]

    plugin = DriftCompensationPlugin()
    model = Half(toy_backbone(), Turning(), PrototypeHead(DIM))
    strategy = PEFTTemplate(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.01),
        train_mb_size=12,
        eval_mb_size=12,
        plugins=[plugin, Turn([torch.eye(DIM), rotation()])],
        evaluator=EvaluationPlugin(),
    )
    benchmark = toy_benchmark()
    strategy.train(benchmark.train_stream[0])
    before = model.head.prototypes.clone()
    strategy.train(benchmark.train_stream[1])
    assert torch.equal(model.head.prototypes[:2, :16], before[:2, :16])
    assert (model.head.prototypes[:2, 16:] - before[:2, 16:]).abs().max() > 0.1


def test_all_rules_move_the_means(backbone):
    for rule in RULES:
        plugin = DriftCompensationPlugin(rule)
        turned([plugin], [torch.eye(DIM), rotation()], order=(0, 1))
        (report,) = plugin.summary()["experiences"]
        assert report["sections"][0]["drift"] > 0.5
        assert report["sections"][0]["explained"] > (0.9 if rule != "smoothed" else 0.5)
        assert plugin.headline().startswith("drift: features moved by ")


# --- what does not fit ----------------------------------------------------------------------------


class Rigid(Ridge):
    """A head that cannot move."""

    move = Head.move


def test_what_cannot_move_is_refused_when_training_begins():
    def train(head, plugins=()):
        strategy = build_naive(
            backbone=toy_backbone(),
            head=head,
            plugins=[DriftCompensationPlugin(), *plugins],
            **SMALL,
        )
        strategy.train(toy_benchmark().train_stream[0])

    with pytest.raises(ConfigError, match="moves every fitted head: a Rigid cannot move"):
        train(Rigid)
    with pytest.raises(ConfigError, match="a PEFTModel has LinearHead; take a head that is fitted"):
        train(LinearHead)


def test_avalanches_own_strategies_need_a_head_plugin():
    def build(*plugins):
        model = PEFTModel(toy_backbone(), Turning(), PrototypeHead(DIM))
        return Naive(
            model=model,
            optimizer=torch.optim.SGD(model.parameters(), lr=0.01),
            train_mb_size=12,
            eval_mb_size=12,
            plugins=list(plugins),
            evaluator=EvaluationPlugin(),
        )

    plugin = DriftCompensationPlugin()
    experiences = toy_benchmark().train_stream
    with pytest.raises(ConfigError, match=r"put a HeadPlugin\(\) among the plugins too"):
        build(plugin).train(experiences[0])
    build(plugin, HeadPlugin()).train(experiences)
    assert len(plugin.summary()["experiences"]) == 2


def test_features_that_are_no_numbers_are_refused():
    matrices = [torch.eye(DIM), torch.full((DIM, DIM), float("nan"))]
    with pytest.raises(NotFiniteError, match="the features of experience 2 are not finite"):
        turned([DriftCompensationPlugin()], matrices)


@pytest.mark.parametrize(
    "options",
    [{"rule": "cubic"}, {"ridge": -1}, {"tau": 0}, {"temperature": 0}, {"sigma": 0},
     {"n_samples": 0}],
)  # fmt: skip
def test_arguments_out_of_range(options):
    with pytest.raises(ConfigError):
        DriftCompensationPlugin(**options)
