"""A budget ends the steps of every method alike, of all its stages, and of no other experience."""

import pytest
import torch
from avalanche.benchmarks.scenarios.online import split_online_stream
from avalanche.core import SupervisedPlugin
from avalanche.training.plugins import EvaluationPlugin
from avalanche.training.supervised import Cumulative, JointTraining, Naive
from torch import nn

from avalanche_peftcl.errors import BudgetError, ConfigError
from avalanche_peftcl.evaluation import AnyTimeMetric, CostMetric
from avalanche_peftcl.models import RidgeHead, meter
from avalanche_peftcl.testing import toy_backbone, toy_benchmark
from avalanche_peftcl.training.closed_form import build_closed_form
from avalanche_peftcl.training.joint import build_joint, visits
from avalanche_peftcl.training.naive import build_naive
from avalanche_peftcl.training.ntk_cl import build_ntk_cl
from avalanche_peftcl.training.pegp import build_pegp
from avalanche_peftcl.training.plugins import BudgetPlugin, FeatureReplayPlugin
from avalanche_peftcl.training.plugins.host import replay

IMAGES = 12  # of an experience


def host(kind):
    """Return a builder of a strategy of Avalanche's own."""

    def build(*, backbone, **options):
        model = nn.Sequential(backbone, nn.Linear(32, 12))
        optimizer = torch.optim.SGD(model[1].parameters(), lr=0.1)
        return kind(model=model, optimizer=optimizer, criterion=nn.CrossEntropyLoss(), **options)

    return build


def built(build, *, budget, **options):
    cost = CostMetric()
    evaluator = EvaluationPlugin(cost, loggers=[])
    strategy = build(backbone=toy_backbone(), evaluator=evaluator, **options)
    strategy.plugins.append(budget)
    return strategy, cost


def trained(build, *, budget, experiences=2, **options):
    strategy, cost = built(build, budget=budget, **options)
    benchmark = toy_benchmark("class")
    stream = benchmark.train_stream[:experiences]
    for number, visit in enumerate(visits(strategy, stream)):
        strategy.train(visit, eval_streams=[])
        strategy.eval(benchmark.test_stream[: number + 1])
    assert not strategy._stop_training
    return cost.summary(), budget.summary()["experiences"]


STEPS = {"train_mb_size": 4, "train_epochs": 3}


@pytest.mark.parametrize(
    ("build", "options", "steps", "passes"),
    [
        (build_naive, {}, [5, 5], [5 / 3, 5 / 3]),
        (host(Naive), {}, [5, 5], [5 / 3, 5 / 3]),
        (host(Cumulative), {}, [5, 5], [5 / 3, 5 / 3]),
        # a memory of 4 passes with each minibatch of the second experience
        (build_naive, {"plugins": [replay(mem_size=4)]}, [5, 3], [5 / 3, 2]),
        # four passes an image: two steps are more than enough; class means are read after them
        (build_ntk_cl, {}, [2, 2], [8 / 3 + 4, 8 / 3 + 4]),
        # the second stage takes no step where nothing is left; statistics are read after them
        (build_pegp, {"n_samples": 6, "head_epochs": 1}, [5, 5], [5 / 3 + 0.5, 5 / 3 + 0.5]),
        (build_joint, {}, [0, 9], [0.0, 1.5]),
    ],
    ids=["naive", "host", "cumulative", "replay", "ntk_cl", "pegp", "joint"],
)
def test_every_method_ends_with_the_step_that_uses_it_up(build, options, steps, passes):
    cost, told = trained(build, budget=BudgetPlugin(passes=1.5), **STEPS, **options)
    assert cost["training_steps"] == steps
    assert cost["training_passes"] == pytest.approx(passes)
    assert all(report["ended"] for report in told)
    assert [report["training_passes"] for report in told] == pytest.approx(
        [value for value in passes if value]
    )


def test_a_whole_stream_in_one_call_and_the_hosts_joint_training():
    stream = toy_benchmark("class").train_stream[:2]
    budget = BudgetPlugin(passes=1.5)
    strategy, cost = built(host(Naive), budget=budget, **STEPS)
    strategy.train(stream, eval_streams=[])
    assert cost.summary()["training_steps"] == [5, 5]
    assert [report["training_passes"] for report in budget.summary()["experiences"]] == [5 / 3] * 2
    budget = BudgetPlugin(passes=1.5)
    strategy, cost = built(host(JointTraining), budget=budget, **STEPS)
    strategy.train(stream, eval_streams=[])
    assert cost.summary()["training_passes"] == [0.0, 1.5]
    assert (
        budget.headline() == "budget: 1.5 of 1.5 passes, which ended training after 1.5 of 3 epochs"
    )


def test_what_is_left_in_the_last_step_ends_nothing_and_not_the_next_experience():
    cost, told = trained(build_naive, budget=BudgetPlugin(passes=3), experiences=3, **STEPS)
    assert cost["training_steps"] == [9, 9, 9]
    assert [report["ended"] for report in told] == [False] * 3
    cost, told = trained(build_naive, budget=BudgetPlugin(passes=2.0), **STEPS)
    assert cost["training_steps"] == [6, 6]
    assert [(report["ended"], report["epochs"]) for report in told] == [(True, 2.0)] * 2


def test_a_second_stage_ends_too():
    options = {"n_samples": 6, "head_epochs": 1, "merge_epochs": 2}
    cost, told = trained(build_pegp, budget=BudgetPlugin(passes=4.5), **STEPS, **options)
    # three epochs, then two passes an image for half of them and one image more
    assert cost["training_steps"] == [9, 9 + 3]
    assert [report["ended"] for report in told] == [False, True]


def test_it_does_not_stop_between_the_minibatches_of_a_step():
    options = STEPS | {"accumulation_steps": 2}
    cost, _ = trained(build_naive, budget=BudgetPlugin(passes=0.3), **options)
    assert cost["training_passes"] == [8 / IMAGES] * 2
    assert cost["training_steps"] == [1, 1]


def test_evaluations_inside_training_use_nothing_and_are_not_ended():
    strategy, cost = built(host(Naive), budget=BudgetPlugin(passes=1.5), eval_every=1, **STEPS)
    benchmark = toy_benchmark("class")
    evaluated = []

    class Look(SupervisedPlugin):
        def after_eval_iteration(self, strategy, **kwargs):
            evaluated.append(len(strategy.mb_x))

    strategy.plugins.insert(0, Look())
    strategy.train(benchmark.train_stream[0], eval_streams=[benchmark.test_stream[:1]])
    assert cost.summary()["training_steps"] == [5]
    assert sum(evaluated) % len(benchmark.test_stream[0].dataset) == 0


def test_chunks_share_the_budget_as_they_come():
    budget = BudgetPlugin(passes=1.0)
    strategy, cost = built(build_naive, budget=budget, train_mb_size=2, train_epochs=3)
    stream = toy_benchmark("class").train_stream[:2]
    for chunk in split_online_stream(stream, experience_size=4, access_task_boundaries=True):
        strategy.train(chunk)
    assert cost.summary()["training_passes"] == [1.0, 1.0]
    assert cost.summary()["training_steps"] == [6, 6]


def test_what_takes_no_step_is_not_ended():
    cost, told = trained(build_closed_form, budget=BudgetPlugin(passes=0.5))
    assert cost["training_passes"] == [1.0, 1.0]
    assert not any(report["ended"] for report in told)


def test_seconds_end_steps_and_alignments(monkeypatch):
    class Clock:
        now = 0.0

        def perf_counter(self):
            return self.now

    class Slow(SupervisedPlugin):
        def after_training_iteration(self, strategy, **kwargs):
            clock.now += 1

        def after_eval_exp(self, strategy, **kwargs):
            clock.now += 100

    clock = Clock()
    monkeypatch.setattr(meter, "time", clock)
    steps, losses = [], []
    for seconds in (4.0, 100.0):
        plugins = [Slow(), FeatureReplayPlugin(samples_per_class=8, epochs=2)]
        budget = BudgetPlugin(seconds=seconds)
        cost, _ = trained(build_naive, budget=budget, plugins=plugins, **STEPS)
        steps.append(cost["training_steps"])
        (report,) = plugins[1].summary()["experiences"]
        losses.append(report["loss_before"] - report["loss_after"])
    # it is looked at after the update, before the second that this minibatch takes
    assert steps == [[5, 5], [9, 9]]
    assert losses[0] == 0
    assert losses[1] > 0


def test_more_floats_than_allowed_are_an_error_that_names_them():
    message = (
        r"after experience 1 [\d,]+ floats are kept beside the backbone \([\d,]+ in branch, "
        r"[\d,]+ in head\), and the budget allows 100: take .* or another budget"
    )
    with pytest.raises(BudgetError, match=message):
        trained(build_naive, budget=BudgetPlugin(stored_floats=100), train_epochs=1)
    budget = BudgetPlugin(stored_floats=10**6)
    cost, told = trained(build_naive, budget=budget, train_epochs=1)
    assert told[-1]["stored_floats"] == cost["stored_floats"]
    assert budget.headline() == f"budget: {cost['stored_floats']:,} of 1,000,000 floats"


def test_an_experience_that_was_interrupted_counts_for_nobody():
    class Interrupts(SupervisedPlugin):
        def after_training_iteration(self, strategy, **kwargs):
            raise KeyboardInterrupt

    strategy, cost = built(build_naive, budget=BudgetPlugin(passes=0.1), **STEPS)
    benchmark, interrupts = toy_benchmark("class"), Interrupts()
    strategy.plugins.append(interrupts)
    with pytest.raises(KeyboardInterrupt):
        strategy.train(benchmark.train_stream[0], eval_streams=[])
    strategy.plugins.remove(interrupts)
    strategy.eval(benchmark.test_stream[:1])
    strategy.train(benchmark.train_stream[1], eval_streams=[])
    assert cost.summary()["training_steps"][1] == 1


@pytest.mark.parametrize("given", [{}, {"passes": 0.0}, {"seconds": -1.0}])
def test_a_budget_of_nothing_is_refused(given):
    with pytest.raises(ConfigError, match="a budget is of passes, seconds or stored_floats"):
        BudgetPlugin(**given)


def test_a_metric_that_looks_inside_training_takes_nothing_of_the_budget():
    """A head that is fitted is fitted for each point of the curve; those passes are no training."""
    told = []
    for metrics in ([], [AnyTimeMetric(every=1)]):
        cost, budget = CostMetric(), BudgetPlugin(passes=3)
        strategy = build_pegp(
            backbone=toy_backbone(),
            head=RidgeHead,
            evaluator=EvaluationPlugin(cost, *metrics, loggers=[]),
            train_mb_size=4,
            train_epochs=9,
            n_samples=None,
        )
        strategy.plugins.append(budget)
        benchmark = toy_benchmark("class")
        for experience in benchmark.train_stream[:2]:
            strategy.train(experience, eval_streams=[benchmark.test_stream])
        found = budget.summary()["experiences"]
        assert [each["training_passes"] for each in found] == cost.summary()["training_passes"]
        told.append((found, cost.summary()["training_steps"]))
    assert told[0] == told[1]
