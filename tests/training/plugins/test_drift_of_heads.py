"""Each head of the package under a drift: it moves as its rows would, or says at once that not."""

import pytest
import torch
from avalanche.core import SupervisedPlugin

from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.models import Branch, LinearDrift, LinearHead, PEFTModel, PrototypeHead
from avalanche_peftcl.models.heads.gaussian import GaussianHead
from avalanche_peftcl.models.heads.lda import LDAHead
from avalanche_peftcl.models.heads.ridge import RidgeHead
from avalanche_peftcl.registry import discover
from avalanche_peftcl.testing import toy_backbone, toy_benchmark
from avalanche_peftcl.training import PEFTTemplate
from avalanche_peftcl.training.naive import build_naive
from avalanche_peftcl.training.ntk_cl import build_ntk_cl
from avalanche_peftcl.training.pegp import build_pegp
from avalanche_peftcl.training.plugins import DriftCompensationPlugin

pytestmark = pytest.mark.filterwarnings("ignore:No loggers specified")

REGISTRY = discover(only=["avalanche-peftcl"])
DIM = 32
MOVED = {"gaussian": GaussianHead, "lda": LDAHead, "prototypes": PrototypeHead, "ridge": RidgeHead}
NAMED = {"zero_shot_ridge"}  # moves as ridge does, see its contract; these streams have no names
REFUSED = {"kernel_ridge", "random_ridge"}
TRAINED = {"cosine", "linear", "text_context", "zero_shot"}  # or never fitted
SMALL = {"train_mb_size": 12, "eval_mb_size": 12, "train_epochs": 1, "mixed_precision": "no"}


class Turning(Branch):
    """What it pools goes through a matrix that nothing trains."""

    def __init__(self):
        super().__init__()
        self.register_buffer("matrix", torch.eye(DIM))
        self.bend = torch.nn.Parameter(torch.zeros(1))  # something trains, and never matters

    def pool(self, backbone, tokens):
        return super().pool(backbone, tokens) @ self.matrix + 0 * self.bend


class Turn(SupervisedPlugin, supports_distributed=False):
    """Turns the features when an experience was trained, but the first."""

    def after_training_exp(self, strategy, **kwargs):
        if number := strategy.clock.train_exp_counter:
            generator = torch.Generator().manual_seed(number)
            turn = torch.linalg.qr(torch.randn(DIM, DIM, generator=generator)).Q
            strategy.network.branch.matrix.copy_(turn)


def strategy(head, *plugins, **sections):
    model = PEFTModel(toy_backbone(), Turning(), head, proxies=LinearHead, **sections)
    return PEFTTemplate(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.01),
        train_mb_size=24,
        eval_mb_size=24,
        plugins=plugins,
        evaluator=None,
    )


def read(strategy, *experiences):
    data = [experience.dataset.eval() for experience in experiences]
    images = torch.stack([each[i][0] for each in data for i in range(len(each))])
    labels = torch.tensor([int(each[i][1]) for each in data for i in range(len(each))])
    with torch.no_grad():
        return strategy.model.eval().embed(images), labels


def accuracy(strategy, *experiences):
    z, labels = read(strategy, *experiences)
    with torch.no_grad():
        return float((strategy.model.head(z).argmax(1) == labels).float().mean())


def test_every_head_is_tried():
    names = {entry.component.name for entry in REGISTRY.entries("head")}
    assert names == MOVED.keys() | NAMED | REFUSED | TRAINED


@pytest.mark.parametrize("name", MOVED)
def test_a_head_that_moves_knows_old_classes_again(name):
    benchmark, found = toy_benchmark(per_class=24), {}
    for what, plugins in {
        "still": [],
        "stale": [Turn()],
        "moved": [DriftCompensationPlugin(ridge=1e-12), Turn()],
    }.items():
        torch.manual_seed(0)
        trained = strategy(MOVED[name](DIM), *plugins)
        trained.train(benchmark.train_stream)
        found[what] = accuracy(trained, *benchmark.test_stream[:2])
    assert found["still"] > 0.9
    assert found["stale"] < 0.6
    assert found["moved"] == pytest.approx(found["still"], abs=0.1)


class TurnWithin(Turn):
    """Turns them after an epoch instead, and evaluates then if there is something to test on."""

    def __init__(self, tested):
        super().__init__()
        self.tested = tested

    def after_training_exp(self, strategy, **kwargs):
        """Nothing turns."""

    def after_training_epoch(self, strategy, **kwargs):
        super().after_training_exp(strategy)
        if strategy.clock.train_exp_counter and self.tested is not None:
            strategy.eval(self.tested)


class Asks(SupervisedPlugin, supports_distributed=False):
    """Keeps the accuracy that the head has in the middle of an evaluation."""

    def __init__(self, tested):
        super().__init__()
        self.tested, self.found = tested, []

    def before_eval_exp(self, strategy, **kwargs):
        self.found.append(accuracy(strategy, *self.tested))


@pytest.mark.parametrize("name", ["lda", "ridge"])
def test_inside_an_experience_a_head_moves_for_the_time_of_an_evaluation(name):
    benchmark, heads, found = toy_benchmark(per_class=24), [], []
    tested = benchmark.test_stream[:1]
    for moves in (True, False):
        for asked in (tested, None):
            drift = [DriftCompensationPlugin(ridge=1e-12)] if moves else []
            torch.manual_seed(0)
            asks = Asks(tested)
            trained = strategy(MOVED[name](DIM), *drift, TurnWithin(asked), asks)
            trained.train(benchmark.train_stream[:2])
            heads.append(dict(trained.model.head.state_dict()))
            found.append(asks.found)
    (with_map, _, without, _) = found
    assert with_map[0] > 0.9 > 0.6 > without[0]
    for asked, not_asked in (heads[:2], heads[2:]):
        assert asked.keys() == not_asked.keys()
        assert all(torch.equal(asked[key], not_asked[key]) for key in asked)


@pytest.mark.parametrize("rule", ["linear", "nearest"])
@pytest.mark.parametrize("name", sorted(REFUSED))
def test_a_head_that_cannot_move_says_so_when_the_first_experience_begins(name, rule):
    head = REGISTRY.build("head", name, {}, {"in_features": DIM})
    trained = strategy(head, DriftCompensationPlugin(rule))
    with pytest.raises(ConfigError, match=r"moves every fitted head: .* or leave the plugin out"):
        trained.train(toy_benchmark().train_stream[0])


def test_sums_of_a_ridge_head_are_those_of_the_mapped_rows():
    """The frozen section stays to the bit, its products with the adapted one move with that."""
    trained = strategy(RidgeHead, DriftCompensationPlugin(ridge=0.1), frozen_section="pooled")
    benchmark, drifts = toy_benchmark(), []
    trained.train(benchmark.train_stream[0])
    head = trained.model.head
    rows, labels = read(trained, benchmark.train_stream[0])
    gram, move = head.gram.clone(), head.move
    trained.plugins.insert(0, Turn())
    observe = head.observe

    def listens(drift):
        move(drift)
        drifts.append((drift, head.gram.clone(), head.sums.clone()))

    head.move, head.observe = listens, lambda *args: observe(*args)
    trained.train(benchmark.train_stream[1])
    ((drift, moved, sums),) = drifts
    assert isinstance(drift, LinearDrift)
    assert trained.model.moving == [drift.columns] == [slice(DIM, 2 * DIM)]
    assert (drift.matrix - torch.eye(DIM)).norm() > 0.5
    mapped = drift(rows.double())
    size = float(gram.abs().max())
    close = {"rtol": 0, "atol": 1e-6 * size}  # features were summed from float32
    torch.testing.assert_close(moved, mapped.T @ mapped, **close)
    expected = torch.stack([mapped[labels == c].sum(0) for c in range(2)])
    torch.testing.assert_close(sums[:2], expected, rtol=0, atol=1e-6 * float(expected.abs().max()))
    torch.testing.assert_close(moved[:DIM, :DIM], gram[:DIM, :DIM], rtol=1e-15, atol=1e-12)


BUILD = {
    "naive": lambda **o: build_naive(optimizer="adam", frozen_section="pooled", **o),
    "naive blocks": lambda **o: build_naive(
        optimizer="adam", frozen_section="blocks", features="blocks", **o
    ),
    "pegp": lambda **o: build_pegp(head_epochs=0, n_samples=4, frozen_section="pooled", **o),
    "ntk_cl": build_ntk_cl,
}


@pytest.mark.parametrize("rule", ["linear", "gaussian"])
@pytest.mark.parametrize("name", BUILD)
def test_beside_every_strategy(name, rule):
    """With proxies that train and a ridge head that predicts, on several sections."""
    torch.manual_seed(0)
    plugin = DriftCompensationPlugin(rule, sigma=0.5)
    trained = BUILD[name](
        backbone=toy_backbone(), head=RidgeHead, plugins=[plugin], lr=0.01, **SMALL
    )
    benchmark = toy_benchmark()
    trained.train(benchmark.train_stream)
    told = plugin.summary()["experiences"]
    assert [report["experience"] for report in told] == [2, 3]
    assert all(len(report["sections"]) == 1 for report in told)
    assert all(report["sections"][0]["drift"] > 0 for report in told)
    assert accuracy(trained, *benchmark.test_stream) > 0.4  # of six classes


def test_a_ridge_head_that_does_not_move_predicts_the_same():
    benchmark, found = toy_benchmark(), []
    for plugins in ([], [DriftCompensationPlugin()]):
        torch.manual_seed(0)
        trained = strategy(RidgeHead(DIM), *plugins)
        trained.train(benchmark.train_stream)
        z, _ = read(trained, *benchmark.test_stream)
        found.append(trained.model.head(z))
    assert torch.equal(*found)
