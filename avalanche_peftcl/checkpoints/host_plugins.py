"""What Avalanche's own plugins remember."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from avalanche.benchmarks.utils.flat_data import FlatData
from avalanche.training.plugins import (
    EvaluationPlugin,
    EWCPlugin,
    LRSchedulerPlugin,
    LwFPlugin,
    ReplayPlugin,
)
from avalanche.training.plugins.clock import Clock
from avalanche.training.storage_policy import ExperienceBalancedBuffer, ReservoirSamplingBuffer
from avalanche.training.templates.base_sgd import PeriodicEval
from avalanche.training.utils import ParamData
from torch import Tensor

from avalanche_peftcl.checkpoints.host_metrics import (
    is_host_metric,
    load_metric_state,
    metric_state,
)
from avalanche_peftcl.checkpoints.model_state import load_model_state, model_state
from avalanche_peftcl.errors import CheckpointError
from avalanche_peftcl.models.frozen import Frozen

State = Mapping[str, Any]


@dataclass(frozen=True)
class Surroundings:
    """What a plugin's state may refer to.

    Args:
        strategy: The strategy that holds the plugin.
        frozen: The tensors that no checkpoint holds.
        trained: The training experiences visited so far, in order, the current one included.
    """

    strategy: Any
    frozen: Frozen = field(default_factory=Frozen)
    trained: Sequence[Any] = ()


def plugin_state(plugin: Any, around: Surroundings) -> Any:
    """Return the state of a plugin.

    Raises:
        CheckpointError: If there is no way to know it, see :func:`obstacle`.
    """
    if (problem := obstacle(plugin)) is not None:
        raise CheckpointError(problem)
    if _keeps_itself(plugin):
        return plugin.state_dict()
    if type(plugin) in _HOST:
        return _HOST[type(plugin)][0](plugin, around)
    return metric_state(plugin) if is_host_metric(plugin) else {}


def load_plugin_state(plugin: Any, state: Any, around: Surroundings) -> None:
    """Set a plugin to what :func:`plugin_state` returned."""
    if _keeps_itself(plugin):
        plugin.load_state_dict(state)
    elif type(plugin) in _HOST:
        _HOST[type(plugin)][1](plugin, state, around)
    elif is_host_metric(plugin):
        load_metric_state(plugin, state)


def obstacle(plugin: Any) -> str | None:
    """Say why the state of a plugin or metric cannot be known; ``None`` if it can.

    It can if the class has ``state_dict()`` and ``load_state_dict()``, is one of Avalanche's that
    is known here, or if the object has no attributes.
    """
    if isinstance(plugin, EvaluationPlugin) and type(plugin) in _HOST:
        found = [problem for metric in plugin.metrics if (problem := obstacle(metric))]
        return "; ".join(found) or None
    if isinstance(plugin, ReplayPlugin) and type(plugin) in _HOST:
        policy = plugin.storage_policy
        if type(policy) is not ExperienceBalancedBuffer:
            return f"{type(plugin).__name__} keeps its images by {type(policy).__name__}"
        return None
    if _keeps_itself(plugin) or type(plugin) in _HOST or is_host_metric(plugin):
        return None
    if not getattr(plugin, "__dict__", True):
        return None
    return f"{type(plugin).__name__} has no state_dict() and load_state_dict()"


def _keeps_itself(plugin: Any) -> bool:
    return all(callable(getattr(plugin, name, None)) for name in ("state_dict", "load_state_dict"))


# --- attributes --------------------------------------------------------------------------------


def _plain_attributes(plugin: Any, around: Surroundings) -> State:
    return {
        name: value
        for name, value in vars(plugin).items()
        if value is None or isinstance(value, bool | int | float | str)
    }


def _set_attributes(plugin: Any, state: State, around: Surroundings) -> None:
    vars(plugin).update(state)


# --- the learning rate -------------------------------------------------------------------------

_FLAGS = ("_was_training", "_just_validated", "_executed_train_iteration")


def _scheduler_state(plugin: Any, around: Surroundings) -> State:
    return {
        "scheduler": plugin.scheduler.state_dict(),
        "mean": metric_state(plugin.rolling_metric),
        "flags": {name: getattr(plugin, name) for name in _FLAGS},
    }


def _load_scheduler(plugin: Any, state: State, around: Surroundings) -> None:
    plugin.scheduler.load_state_dict(state["scheduler"])
    load_metric_state(plugin.rolling_metric, state["mean"])
    vars(plugin).update(state["flags"])
    # what says that the optimizer has stepped; torch warns of a scheduler that steps first
    plugin.scheduler.optimizer._opt_called = True


# --- metrics -----------------------------------------------------------------------------------


def _evaluation_state(plugin: Any, around: Surroundings) -> State:
    plain = bool | int | float | str | Tensor | None
    return {
        "metrics": [plugin_state(metric, around) for metric in plugin.metrics],
        "last": {k: v for k, v in plugin.last_metric_results.items() if isinstance(v, plain)},
        "all": {
            name: [list(steps), list(values)]
            for name, (steps, values) in plugin.all_metric_results.items()
            if all(isinstance(value, plain) for value in values)
        },
    }


def _load_evaluation(plugin: Any, state: State, around: Surroundings) -> None:
    for metric, saved in zip(plugin.metrics, state["metrics"], strict=True):
        load_plugin_state(metric, saved, around)
    plugin.last_metric_results = dict(state["last"])
    plugin.all_metric_results.clear()
    for name, (steps, values) in state["all"].items():
        plugin.all_metric_results[name] = (list(steps), list(values))


# --- replay ------------------------------------------------------------------------------------


def _replay_state(plugin: Any, around: Surroundings) -> State:
    policy = plugin.storage_policy
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


def _ewc_state(plugin: Any, around: Surroundings) -> State:
    frozen = around.frozen.names(around.strategy.model)
    return {
        kind: {
            index: {name: data.data for name, data in values.items() if name not in frozen}
            for index, values in getattr(plugin, kind).items()
        }
        for kind in ("saved_params", "importances")
    }


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


_HOST: dict[
    type, tuple[Callable[[Any, Surroundings], Any], Callable[[Any, Any, Surroundings], None]]
] = {
    Clock: (_plain_attributes, _set_attributes),
    PeriodicEval: (_plain_attributes, _set_attributes),
    LRSchedulerPlugin: (_scheduler_state, _load_scheduler),
    EvaluationPlugin: (_evaluation_state, _load_evaluation),
    ReplayPlugin: (_replay_state, _load_replay),
    EWCPlugin: (_ewc_state, _load_ewc),
    LwFPlugin: (_lwf_state, _load_lwf),
}
