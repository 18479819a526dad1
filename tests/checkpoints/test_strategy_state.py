"""What strategies, networks, optimizers, plugins and metrics remember, taken down and set back."""

import copy
import time
from collections import OrderedDict

import pytest
import torch
from avalanche.core import SupervisedPlugin
from avalanche.evaluation import metrics as host_metrics
from avalanche.models import IncrementalClassifier
from avalanche.training import Naive
from avalanche.training.plugins import (
    EvaluationPlugin,
    EWCPlugin,
    LRSchedulerPlugin,
    LwFPlugin,
    ReplayPlugin,
)
from avalanche.training.storage_policy import ClassBalancedBuffer
from torch import nn

from avalanche_peftcl.checkpoints.archive import decode_state, encode_state
from avalanche_peftcl.checkpoints.host_plugins import positions
from avalanche_peftcl.checkpoints.joints import Surroundings
from avalanche_peftcl.checkpoints.model_state import (
    Frozen,
    load_model_state,
    load_optimizer_state,
    model_state,
    optimizer_state,
)
from avalanche_peftcl.checkpoints.remembered import state_of
from avalanche_peftcl.checkpoints.strategy_state import StrategyState
from avalanche_peftcl.errors import CheckpointError
from avalanche_peftcl.evaluation import AccuracyMatrix, CostMetric
from avalanche_peftcl.models import ClassRows, LinearHead
from avalanche_peftcl.models.rng import random_state, set_random_state
from avalanche_peftcl.testing import toy_benchmark
from avalanche_peftcl.training import PEFTTemplate
from avalanche_peftcl.training.plugins import RetentionPlugin

CPU = torch.device("cpu")


def as_read(state):
    """Return a state as another process reads it."""
    return decode_state(encode_state(state), "it")


def network() -> nn.Module:
    """Return a frozen layer and a head of Avalanche's that is made anew when it grows."""
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Flatten(), nn.Linear(768, 8)).requires_grad_(False)
    tuned, head = nn.Linear(8, 8), IncrementalClassifier(8, initial_out_features=1)
    return nn.Sequential(OrderedDict(backbone=backbone, tuned=tuned, head=head))


def strategy(*plugins, metrics=(), optimizer=torch.optim.Adam) -> PEFTTemplate:
    model = network()
    return PEFTTemplate(
        model=model,
        optimizer=optimizer(model.parameters(), lr=0.01),
        train_mb_size=4,
        train_epochs=2,
        eval_mb_size=8,
        plugins=plugins,
        evaluator=EvaluationPlugin(*metrics),
    )


def kinds():
    return {
        "none": lambda: strategy(),
        "sgd": lambda: strategy(optimizer=torch.optim.SGD),
        "ewc": lambda: strategy(EWCPlugin(ewc_lambda=1.0)),
        "ewc online": lambda: strategy(EWCPlugin(1.0, mode="online", decay_factor=0.5)),
        "lwf": lambda: strategy(LwFPlugin(alpha=[0.0, 1.0, 2.0])),
        "replay": lambda: strategy(ReplayPlugin(mem_size=5)),
        "scheduler": lambda: scheduled(),
        "retention": lambda: strategy(RetentionPlugin(0.1)),
    }


def scheduled() -> PEFTTemplate:
    built = strategy()
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(built.optimizer, patience=0)
    built.plugins.insert(0, LRSchedulerPlugin(scheduler, metric="train_loss", reset_lr=False))
    return built


def trained(built, experiences):
    for experience in experiences:
        built.train(experience, eval_streams=[])
    return {k: v.clone() for k, v in built.model.state_dict().items()}


@pytest.mark.parametrize("kind", kinds())
def test_a_new_strategy_goes_on_like_the_old_one(kind):
    build, stream = kinds()[kind], toy_benchmark("class").train_stream
    old = build()
    trained(old, stream[:2])
    taker = StrategyState(old, frozen=[old.model.backbone])
    saved = as_read({"state": taker.save(trained=stream[:2]), "random": random_state(CPU)})
    assert not any("backbone" in name for name in saved["state"]["model"])
    expected = trained(old, stream[2:])

    new = build()
    frozen = [new.model.backbone]
    StrategyState(new, frozen=frozen).load(saved["state"], trained=stream[:2], tested=[])
    set_random_state(saved["random"], CPU)
    got = trained(new, stream[2:])
    assert got.keys() == expected.keys()
    assert [name for name in got if not torch.equal(got[name], expected[name])] == []
    assert new.clock.train_iterations == old.clock.train_iterations == 18
    state, other = optimizer_state(old), optimizer_state(new)
    assert state["groups"] == other["groups"]
    assert all(
        torch.equal(torch.as_tensor(state["state"][name][key]), torch.as_tensor(value))
        for name, values in other["state"].items()
        for key, value in values.items()
        if value is not None
    )


def test_the_copy_that_is_distilled_from_is_in_the_modes_it_was_in():
    old, new = strategy(LwFPlugin()), strategy(LwFPlugin())
    stream = toy_benchmark("class").train_stream
    trained(old, stream[:1])
    (plugin, *_), (other, *_) = old.plugins, new.plugins
    plugin.lwf.prev_model.tuned.eval()
    saved = StrategyState(old).save(trained=stream[:1])
    StrategyState(new).load(as_read(saved), trained=stream[:1], tested=[])
    modes = {name: module.training for name, module in other.lwf.prev_model.named_modules()}
    assert modes["tuned"] is False
    assert modes["head"] is True
    assert other.lwf.prev_classes_by_task == plugin.lwf.prev_classes_by_task


def test_frozen_tensors_are_left_out_until_they_change():
    model = network()
    frozen = Frozen([model.backbone])
    assert frozen.names(model) == {"backbone.1.weight", "backbone.1.bias"}
    assert set(model_state(model, frozen=frozen)) == set(model.state_dict()) - frozen.names(model)
    model.backbone[1].bias.requires_grad_(True)
    assert frozen.names(model) == {"backbone.1.weight"}
    model.backbone[1].weight.add_(1)
    assert frozen.names(model) == set()
    assert Frozen().names(model) == set()


def test_tensors_of_another_size_are_made_anew():
    model, other = network(), network()
    head = nn.Linear(8, 5)
    other.head.classifier, other.head.active_units = head, torch.ones(5, dtype=torch.int8)
    load_model_state(model, model_state(other))
    assert torch.equal(model.head.classifier.weight, head.weight)
    assert len(model.head.active_units) == 5


def test_names_that_do_not_fit_are_told():
    model = network()
    state = model_state(model)
    del state["tuned.bias"]
    load_model_state(model, state, missing=["tuned.bias"])
    with pytest.raises(CheckpointError, match=r"do not fit Sequential: missing: tuned\.bias"):
        load_model_state(model, state)
    state |= {"tuned.bias": torch.zeros(8), "nowhere.weight": torch.zeros(1)}
    with pytest.raises(CheckpointError, match=r"unexpected: nowhere\.weight"):
        load_model_state(model, state)


def test_heads_that_grow_load_with_their_columns():
    rows = ClassRows()
    rows.add([(0, 3), (0, 1)])
    rows.widen(9)
    other = ClassRows()
    other.load_state_dict(rows.state_dict())
    assert other.num_outputs == 9
    assert torch.equal(other.keys, rows.keys)
    head = LinearHead(2)
    load_model_state(head, {"weight": torch.ones(3, 2), "bias": torch.ones(3)})
    assert head.weight.shape == (3, 2)


def test_the_state_of_a_parameter_that_was_replaced_is_left_out():
    built = strategy()
    built.train(toy_benchmark("class").train_stream[0], eval_streams=[])
    assert "head.classifier.weight" in optimizer_state(built)["state"]
    built.model.head.classifier = nn.Linear(8, 4)
    state = optimizer_state(built)
    assert "head.classifier.weight" not in state["state"]
    assert "tuned.weight" in state["state"]
    assert "head.classifier.weight" in state["groups"][0]["params"]
    load_optimizer_state(built, state)
    assert built.optimizer.param_groups[0]["params"][2] is built.model.head.classifier.weight


def test_an_optimizer_of_something_else_is_told():
    built = strategy()
    built.train(toy_benchmark("class").train_stream[0], eval_streams=[])
    built.optimizer.param_groups[0]["params"].append(nn.Parameter(torch.zeros(1)))
    with pytest.raises(CheckpointError, match="a parameter that is none of the model's"):
        optimizer_state(built)


WAY_OUT = 'remembers = ("name", ...), or remembers = () for nothing'


class Watcher(SupervisedPlugin):
    def __init__(self, watched=None):
        super().__init__()
        self.n, self.watched = 0, watched


class OwnNaive(Naive):
    pass


class OwnEWC(EWCPlugin):
    pass


def test_what_cannot_be_known_is_listed():
    model = network()
    built = OwnNaive(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        plugins=[
            Watcher(),
            Watcher(model),
            OwnEWC(1.0),
            ReplayPlugin(mem_size=4, storage_policy=ClassBalancedBuffer(4)),
        ],
        evaluator=EvaluationPlugin(AccuracyMatrix(), Watcher(object()), loggers=[]),
    )
    assert StrategyState(built).obstacles() == [
        f"OwnNaive is a Naive and does not say what it keeps beside: {WAY_OUT}",
        f"Watcher.watched is a Sequential, whose state is not known; say what Watcher keeps: "
        f"{WAY_OUT}",
        f"OwnEWC is a EWCPlugin and does not say what it keeps beside: {WAY_OUT}",
        "ReplayPlugin keeps its images by ClassBalancedBuffer; only ExperienceBalancedBuffer, its "
        "default, is known",
        f"Watcher.watched is a object, whose state is not known; say what Watcher keeps: {WAY_OUT}",
    ]
    with pytest.raises(CheckpointError, match="OwnNaive is a Naive and does not say"):
        StrategyState(built).save(trained=[])


@pytest.mark.parametrize("scenario", ["class", "online", "domain"])
def test_positions_lead_back_to_the_images(scenario):
    for experience in toy_benchmark(scenario, experience_size=6).train_stream[:3]:
        whole = experience.dataset
        part = whole.subset([5, 1, 3, 0]).subset([2, 0, 3])
        assert positions(part, whole) == [3, 5, 0]
        assert positions(whole.eval().subset([4]), whole) == [4]


def test_positions_of_images_from_elsewhere_are_refused():
    one, other = toy_benchmark("class").train_stream[:2]
    with pytest.raises(CheckpointError, match="none of the experience it was taken from"):
        positions(other.dataset, one.dataset)


HOST_METRICS = {
    "accuracy": lambda: host_metrics.accuracy_metrics(epoch=True, stream=True),
    "loss": lambda: host_metrics.loss_metrics(epoch=True, experience=True),
    "class accuracy": lambda: host_metrics.class_accuracy_metrics(epoch=True, stream=True),
    "forgetting": lambda: host_metrics.forgetting_metrics(experience=True, stream=True),
    "backward transfer": lambda: host_metrics.bwt_metrics(experience=True, stream=True),
    "time": lambda: host_metrics.timing_metrics(epoch=True),
}


@pytest.mark.parametrize("kind", HOST_METRICS)
def test_metrics_of_avalanche_give_what_they_would_have(kind):
    def build():
        return strategy(metrics=HOST_METRICS[kind]())

    benchmark, results = toy_benchmark("class"), {}
    for stop in (False, True):
        built = build()
        for t, experience in enumerate(benchmark.train_stream):
            built.train(experience, eval_streams=[])
            built.eval(benchmark.test_stream[: t + 1])
            if stop and t == 1:
                held = as_read(StrategyState(built).save(trained=benchmark.train_stream[:2]))
                random, built = random_state(CPU), build()
                StrategyState(built).load(
                    held,
                    trained=benchmark.train_stream[:2],
                    tested=benchmark.test_stream[:2],
                )
                set_random_state(random, CPU)
        results[stop] = built.evaluator.get_last_metrics(), built.evaluator.get_all_metrics()
    (last, every), (other_last, other_every) = results[False], results[True]
    assert last.keys() == other_last.keys()
    assert last
    if kind != "time":
        assert other_last == last
        assert {k: list(v) for k, v in every.items()} == {
            k: list(v) for k, v in other_every.items()
        }


def test_a_metric_of_avalanche_that_cannot_be_written_down_is_told():
    metric, around = host_metrics.Mean(), Surroundings(None)
    metric.thread = time.sleep  # a function is left out, it comes with the metric
    assert state_of(metric, around)["host"].keys() == {"summed", "weight"}
    metric.thread = object()
    with pytest.raises(CheckpointError, match=r"Mean\.thread is a object"):
        state_of(metric, around)


def test_the_accuracy_matrix_remembers():
    metric, other = AccuracyMatrix(), AccuracyMatrix()
    metric.record(None, 0, correct=1, total=10)
    metric.record(0, 0, correct=9, total=10)
    other.load_state_dict(copy.deepcopy(metric.state_dict()))
    assert other.summary() == metric.summary()
    other.record(0, 0, correct=0, total=10)
    assert metric.summary()["last_accuracy"] == 0.9


def test_the_cost_goes_on_from_what_was_spent():
    built = strategy(metrics=[CostMetric()])
    benchmark = toy_benchmark("class")
    built.train(benchmark.train_stream[0], eval_streams=[])
    built.eval(benchmark.test_stream[:1])
    (metric,) = built.evaluator.metrics
    state = metric.state_dict() | {"peak": 10**15}
    state["meter"]["seconds"]["training"] = {0: 100.0}
    new = strategy(metrics=[CostMetric()])
    (other,) = new.evaluator.metrics
    other.load_state_dict(state)
    new.train(benchmark.train_stream[1], eval_streams=[])
    summary = other.summary()
    assert summary["training_seconds"][0] == 100.0
    assert 0 < summary["training_seconds"][1] < 100
    assert summary["evaluation_seconds"][0] == metric.summary()["evaluation_seconds"][0]
    assert summary["peak_memory_bytes"] == 10**15


def test_the_cost_inside_an_experience_counts_the_time_so_far():
    metric = CostMetric()
    built = strategy(metrics=[metric])
    seen = []

    class Look(SupervisedPlugin):
        def after_training_iteration(self, strategy, **kwargs):
            seen.append(metric.state_dict()["meter"]["seconds"]["training"][0])

    built.plugins.insert(0, Look())
    built.train(toy_benchmark("class").train_stream[0], eval_streams=[])
    assert 0 < seen[0] < seen[-1] <= metric.summary()["training_seconds"][0]
