"""What Avalanche's own plugins, metrics and generators of torch remember."""

import copy
from typing import Any

import torch
from avalanche.benchmarks.utils.flat_data import FlatData
from avalanche.evaluation.metrics import ElapsedTime
from avalanche.training.plugins import (
    EvaluationPlugin,
    EWCPlugin,
    LRSchedulerPlugin,
    LwFPlugin,
    ReplayPlugin,
)
from avalanche.training.storage_policy import ExperienceBalancedBuffer, ReservoirSamplingBuffer
from avalanche.training.utils import ParamData
from torch import Tensor

from avalanche_peftcl.checkpoints.joints import State, Surroundings
from avalanche_peftcl.checkpoints.model_state import load_model_state, model_state
from avalanche_peftcl.checkpoints.remembered import (
    host_state,
    load_host_state,
    load_state_of,
    state_of,
)
from avalanche_peftcl.errors import CheckpointError

# A class registered here is kept by these functions alone; what is not registered, such as the
# clock, by its attributes.

# --- the learning rate -------------------------------------------------------------------------

_FLAGS = ("_was_training", "_just_validated", "_executed_train_iteration")


@host_state.register(LRSchedulerPlugin)
def _scheduler_state(plugin: Any, around: Surroundings) -> State:
    return {
        "scheduler": plugin.scheduler.state_dict(),
        "mean": state_of(plugin.rolling_metric, around),
        "flags": {name: getattr(plugin, name) for name in _FLAGS},
    }


@load_host_state.register(LRSchedulerPlugin)
def _load_scheduler(plugin: Any, state: State, around: Surroundings) -> None:
    plugin.scheduler.load_state_dict(state["scheduler"])
    load_state_of(plugin.rolling_metric, state["mean"], around)
    vars(plugin).update(state["flags"])
    # what says that the optimizer has stepped; torch warns of a scheduler that steps first
    plugin.scheduler.optimizer._opt_called = True


# --- parts that attributes do not tell ----------------------------------------------------------


@host_state.register(ElapsedTime)
def _no_state(metric: Any, around: Surroundings) -> State:
    return {}  # readings of a clock mean nothing in another process


@load_host_state.register(ElapsedTime)
def _load_nothing(metric: Any, state: State, around: Surroundings) -> None:
    pass


@host_state.register(torch.Generator)
def _generator_state(generator: torch.Generator, around: Surroundings) -> Tensor:
    return generator.get_state()


@load_host_state.register(torch.Generator)
def _load_generator(generator: torch.Generator, state: Tensor, around: Surroundings) -> None:
    generator.set_state(state)


# --- metrics -----------------------------------------------------------------------------------


@host_state.register(EvaluationPlugin)
def _evaluation_state(plugin: Any, around: Surroundings) -> State:
    plain = bool | int | float | str | Tensor | None
    return {
        "metrics": [state_of(metric, around) for metric in plugin.metrics],
        "last": {k: v for k, v in plugin.last_metric_results.items() if isinstance(v, plain)},
        "all": {
            name: [list(steps), list(values)]
            for name, (steps, values) in plugin.all_metric_results.items()
            if all(isinstance(value, plain) for value in values)
        },
    }


@load_host_state.register(EvaluationPlugin)
def _load_evaluation(plugin: Any, state: State, around: Surroundings) -> None:
    for metric, saved in zip(plugin.metrics, state["metrics"], strict=True):
        load_state_of(metric, saved, around)
    plugin.last_metric_results = dict(state["last"])
    plugin.all_metric_results.clear()
    for name, (steps, values) in state["all"].items():
        plugin.all_metric_results[name] = (list(steps), list(values))


# --- replay ------------------------------------------------------------------------------------


@host_state.register(ReplayPlugin)
def _replay_state(plugin: Any, around: Surroundings) -> State:
    policy = plugin.storage_policy
    if type(policy) is not ExperienceBalancedBuffer:
        raise CheckpointError(
            f"{type(plugin).__name__} keeps its images by {type(policy).__name__}; only "
            "ExperienceBalancedBuffer, its default, is known"
        )
    return {
        "experiences": policy._num_exps,
        "groups": {
            index: {
                "max_size": group.max_size,
                "weights": group._buffer_weights,
                "images": torch.tensor(
                    positions(group.buffer, around.trained[index].dataset), dtype=torch.long
                ),
            }
            for index, group in policy.buffer_groups.items()
        },
    }


@load_host_state.register(ReplayPlugin)
def _load_replay(plugin: Any, state: State, around: Surroundings) -> None:
    policy = plugin.storage_policy
    policy._num_exps = state["experiences"]
    policy.buffer_groups.clear()
    for index, saved in state["groups"].items():
        group = ReservoirSamplingBuffer(saved["max_size"])
        group.buffer = around.trained[index].dataset.subset(saved["images"].tolist())
        group._buffer_weights = saved["weights"]
        policy.buffer_groups[index] = group


def positions(part: Any, whole: Any) -> list[int]:
    """Return the indices in ``whole`` of the images of its subset ``part``.

    Args:
        part: An Avalanche dataset, made from ``whole`` by ``subset``, several times too.
        whole: An Avalanche dataset.

    Raises:
        CheckpointError: If an image of ``part`` is none of ``whole``.
    """
    data, source = part._flat_data, whole._flat_data
    place = {_origin(source, i): i for i in range(len(source))}
    origins = [_origin(data, i) for i in range(len(data))]
    if any(origin not in place for origin in origins):
        raise CheckpointError("a replayed image is none of the experience it was taken from")
    return [place[origin] for origin in origins]


def _origin(data: Any, index: int) -> tuple[int, int]:
    """Return which dataset of images an image comes from, and its number there."""
    while isinstance(data, FlatData):
        part, index = data._get_idx(index)
        data = data._datasets[part]
    return id(data), int(index)


# --- regularisation ----------------------------------------------------------------------------


@host_state.register(EWCPlugin)
def _ewc_state(plugin: Any, around: Surroundings) -> State:
    frozen = around.frozen.names(around.strategy.model)
    return {
        kind: {
            index: {name: data.data for name, data in values.items() if name not in frozen}
            for index, values in getattr(plugin, kind).items()
        }
        for kind in ("saved_params", "importances")
    }


@load_host_state.register(EWCPlugin)
def _load_ewc(plugin: Any, state: State, around: Surroundings) -> None:
    model = around.strategy.model
    frozen = around.frozen.names(model)
    for kind, start in (("saved_params", torch.clone), ("importances", torch.zeros_like)):
        kept = getattr(plugin, kind)
        kept.clear()
        for index, values in state[kind].items():
            kept[index] = {
                name: ParamData(
                    name,
                    device=p.device,
                    init_tensor=start(p.detach()) if name in frozen else values[name].clone(),
                )
                for name, p in model.named_parameters()
                if name in frozen or name in values
            }


@host_state.register(LwFPlugin)
def _lwf_state(plugin: Any, around: Surroundings) -> State:
    previous = plugin.lwf.prev_model
    model = None
    if previous is not None:
        skip = around.frozen.names(around.strategy.model)
        model = {k: v for k, v in model_state(previous).items() if k not in skip}
    return {
        "count": plugin.lwf.expcount,
        "classes": dict(plugin.lwf.prev_classes_by_task),
        "model": model,
        "in_training": None
        if previous is None
        else [name for name, module in previous.named_modules() if module.training],
    }


@load_host_state.register(LwFPlugin)
def _load_lwf(plugin: Any, state: State, around: Surroundings) -> None:
    lwf = plugin.lwf
    lwf.expcount = state["count"]
    lwf.prev_classes_by_task.clear()
    lwf.prev_classes_by_task.update(state["classes"])
    lwf.prev_model = None
    if state["model"] is not None:
        lwf.prev_model = copy.deepcopy(around.strategy.model)
        load_model_state(
            lwf.prev_model, state["model"], missing=around.frozen.names(around.strategy.model)
        )
        training = set(state["in_training"])
        for name, module in lwf.prev_model.named_modules():
            module.training = name in training
