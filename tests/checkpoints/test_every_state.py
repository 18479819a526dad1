"""Every line of state counts: with it a strategy ends with the same bits, without it it does not.

A strategy is stopped inside its second experience, and a new one goes on from what it had written.
"""

import copy
import importlib
import pkgutil
import random
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from avalanche.core import SupervisedPlugin
from avalanche.training.plugins import (
    EvaluationPlugin,
    EWCPlugin,
    LRSchedulerPlugin,
    LwFPlugin,
    ReplayPlugin,
)

from avalanche_peftcl import training
from avalanche_peftcl.checkpoints.archive import decode_state, encode_state
from avalanche_peftcl.checkpoints.joints import Surroundings
from avalanche_peftcl.checkpoints.remembered import state_of
from avalanche_peftcl.checkpoints.strategy_state import StrategyState
from avalanche_peftcl.evaluation import AccuracyMatrix, CostMetric
from avalanche_peftcl.models import PrototypeHead
from avalanche_peftcl.models.rng import random_state, set_random_state
from avalanche_peftcl.testing import toy_backbone, toy_benchmark
from avalanche_peftcl.training.losses import LossMeans
from avalanche_peftcl.training.naive import build_naive
from avalanche_peftcl.training.ntk_cl import build_ntk_cl
from avalanche_peftcl.training.pegp import PEGP, build_pegp
from avalanche_peftcl.training.plugins import RetentionPlugin
from avalanche_peftcl.training.plugins.class_moments import ClassMoments
from avalanche_peftcl.training.plugins.drift_compensation import DriftCompensationPlugin
from avalanche_peftcl.training.plugins.feature_replay import FeatureReplayPlugin
from avalanche_peftcl.training.plugins.feature_watch import FeatureWatch
from avalanche_peftcl.training.plugins.gradient_projection import GradientProjectionPlugin
from avalanche_peftcl.training.plugins.head_only import HeadOnlyPlugin
from avalanche_peftcl.training.plugins.projection_rules import RatioRule
from avalanche_peftcl.training.plugins.prototype_contrast import ReleasedContrastPlugin
from avalanche_peftcl.training.plugins.released_projection import ReleasedProjectionPlugin
from avalanche_peftcl.training.plugins.running_mean import RunningMeanPlugin
from avalanche_peftcl.training.plugins.site_statistics import SiteStatistics
from avalanche_peftcl.training.plugins.task_orthogonality import TaskOrthogonalityPlugin
from avalanche_peftcl.training.plugins.text_retrieval import TextRetrievalPlugin
from avalanche_peftcl.training.second_stage import SecondStage
from avalanche_peftcl.training.steps import SteppedTemplate

CPU = torch.device("cpu")


class StopsEarly(SupervisedPlugin):
    """Ends the second experience's first epoch at its third step, just before a checkpoint."""

    remembers = ()

    def after_training_iteration(self, strategy, **kwargs):
        if strategy.clock.train_exp_counter == 1 and strategy.clock.train_exp_iterations == 2:
            strategy.stop_training()


def options(plugins=()):
    return {
        "backbone": toy_backbone(depth=1),
        "train_mb_size": 4,
        "train_epochs": 2,
        "plugins": list(plugins),
        "evaluator": EvaluationPlugin(AccuracyMatrix(), CostMetric(), loggers=[]),
    }


def naive(*plugins, **further):
    return build_naive(**options(plugins), optimizer="adam", **further)


def replay():
    return FeatureReplayPlugin(samples_per_class=8, epochs=1)


def drift():
    return naive(DriftCompensationPlugin(n_samples=8), head=PrototypeHead)


def ntk_cl(**further):
    return build_ntk_cl(
        **options(), orthogonality_weight=1.0, retention_weight=1.0, n_copies=2, **further
    )


def pegp(**further):
    return build_pegp(**options(), r=2, head_epochs=1, n_samples=8, threshold=0.9, **further)


class Plateau(torch.optim.lr_scheduler.ReduceLROnPlateau):
    """Keeps every loss that it is told."""

    def __init__(self, optimizer):
        super().__init__(optimizer, patience=0)
        self.told = []

    def step(self, metrics):
        self.told.append(float(metrics))
        super().step(metrics)


def scheduled():
    built = naive(anneal=False)
    kept = {"reset_lr": False, "reset_scheduler": False}
    built.plugins.insert(
        0, LRSchedulerPlugin(Plateau(built.optimizer), metric="train_loss", **kept)
    )
    return built


# how it is built, and in which scenario; it is stopped in its second experience, in the second
# chunk of it in online streams
CASES: dict[str, tuple[Any, str]] = {
    "naive fp16": (lambda: naive(mixed_precision="fp16"), "class"),
    "stops early": (lambda: naive(StopsEarly()), "class"),
    "drift": (drift, "class"),
    "drift online": (drift, "online"),
    "feature replay": (lambda: naive(replay()), "class"),
    "feature replay online": (lambda: naive(replay()), "online"),
    "retention": (lambda: naive(RetentionPlugin(1.0)), "class"),
    "ewc": (lambda: naive(EWCPlugin(100.0)), "class"),
    "lwf": (lambda: naive(LwFPlugin(alpha=[0.0, 1.0, 2.0])), "class"),
    "replay": (lambda: naive(ReplayPlugin(mem_size=5)), "class"),
    "scheduler": (scheduled, "class"),
    "ntk_cl": (ntk_cl, "class"),
    "ntk_cl online": (ntk_cl, "online"),
    "ntk_cl released": (lambda: ntk_cl(recipe="released"), "class"),
    "ntk_cl released online": (lambda: ntk_cl(recipe="released"), "online"),
    "pegp": (pegp, "class"),
    "pegp online": (pegp, "online"),
    "pegp centred online": (lambda: pegp(centred=True, strength=0.5), "online"),
    "pegp ratio": (lambda: pegp(rule="ratio"), "class"),
    "pegp ratio online": (lambda: pegp(rule="ratio"), "online"),
    "pegp watched": (lambda: pegp(watch=2), "class"),
    "pegp released": (lambda: pegp(recipe="released"), "class"),
    "pegp released online": (lambda: pegp(recipe="released"), "online"),
}

# their chunks pass through what the other cases and each strategy's own online case show
_SLOW = {"feature replay online", "ntk_cl released online", "pegp ratio online"}
_SLOW |= {"pegp released online", "pegp centred online"}


def build(case):
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)
    make, scenario = CASES[case]
    sizes = {"experience_size": 6} if scenario == "online" else {}
    return make(), toy_benchmark(scenario, **sizes)


def train(strategy, benchmark, first):
    for t, experience in enumerate(benchmark.train_stream):
        if t >= first:
            strategy.train(experience, eval_streams=[])
            strategy.eval(benchmark.test_stream)


@cache
def written(case) -> tuple[bytes, dict[str, Any]]:
    """Return what was written inside an experience, and the end without a stop."""
    strategy, benchmark = build(case)
    saved: list[bytes] = []
    online = CASES[case][1] == "online"
    at = 3 if online else 1
    wanted = 2 if online else 3 if case == "stops early" else 4

    def save(position):
        if strategy.clock.train_exp_counter != at:
            return
        if strategy.clock.train_exp_iterations == wanted and not saved:
            trained = list(benchmark.train_stream)[: at + 1]
            state = StrategyState(strategy, frozen=[strategy.model.backbone]).save(trained=trained)
            saved.append(encode_state([at, position, state, random_state(CPU)]))

    strategy.cursor.every, strategy.cursor.save = 1, save
    train(strategy, benchmark, 0)
    return saved[0], end_of(strategy)


def go_on(case, change=lambda state: None) -> dict[str, Any]:
    """Return the end of a new strategy that goes on from what was written."""
    at, position, state, generators = decode_state(written(case)[0], "it")
    change(state)
    strategy, benchmark = build(case)
    trained = list(benchmark.train_stream)[: at + 1]
    keeper = StrategyState(strategy, frozen=[strategy.model.backbone])
    keeper.load(copy.deepcopy(state), trained=trained, tested=list(benchmark.test_stream))

    def restore():
        keeper.load(copy.deepcopy(state), trained=trained)
        set_random_state(generators, CPU)

    strategy.cursor.go_to(position, restore)
    train(strategy, benchmark, at)
    return end_of(strategy)


def end_of(strategy) -> dict[str, Any]:
    """Return the bits of all that can be seen of a strategy, whatever it says that it keeps."""
    every = strategy.evaluator.get_all_metrics()
    seen = {f"metric {k}": v for k, v in every.items() if "Seconds" not in k and "Peak" not in k}
    seen |= {f"model {k}": bits(v) for k, v in strategy.model.state_dict().items()}
    for part in (strategy, *strategy.plugins):
        if isinstance(part, LRSchedulerPlugin):
            seen["scheduler"] = part.scheduler.state_dict()
        if not isinstance(part, EvaluationPlugin):
            look(part, type(part).__name__, seen)
    return seen


PASSING = {"cursor", "mbatch", "loss", "mb_output", "_updates"}  # of a step, or of a start


def look(part, where, seen):
    for name, value in vars(part).items():
        if isinstance(value, LossMeans | SecondStage | SiteStatistics | RatioRule | FeatureWatch):
            look(value, f"{where}.{name}", seen)
        elif isinstance(value, torch.amp.GradScaler):
            seen[f"{where}.{name}"] = value.state_dict()
        elif name not in PASSING and plain(value):
            seen[f"{where}.{name}"] = bits(value)


def plain(value):
    if isinstance(value, dict):
        return all(map(plain, value.values()))
    if isinstance(value, list | tuple):
        return all(map(plain, value))
    return value is None or isinstance(value, bool | int | float | str | torch.Tensor)


def bits(value):
    if isinstance(value, torch.Tensor):
        return tuple(value.shape), value.detach().contiguous().view(-1).numpy().tobytes()
    if isinstance(value, dict):
        return {key: bits(inner) for key, inner in value.items()}
    return [bits(v) for v in value] if isinstance(value, list | tuple) else value


def differing(one, other):
    return sorted(k for k in one.keys() | other.keys() if one.get(k) != other.get(k))


@pytest.mark.parametrize(
    "case",
    [pytest.param(case, marks=[pytest.mark.slow] if case in _SLOW else []) for case in CASES],
)
def test_what_goes_on_ends_with_the_same_bits(case):
    assert differing(written(case)[1], go_on(case)) == []


# each name that a class says it remembers, and the case in which nothing makes up for it
NAMED = [
    (SteppedTemplate, "_scaler", "naive fp16"),
    (SteppedTemplate, "_stop_training", "stops early"),
    (SteppedTemplate, "_loss_means", "retention"),
    (LossMeans, "sums", "retention"),
    (PEGP, "n_experiences_done", "pegp"),
    (PEGP, "second_stage", "pegp"),
    (SecondStage, "old", "pegp"),
    (DriftCompensationPlugin, "n_begun", "drift"),
    (DriftCompensationPlugin, "_before", "drift"),
    (DriftCompensationPlugin, "_fits", "drift online"),
    (DriftCompensationPlugin, "_reports", "drift online"),
    (FeatureReplayPlugin, "n_experiences_done", "feature replay"),
    (FeatureReplayPlugin, "moments", "feature replay"),
    (ClassMoments, "held", "feature replay"),
    (RetentionPlugin, "reference", "retention"),
    (TaskOrthogonalityPlugin, "basis", "ntk_cl online"),
    (ReleasedContrastPlugin, "increment", "ntk_cl released online"),
    (RunningMeanPlugin, "n_experiences_done", "ntk_cl"),
    (HeadOnlyPlugin, "n_experiences_done", "pegp"),
    (GradientProjectionPlugin, "bases", "pegp"),
    (GradientProjectionPlugin, "n_experiences_done", "pegp"),
    (GradientProjectionPlugin, "_statistics", "pegp online"),
    (SiteStatistics, "grams", "pegp online"),
    (SiteStatistics, "totals", "pegp centred online"),
    (SiteStatistics, "counts", "pegp centred online"),
    (GradientProjectionPlugin, "_rule", "pegp ratio"),
    (RatioRule, "grams", "pegp ratio"),
    (RatioRule, "aimed_at", "pegp ratio"),
    (GradientProjectionPlugin, "_watch", "pegp watched"),
    (FeatureWatch, "now", "pegp watched"),
    (FeatureWatch, "then", "pegp watched"),
    (FeatureWatch, "drifts", "pegp watched"),
    (GradientProjectionPlugin, "updates", "pegp"),
    (GradientProjectionPlugin, "_reports", "pegp"),
    (ReleasedProjectionPlugin, "_features", "pegp released online"),
]


# parts of plugins, by where these hold them
PARTS = {
    ClassMoments: "moments",
    SiteStatistics: "_statistics",
    RatioRule: "_rule",
    FeatureWatch: "_watch",
}


def states_of(state: dict[str, Any], kind: type) -> list[dict[str, Any]]:
    """Return where in a written state those of the objects of a class stand."""
    if kind in (LossMeans, SecondStage):
        place = {LossMeans: "_loss_means", SecondStage: "second_stage"}[kind]
        return [state["strategy"]["attributes"][place][1]["state"]]
    if kind in PARTS:
        held = [plugin["state"].get("attributes", {}) for plugin in state["plugins"]]
        return [each[PARTS[kind]][1]["state"] for each in held if PARTS[kind] in each]
    if issubclass(kind, SteppedTemplate):
        return [state["strategy"]]
    names = {k.__name__ for k in (kind, *kind.__subclasses__())}
    return [plugin["state"] for plugin in state["plugins"] if plugin["class"] in names]


@pytest.mark.parametrize(("kind", "name", "case"), NAMED)
def test_without_a_name_it_ends_differently(kind, name, case, monkeypatch):
    whole = written(case)[1]
    monkeypatch.setattr(kind, "remembers", tuple(n for n in kind.remembers if n != name))

    def forget(state):
        for held in states_of(state, kind):
            del held["attributes"][name]

    assert differing(whole, go_on(case, forget))


def test_every_name_is_tried():
    said = {
        (kind, name)
        for module in pkgutil.walk_packages(training.__path__, f"{training.__name__}.")
        for kind in vars(importlib.import_module(module.name)).values()
        if isinstance(kind, type) and isinstance(vars(kind).get("remembers"), tuple)
        for name in vars(kind)["remembers"]
    }
    named = {(kind, name) for kind, name, _ in NAMED}
    between = {(FeatureReplayPlugin, "_unaligned"), (FeatureReplayPlugin, "_reports")}
    # tests/runs/test_captioned_run.py goes on with these
    between |= {(TextRetrievalPlugin, "recalls"), (TextRetrievalPlugin, "_trained")}
    assert said == named | between | {(GradientProjectionPlugin, "unprotected")}


@pytest.mark.parametrize("kept", [True, False])
def test_what_a_plugin_tells_is_kept(kept, monkeypatch):
    """Training further makes up for what is not protected; a finished run does not train."""
    kind = GradientProjectionPlugin
    if not kept:
        left = tuple(name for name in kind.remembers if name != "unprotected")
        monkeypatch.setattr(kind, "remembers", left)
    old, benchmark = build("pegp")
    first = benchmark.train_stream[:1]
    old.train(first, eval_streams=[])
    state = decode_state(encode_state(StrategyState(old).save(trained=first)), "it")
    new, _ = build("pegp")
    StrategyState(new).load(state, trained=first, tested=[])
    assert old.projection.unprotected
    assert (new.projection.summary() == old.projection.summary()) is kept
    assert new.current_rows == old.current_rows  # follows from the benchmark


@pytest.mark.parametrize("left_out", [None, "_unaligned", "_reports"])
def test_what_an_aligned_head_was_is_kept_between_experiences(left_out, monkeypatch):
    """Two experiences have to end before there is any of it."""
    kind = FeatureReplayPlugin
    if left_out:
        monkeypatch.setattr(kind, "remembers", tuple(n for n in kind.remembers if n != left_out))
    old, benchmark = build("feature replay")
    first, last = benchmark.train_stream[:2], benchmark.train_stream[2]
    old.train(first, eval_streams=[])
    held = StrategyState(old).save(trained=first), random_state(CPU)
    state, generators = decode_state(encode_state(held), "it")
    new, _ = build("feature replay")
    StrategyState(new).load(state, trained=first, tested=[])
    ends = []
    for strategy in (old, new):
        set_random_state(generators, CPU)
        strategy.train(last, eval_streams=[])
        ends.append(end_of(strategy))
    assert bool(differing(*ends)) is bool(left_out)


HOST = [  # what is kept of the host's plugins
    (EWCPlugin, "saved_params", "ewc"),
    (EWCPlugin, "importances", "ewc"),
    (LwFPlugin, "count", "lwf"),
    (LwFPlugin, "model", "lwf"),
    (ReplayPlugin, "experiences", "replay"),
    (ReplayPlugin, "groups", "replay"),
    (LRSchedulerPlugin, "scheduler", "scheduler"),
    (LRSchedulerPlugin, "mean", "scheduler"),
]


@pytest.mark.parametrize(("kind", "key", "case"), HOST)
def test_with_a_part_of_it_as_in_a_new_plugin_it_ends_differently(kind, key, case):
    fresh, _ = build(case)
    (plugin,) = (p for p in fresh.plugins if type(p) is kind)
    new = state_of(plugin, Surroundings(fresh))["host"]

    def forget(state):
        (held,) = states_of(state, kind)
        held["host"][key] = new[key]

    try:
        ended = go_on(case, forget)
    except KeyError:  # the plugin looks for what belongs to the rest of its state
        return
    assert differing(written(case)[1], ended)
