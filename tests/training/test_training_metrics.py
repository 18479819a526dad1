"""What the host's metrics and loggers see of training, schedules, and one class an experience."""

import math
import warnings

import pytest
import torch
from avalanche.core import SupervisedPlugin
from avalanche.evaluation.metrics import accuracy_metrics, loss_metrics
from avalanche.training.plugins import EvaluationPlugin, LRSchedulerPlugin, ReplayPlugin
from torch.optim.lr_scheduler import MultiStepLR, ReduceLROnPlateau

from avalanche_peftcl.errors import ConfigError, ConfigWarning
from avalanche_peftcl.models import NTKCLModel
from avalanche_peftcl.testing import toy_backbone, toy_benchmark
from avalanche_peftcl.training import NTKCL
from avalanche_peftcl.training.naive import build_naive
from avalanche_peftcl.training.ntk_cl import build_ntk_cl
from avalanche_peftcl.training.pegp import build_pegp

pytestmark = [
    pytest.mark.filterwarnings("ignore:No loggers specified"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

LONG = {"train_mb_size": 4, "train_epochs": 4}


def proxies(recipe, *, backbone, **options):
    """Build NTK-CL with an optimizer that moves its proxies in a few steps."""
    model = NTKCLModel(backbone, recipe=recipe)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    options = {"evaluator": EvaluationPlugin()} | LONG | options
    return NTKCL(model=model, optimizer=optimizer, **options)


BUILD = {
    "corrected": lambda **o: proxies("corrected", **o),
    "released": lambda **o: proxies("released", **o),
    "pegp": lambda **o: build_pegp(
        head_epochs=1, projection=False, merge_epochs=0, lr=0.003, **LONG, **o
    ),
    "naive": lambda **o: build_naive(optimizer="adam", lr=0.003, **LONG, **o),
}


@pytest.mark.parametrize("scenario", ["class", "task", "domain"])
@pytest.mark.parametrize("method", BUILD)
def test_accuracy_and_loss_of_training(method, scenario):
    """In later experiences too: the prototypes or rows of old classes are not what is trained."""
    torch.manual_seed(0)
    evaluator = EvaluationPlugin(
        accuracy_metrics(minibatch=True, epoch=True), loss_metrics(minibatch=True, epoch=True)
    )
    outputs = []

    class Keep(SupervisedPlugin):
        def after_training_iteration(self, strategy, **kwargs):
            outputs.append((strategy.mb_output, strategy.mb_y))

    strategy = BUILD[method](backbone=toy_backbone(), evaluator=evaluator, plugins=[Keep()])
    benchmark = toy_benchmark(scenario, classes_per_experience=(2, 2))
    for t, experience in enumerate(benchmark.train_stream[:2]):
        strategy.train(experience, eval_streams=[])
        found = evaluator.get_all_metrics()
        for name, (_, values) in found.items():
            assert all(map(math.isfinite, values)), name
        label = t if scenario == "task" else 0
        (accuracy,) = (v for k, (_, v) in found.items() if _is(k, "Acc_Epoch", label))
        (loss,) = (v for k, (_, v) in found.items() if _is(k, "Loss_Epoch", label))
        epochs = strategy.train_epochs
        assert len(accuracy) == epochs * (1 if scenario == "task" else t + 1)
        chance = 1 / 4 if scenario == "domain" else 1 / 2
        assert max(accuracy[-epochs:]) >= chance  # it was 0 where old rows took part
        assert min(loss[-epochs:]) < max(loss[-epochs:])
        assert max(loss[-epochs:]) < 50  # no -1000 of a masked class in it
        if method != "naive":
            classes = set(experience.dataset.targets)
            assert {int(c) for out, _ in outputs for c in out.argmax(1)} <= classes
        outputs.clear()


def _is(key, metric, label):
    return f"{metric}/train_phase" in key and key.endswith(f"Task{label:03d}")


@pytest.mark.parametrize("method", ["corrected", "pegp"])
def test_the_output_holds_what_the_loss_compares(method):
    """Plugins that add to the loss see all logits, with gradient; metrics those compared."""
    before, after, replayed = [], [], []

    class Look(SupervisedPlugin):
        def before_backward(self, strategy, **kwargs):
            before.append(strategy.mb_output)

        def after_training_iteration(self, strategy, **kwargs):
            after.append(strategy.mb_output)
            replayed.append(sorted(set(strategy.mb_y.tolist())))

    benchmark = toy_benchmark(classes_per_experience=(2, 2))
    strategy = BUILD[method](backbone=toy_backbone(), plugins=[Look()])
    strategy.train_epochs = 1
    strategy.train(benchmark.train_stream, eval_streams=[])
    assert before[-1].requires_grad
    assert (before[-1] > -1000).all()
    assert (after[-1][:, :2] == -1000).all()
    assert torch.equal(after[-1][:, 2:], before[-1].detach()[:, 2:])

    strategy = BUILD[method](backbone=toy_backbone(), plugins=[ReplayPlugin(6), Look()])
    strategy.train_epochs = 1
    strategy.train(benchmark.train_stream, eval_streams=[])
    old = [c for c in replayed[-1] if c < 2]
    assert old
    assert (after[-1][:, [*old, 2, 3]] > -1000).all()


# --- schedules -----------------------------------------------------------------------------------


class Rates(SupervisedPlugin):
    def __init__(self):
        super().__init__()
        self.rates = []

    def before_training_epoch(self, strategy, **kwargs):
        self.rates.append(round(strategy.optimizer.param_groups[0]["lr"], 6))


def ntk_cl(schedule, **options):
    model = NTKCLModel(toy_backbone())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    rates = Rates()
    theirs = [] if schedule is None else [schedule(optimizer)]
    strategy = NTKCL(
        model=model,
        optimizer=optimizer,
        plugins=[*theirs, rates],
        train_epochs=4,
        train_mb_size=12,
        evaluator=EvaluationPlugin(),
        **options,
    )
    strategy.train(toy_benchmark(classes_per_experience=(2, 2)).train_stream, eval_streams=[])
    return rates.rates


def steps(optimizer):
    return LRSchedulerPlugin(MultiStepLR(optimizer, milestones=[2]))


class Own(SupervisedPlugin):
    """A user's plugin with a scheduler under any name."""

    def __init__(self, optimizer):
        super().__init__()
        self.mine = ReduceLROnPlateau(optimizer)


def test_one_schedule_acts():
    stairs, cosine = [0.1, 0.1, 0.01, 0.01], [0.1, 0.085355, 0.05, 0.014645]
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConfigWarning)
        assert ntk_cl(steps) == stairs * 2
        assert ntk_cl(Own) == [0.1] * 8
        assert ntk_cl(None) == ntk_cl(None, anneal=True) == cosine * 2
        assert ntk_cl(None, anneal=False) == [0.1] * 8
    with pytest.warns(ConfigWarning, match="LRSchedulerPlugin sets the learning rate"):
        assert ntk_cl(steps, anneal=True) == stairs * 2


def test_a_schedule_of_another_optimizer_is_no_conflict():
    other = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    assert ntk_cl(lambda _: Own(other))[1] == 0.085355


# --- one class an experience ---------------------------------------------------------------------


def one_class(build, **options):
    torch.manual_seed(0)
    benchmark = toy_benchmark(classes_per_experience=(1, 1, 1))
    strategy = build(
        backbone=toy_backbone(), train_mb_size=3, train_epochs=4, evaluator=None, **options
    )
    strategy.train(benchmark.train_stream[:2], eval_streams=[])
    return strategy, benchmark


def test_pegp_over_one_class_is_told_and_seen_learns_it():
    with pytest.warns(ConfigWarning, match='PEGP compares .* loss="seen"') as told:
        strategy, _ = one_class(build_pegp)
    assert sum(w.category is ConfigWarning for w in told) == 1
    assert not strategy.model.head.weight.any()
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConfigWarning)
        strategy, benchmark = one_class(build_pegp, loss="seen", lr=0.01, merge_epochs=0)
    images = torch.stack([x for x, _, _ in benchmark.test_stream[1].dataset])
    assert (strategy.model.eval()(images).argmax(1) == 1).all()
    assert strategy.model.head.weight.any()


def test_ntk_cl_over_one_class_is_told_and_predicts_by_its_means():
    with pytest.warns(ConfigWarning, match="NTKCL compares"):
        strategy, benchmark = one_class(build_ntk_cl)
    model = strategy.model.eval()
    for t in range(2):
        images = torch.stack([x for x, _, _ in benchmark.test_stream[t].dataset])
        assert (model(images).argmax(1) == t).float().mean() > 0.6


def test_naive_over_one_class_learns_and_a_wrong_loss_is_refused():
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConfigWarning)
        strategy, _ = one_class(build_naive)
    assert strategy.model.head.weight.any()
    with pytest.raises(ConfigError, match="loss must be local or seen, not 'all'"):
        build_pegp(backbone=toy_backbone(), loss="all")
