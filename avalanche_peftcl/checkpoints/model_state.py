"""State of a network without its frozen part, and of its optimizer by names."""

from collections import defaultdict
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from avalanche_peftcl.errors import CheckpointError
from avalanche_peftcl.functional.finite import not_finite
from avalanche_peftcl.models.frozen import Frozen
from avalanche_peftcl.models.heads.rows import Growing


def model_state(model: nn.Module, *, frozen: Frozen | None = None) -> dict[str, Any]:
    """Return the state dict of ``model`` without what is frozen."""
    skip = frozen.names(model) if frozen is not None else set()
    return {name: value for name, value in model.state_dict().items() if name not in skip}


def has_tensors_of(model: nn.Module, state: Mapping[str, Any]) -> bool:
    """Whether ``model`` has all tensors that :func:`model_state` returned, in name and shape."""
    here = model.state_dict()
    return all(
        name in here and getattr(here[name], "shape", None) == getattr(value, "shape", None)
        for name, value in state.items()
    )


def load_model_state(
    model: nn.Module, state: Mapping[str, Any], *, missing: Collection[str] = ()
) -> None:
    """Load what :func:`model_state` returned; tensors of another length are made anew.

    Args:
        model: The network; it has the same modules.
        state: The state.
        missing: Names that need not be in it.

    Raises:
        CheckpointError: If names are missing or unexpected, a tensor has another shape than that
            to which one here could grow along its first axis, or a weight is no finite number.
    """
    if bad := not_finite((k, v) for k, v in state.items() if isinstance(v, Tensor)):
        raise CheckpointError(f"the saved weights are not finite numbers, in {', '.join(bad[:5])}")
    for name, value in state.items():
        if isinstance(value, Tensor):
            _resize(model, name, value.shape)
    lacking, unexpected = model.load_state_dict(dict(state), strict=False)
    lacking = [name for name in lacking if name not in missing]
    if lacking or unexpected:
        told = {"missing": lacking, "unexpected": unexpected}
        text = "; ".join(f"{k}: {', '.join(v[:5])}" for k, v in told.items() if v)
        raise CheckpointError(f"the saved weights do not fit {type(model).__name__}: {text}")


def optimizer_state(strategy: Any) -> dict[str, Any]:
    """Return groups and state of the optimizer of ``strategy``, parameters by name.

    State of a parameter that has been replaced since is left out, as it is dropped in training.

    Raises:
        CheckpointError: If the optimizer holds a parameter that is none of the model's.
    """
    current = dict(strategy.model.named_parameters())
    held: dict[str, nn.Parameter] = getattr(strategy, "optimized_param_id", None) or current
    names = {id(p): name for name, p in held.items()}
    groups, state = [], {}
    for group in strategy.optimizer.param_groups:
        if any(id(p) not in names for p in group["params"]):
            raise CheckpointError("the optimizer holds a parameter that is none of the model's")
        groups.append({**group, "params": [names[id(p)] for p in group["params"]]})
        for p in group["params"]:
            name = names[id(p)]
            if p in strategy.optimizer.state and current.get(name) is p:
                state[name] = dict(strategy.optimizer.state[p])
    return {"groups": groups, "state": state}


def load_optimizer_state(strategy: Any, state: Mapping[str, Any]) -> None:
    """Set the optimizer of ``strategy`` to what :func:`optimizer_state` returned."""
    current = dict(strategy.model.named_parameters())
    optimizer = strategy.optimizer
    names = [name for group in state["groups"] for name in group["params"]]
    index = {name: i for i, name in enumerate(names)}
    for group, saved in zip(optimizer.param_groups, state["groups"], strict=True):
        group["params"] = [current[name] for name in saved["params"]]
    optimizer.state = defaultdict(dict)
    groups = [{**g, "params": [index[name] for name in g["params"]]} for g in state["groups"]]
    values = {index[name]: value for name, value in state["state"].items()}
    optimizer.load_state_dict({"state": values, "param_groups": groups})
    strategy.optimized_param_id = {name: current[name] for name in names}


def _resize(model: nn.Module, name: str, shape: torch.Size) -> None:
    path, _, leaf = name.rpartition(".")
    try:
        owner = model.get_submodule(path)
    except AttributeError:
        return  # load_state_dict tells
    parameter, buffer = owner._parameters.get(leaf), owner._buffers.get(leaf)
    here = buffer if parameter is None else parameter
    if here is None or here.shape == shape:
        return
    free = isinstance(owner, Growing) and leaf in owner.free_tensors
    if here.ndim != len(shape) or (here.shape[1:] != shape[1:] and not free):
        raise CheckpointError(
            f"the saved weights do not fit {type(model).__name__}: {name} was of shape "
            f"{tuple(shape)}, is {tuple(here.shape)}"
        )
    new = here.detach().new_zeros(shape)
    if parameter is not None:
        owner._parameters[leaf] = nn.Parameter(new, parameter.requires_grad)
    else:
        owner._buffers[leaf] = new
