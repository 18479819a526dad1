"""Evaluation inside training: what it predicts, and that training does not notice it."""

import copy

import pytest
import torch
from avalanche.benchmarks import benchmark_with_validation_stream
from avalanche.core import SupervisedPlugin
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.training import Naive
from avalanche.training.plugins import EarlyStoppingPlugin, EvaluationPlugin

from avalanche_peftcl.evaluation import AccuracyMatrix
from avalanche_peftcl.models import FrozenBranch, NTKCLModel, PEFTModel, PrototypeHead
from avalanche_peftcl.testing import toy_backbone, toy_benchmark
from avalanche_peftcl.training.naive import build_naive
from avalanche_peftcl.training.nearest_class_mean import build_nearest_class_mean
from avalanche_peftcl.training.ntk_cl import build_ntk_cl
from avalanche_peftcl.training.pegp import build_pegp
from avalanche_peftcl.training.plugins import HeadPlugin

pytestmark = pytest.mark.filterwarnings("ignore:No loggers specified")

SMALL = {"train_mb_size": 6, "train_epochs": 2, "eval_mb_size": 16}
MORE = {"train_mb_size": 4, "train_epochs": 12, "lr": 0.003}  # their head starts at zero
BUILD = {
    "corrected": lambda **o: build_ntk_cl(recipe="corrected", lr=0.03, **SMALL, **o),
    "released": lambda **o: build_ntk_cl(recipe="released", lr=0.03, **SMALL, **o),
    "pegp": lambda **o: build_pegp(head_epochs=1, n_samples=8, threshold=0.9, **MORE, **o),
    "naive": lambda **o: build_naive(optimizer="adam", **MORE, **o),
}


def two(scenario="class", **options):
    return toy_benchmark(scenario, classes_per_experience=(2, 2), **options)


def periodic(strategy, every, mode="epoch"):
    plugin = strategy.plugins[-2]
    plugin.eval_every, plugin.peval_mode, plugin.do_initial = every, mode, every > -1
    return strategy


class Accuracies(SupervisedPlugin):
    """Collect the accuracy on each test experience, in each evaluation inside training."""

    def __init__(self):
        super().__init__()
        self.found, self._right, self._trains = [], [], False

    def before_training_exp(self, strategy, **kwargs):
        self._trains = True

    def after_training_exp(self, strategy, **kwargs):
        self._trains = False

    def before_eval_exp(self, strategy, **kwargs):
        self._right = []

    def after_eval_iteration(self, strategy, **kwargs):
        self._right += (strategy.mb_output.argmax(1) == strategy.mb_y).tolist()

    def after_eval_exp(self, strategy, **kwargs):
        if self._trains:
            pair = strategy.clock.train_exp_counter, strategy.experience.current_experience
            self.found.append((pair, sum(self._right) / len(self._right)))

    def inside(self, trained, tested):
        """Return the accuracies while experience ``trained`` trains, an epoch each."""
        return [share for pair, share in self.found if pair == (trained, tested)]


@pytest.mark.parametrize("scenario", ["class", "task", "domain"])
@pytest.mark.parametrize("method", BUILD)
def test_classes_in_training_are_predicted(method, scenario):
    """Each epoch's accuracy is above chance, on earlier classes too where the method keeps it."""
    torch.manual_seed(0)
    seen, benchmark = Accuracies(), two(scenario)
    strategy = BUILD[method](backbone=toy_backbone(), plugins=[seen], evaluator=None)
    periodic(strategy, 1)
    for t, experience in enumerate(benchmark.train_stream[:2]):
        strategy.train(experience, eval_streams=[benchmark.test_stream[: t + 1]])
    chance = 1 / 2 if scenario == "task" else 1 / 4
    for t in range(2):
        second_stage = method == "pegp" and t > 0
        assert len(seen.inside(t, t)) == strategy.train_epochs + second_stage
        assert max(seen.inside(t, t)) >= chance + 0.25
        if method in ("corrected", "released"):
            assert min(seen.inside(t, t)) >= chance + 0.25
            for earlier in range(t):
                assert min(seen.inside(t, earlier)) >= chance + 0.25


@pytest.mark.parametrize("peval_mode", ["epoch", "iteration"])
@pytest.mark.parametrize("method", BUILD)
def test_training_does_not_notice_it(method, peval_mode):
    """Weights and matrix are the same with and without, bit for bit, classes to come tested too."""
    benchmark, ends = two(), []
    for every in (-1, 1):
        torch.manual_seed(0)
        matrix = AccuracyMatrix()
        evaluator = EvaluationPlugin(matrix)
        strategy = BUILD[method](backbone=toy_backbone(), evaluator=evaluator)
        strategy.train_epochs = 2
        periodic(strategy, every, peval_mode)
        for experience in benchmark.train_stream:
            strategy.train(experience, eval_streams=[benchmark.test_stream])
            generators = torch.get_rng_state()
            strategy.eval(benchmark.test_stream)
            torch.set_rng_state(generators)
        ends.append((strategy.model.state_dict(), matrix.matrix))
    (one, first), (other, second) = ends
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert torch.equal(first, second)
    assert first.isfinite().all()


def test_it_leaves_the_minibatch_the_modes_and_the_optimizer():
    found = []

    class Evaluate(SupervisedPlugin):
        def after_update(self, strategy, **kwargs):
            names = ("mb_x", "mb_y", "mb_output", "mb_features", "mb_rows", "loss", "dataloader")
            before = [getattr(strategy, name) for name in names]
            modes = {name: m.training for name, m in strategy.model.named_modules()}
            state = copy.deepcopy(strategy.optimizer.state_dict())
            strategy.eval(benchmark.test_stream)
            assert all(a is getattr(strategy, n) for a, n in zip(before, names, strict=True))
            assert modes == {name: m.training for name, m in strategy.model.named_modules()}
            assert strategy.is_training
            after = strategy.optimizer.state_dict()
            assert str(state) == str(after)
            found.append(strategy.model.training)

    benchmark = two()
    strategy = BUILD["corrected"](backbone=toy_backbone(), plugins=[Evaluate()])
    strategy.train(benchmark.train_stream, eval_streams=[])
    assert found == [True] * 8


def test_early_stopping_on_a_validation_split_goes_on_while_it_rises():
    """It used to see 0 at every epoch, and stopped each experience after ``patience`` epochs."""
    torch.manual_seed(0)
    whole = two(per_class=12)
    benchmark = benchmark_with_validation_stream(whole, 0.25, shuffle=True, seed=0)
    best = []

    class Best(SupervisedPlugin):
        def after_training_exp(self, strategy, **kwargs):
            best.append((float(stop.best_val), stop.best_step))

    stop = EarlyStoppingPlugin(patience=1, val_stream_name="valid_stream")
    evaluator = EvaluationPlugin(accuracy_metrics(stream=True))
    strategy = BUILD["corrected"](
        backbone=toy_backbone(), plugins=[stop, Best()], evaluator=evaluator
    )
    periodic(strategy, 1)
    for train, valid in zip(benchmark.train_stream, benchmark.valid_stream, strict=True):
        strategy.train(train, eval_streams=[[valid]])
    for accuracy, step in best:
        assert accuracy > 0.7
        assert step >= 1  # the first epoch was better than none


def correct(model, experience):
    model.eval()
    data = experience.dataset.eval()
    batch = [data[i] for i in range(len(data))]
    x, t = torch.stack([b[0] for b in batch]), torch.tensor([b[2] for b in batch])
    right = (model(x, t).argmax(1) == torch.tensor([b[1] for b in batch])).float().mean()
    model.train()
    return float(right)


class Reader(SupervisedPlugin):
    """A user's plugin that reads the classifier as soon as an experience ends."""

    def __init__(self, benchmark):
        super().__init__()
        self.benchmark, self.accuracies = benchmark, []

    def after_training_exp(self, strategy, **kwargs):
        now = self.benchmark.test_stream[strategy.experience.current_experience]
        with torch.no_grad():
            self.accuracies.append(correct(strategy.model, now))


@pytest.mark.parametrize("method", [*BUILD, "nearest_class_mean"])
def test_a_plugin_that_reads_before_the_strategys_own_sees_the_new_classes(method):
    torch.manual_seed(0)
    benchmark = two()
    reader = Reader(benchmark)
    build = BUILD.get(method, build_nearest_class_mean)
    strategy = build(backbone=toy_backbone(), plugins=[reader], evaluator=None)
    strategy.train(benchmark.train_stream)
    assert min(reader.accuracies) >= 0.5  # a head without these classes predicts none of them


def class_means(backbone):
    return PEFTModel(backbone, FrozenBranch(), PrototypeHead(backbone.embed_dim))


@pytest.mark.parametrize("build", [NTKCLModel, class_means])
def test_prototypes_beside_the_hosts_own_strategy(build):
    """`HeadPlugin` reads the features of a forward pass that is not ours."""
    torch.manual_seed(0)
    benchmark, model = two(), build(toy_backbone())
    reader, seen = Reader(benchmark), Accuracies()
    trains = build is NTKCLModel
    first = [seen, reader] if trains else []
    strategy = Naive(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.03),
        train_mb_size=4,
        train_epochs=2 if trains else 0,
        plugins=[*first, HeadPlugin(), reader],
        evaluator=EvaluationPlugin(),
        eval_every=1,
    )
    for t, experience in enumerate(benchmark.train_stream):
        strategy.train(experience, eval_streams=[benchmark.test_stream[: t + 1]])
    assert min(reader.accuracies) > 0.5
    head = next(head for head in model.heads if head.fitted)
    assert head.counts.tolist() == [6] * 4
    for t in range(2 if trains else 0):
        assert min(seen.inside(t, t)) > 0.4


def test_running_means_go_on_with_the_state_of_the_plugin():
    torch.manual_seed(0)
    states = []

    class Stop(SupervisedPlugin):
        def after_update(self, strategy, **kwargs):
            states.append(own.state_dict())

    strategy = BUILD["corrected"](backbone=toy_backbone(), plugins=[Stop()])
    own = next(p for p in strategy.plugins if isinstance(p, HeadPlugin))
    experience = two().train_stream[0]
    strategy.train(experience)
    assert own.state_dict() == {}
    assert [sorted(s) for s in states] == [["0"]] * 4
    strategy.experience = experience
    own.before_training_exp(strategy)
    own.load_state_dict(states[1])
    running = strategy.model.prototypes.running
    assert torch.equal(running.means, states[1]["0"]["means"])
    assert running.seen.tolist() == [6, 6]
