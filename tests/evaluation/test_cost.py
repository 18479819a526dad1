"""The cost of a run inside Avalanche; clocks are replaced, so no assertion depends on speed."""

import io
import sys

import pytest
import torch
from avalanche.benchmarks.scenarios.supervised import class_incremental_benchmark
from avalanche.benchmarks.utils import as_classification_dataset
from avalanche.core import SupervisedPlugin
from avalanche.logging import TextLogger
from avalanche.training.plugins import EvaluationPlugin, EWCPlugin, LwFPlugin, ReplayPlugin
from avalanche.training.supervised import Naive
from torch import nn
from torch.utils.data import TensorDataset

from avalanche_peftcl.evaluation import CostMetric, cost, cost_metrics
from avalanche_peftcl.models import meter
from avalanche_peftcl.testing import toy_backbone, toy_benchmark
from avalanche_peftcl.training.naive import build_naive


class Model(nn.Module):
    """A frozen backbone of 21 floats under two names, and a head of 12 that trains."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Linear(6, 3).requires_grad_(False)
        self.branch = nn.ModuleDict({"backbone": self.backbone})
        self.head = nn.Linear(3, 3)
        self.register_buffer("prototypes", torch.zeros(5))
        self.register_buffer("seen", torch.zeros(7, dtype=torch.int64))
        self.register_buffer("scratch", torch.zeros(11), persistent=False)
        self.forward_passes = 2

    def forward(self, x):
        return self.head(self.backbone(x))


def benchmark():
    y = torch.arange(3).repeat(4)
    data = TensorDataset(torch.randn(12, 6, generator=torch.Generator().manual_seed(0)), y)
    data.targets = y.tolist()
    data = as_classification_dataset(data)
    return class_incremental_benchmark({"train": data, "test": data}, num_experiences=3, seed=0)


def make(*metrics, model=None, **options):
    model = model or Model()
    return Naive(
        model=model,
        optimizer=torch.optim.SGD(model.head.parameters(), lr=0.1),
        train_mb_size=4,
        evaluator=EvaluationPlugin(*metrics, loggers=[TextLogger(io.StringIO())]),
        **options,
    )


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still unless told."""

    class Clock:
        now = 100.0

        def perf_counter(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr(meter, "time", clock)
    return clock


class Sleeper(SupervisedPlugin):
    """Two seconds an epoch of training, five an evaluated experience."""

    def __init__(self, clock):
        super().__init__()
        self.clock = clock

    def after_training_epoch(self, strategy, **kwargs):
        self.clock.now += 2

    def after_eval_exp(self, strategy, **kwargs):
        self.clock.now += 5


class Memory(SupervisedPlugin):
    stored_floats = 1000


def test_counts():
    metric = cost_metrics()
    strategy = make(metric, plugins=[Memory()])
    for experience in benchmark().train_stream:
        strategy.train(experience, eval_streams=[])
    summary = metric.summary()
    assert summary["trainable_parameters"] == 12
    assert summary["total_parameters"] == 33
    assert summary["trainable_share"] == 12 / 33
    assert summary["stored_floats"] == 12 + 5 + 1000
    assert summary["forward_passes"] == 2
    assert len(summary["training_seconds"]) == 3
    assert metric.result() == summary


@pytest.mark.parametrize(
    ("plugin", "kept"),
    [
        (lambda: ReplayPlugin(6), [4 * 6, 6 * 6, 6 * 6]),  # images of six numbers
        (lambda: EWCPlugin(1.0), [24, 48, 72]),  # of each experience 12 weights, and what they mean
    ],
    ids=["replay", "ewc"],
)
def test_what_avalanches_plugins_keep_is_counted(plugin, kept):
    metric, found = cost_metrics(), []
    strategy = make(metric, plugins=[plugin()])
    for experience in benchmark().train_stream:
        strategy.train(experience, eval_streams=[])
        found.append(metric.summary()["stored_floats"] - (12 + 5))
    assert found == kept


def test_the_network_before_is_counted_without_its_backbone():
    metric = cost_metrics()
    strategy = build_naive(
        backbone=toy_backbone(),
        plugins=[LwFPlugin()],
        evaluator=EvaluationPlugin(metric, loggers=[TextLogger(io.StringIO())]),
        train_epochs=1,
    )
    strategy.train(toy_benchmark().train_stream[0], eval_streams=[])
    summary = metric.summary()
    assert summary["stored_floats"] == 2 * summary["trainable_parameters"]


def test_a_plain_model_has_no_backbone():
    model = nn.Sequential()
    model.head = nn.Linear(6, 3)
    metric = CostMetric()
    make(metric, model=model).train(benchmark().train_stream[0], eval_streams=[])
    summary = metric.summary()
    assert summary["trainable_parameters"] == summary["stored_floats"] == 21
    assert summary["trainable_share"] == summary["forward_passes"] == 1


def test_what_is_frozen_after_training_has_trained():
    class Freeze(SupervisedPlugin):
        def after_training_exp(self, strategy, **kwargs):
            strategy.model.requires_grad_(False)

    metric = CostMetric()
    make(metric, plugins=[Freeze()]).train(benchmark().train_stream[0], eval_streams=[])
    assert metric.summary()["trainable_parameters"] == 12


def test_seconds(clock):
    metric = CostMetric()
    strategy = make(metric, plugins=[Sleeper(clock)], train_epochs=3)
    streams = benchmark()
    strategy.eval(streams.test_stream)  # before any training: no experience to book it on
    for t, experience in enumerate(streams.train_stream):
        clock.now += 1000  # between the calls nothing counts
        strategy.train(experience, eval_streams=[])
        strategy.eval(streams.test_stream[: t + 1])
    strategy.eval(streams.test_stream)
    summary = metric.summary()
    assert summary["training_seconds"] == [6, 6, 6]
    assert summary["evaluation_seconds"] == [5, 10, 30]
    emitted = strategy.evaluator.get_last_metrics()
    assert emitted["Training_Seconds/train_phase/train_stream"] == 6
    assert emitted["Evaluation_Seconds/eval_phase/test_stream"] == 30


def test_evaluation_inside_training_is_no_training(clock):
    metric = CostMetric()
    strategy = make(metric, plugins=[Sleeper(clock)], train_epochs=2, eval_every=1)
    streams = benchmark()
    strategy.train(streams.train_stream, eval_streams=[streams.test_stream])
    summary = metric.summary()
    assert summary["training_seconds"] == [4, 4, 4]
    assert summary["evaluation_seconds"] == [30, 30, 30]


def test_an_interrupted_training_leaves_no_clock_running(clock):
    class Interrupt(SupervisedPlugin):
        armed = True

        def after_training_epoch(self, strategy, **kwargs):
            if self.armed:
                raise KeyboardInterrupt

    metric, interrupt = CostMetric(), Interrupt()
    strategy = make(metric, plugins=[Sleeper(clock), interrupt])
    streams = benchmark()
    with pytest.raises(KeyboardInterrupt):
        strategy.train(streams.train_stream[0], eval_streams=[])
    interrupt.armed = False
    clock.now += 1000
    strategy.train(streams.train_stream[1], eval_streams=[])
    assert metric.summary()["training_seconds"] == [0, 2]


def test_emitted_names():
    metric = CostMetric()
    strategy = make(metric)
    strategy.train(benchmark().train_stream[0], eval_streams=[])
    emitted = strategy.evaluator.get_last_metrics()
    assert {name.split("/")[0] for name in emitted} >= {
        "Trainable_Parameters",
        "Trainable_Share",
        "Stored_Floats",
        "Forward_Passes",
        "Training_Seconds",
    }
    assert all(name.endswith("/train_phase/train_stream") for name in emitted)
    assert emitted["Trainable_Parameters/train_phase/train_stream"] == 12


def test_peak_memory(monkeypatch):
    metric = CostMetric()
    held = torch.ones(2_000_000)
    make(metric).train(benchmark().train_stream[0], eval_streams=[])
    if sys.platform != "win32":
        assert metric.summary()["peak_memory_bytes"] > held.numel() * held.element_size()
    monkeypatch.setattr(sys, "platform", "win32")
    assert cost.peak_memory_bytes(torch.device("cpu")) is None
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 4096)
    assert cost.peak_memory_bytes(torch.device("cuda", 0)) == 4096


def test_reset():
    metric = CostMetric()
    fresh = metric.summary()
    make(metric).train(benchmark().train_stream[0], eval_streams=[])
    assert metric.summary() != fresh
    metric.reset()
    assert metric.summary() == fresh
