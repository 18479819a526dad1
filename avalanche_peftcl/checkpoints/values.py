"""Values of attributes as a checkpoint holds them: each with its kind, and back."""

import functools
import types
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from avalanche.evaluation.metrics import Mean, Sum
from torch import Tensor, nn

from avalanche_peftcl.checkpoints.joints import Stateful
from avalanche_peftcl.checkpoints.model_state import load_model_state, model_state
from avalanche_peftcl.errors import CheckpointError

Kept = tuple[str, Any]

_SEQUENCES: dict[str, Any] = {kind.__name__: kind for kind in (list, tuple, set, frozenset, deque)}
_MAPPINGS: dict[str, Any] = {
    kind.__name__: kind for kind in (dict, defaultdict, OrderedDict, Counter)
}
_MADE = {kind.__name__: kind for kind in (Mean, Sum)}  # metrics that may stand in containers
# what an object is built with
_FIXED = (
    *(types.FunctionType, types.BuiltinFunctionType, types.MethodType, functools.partial, type),
    *(torch.dtype, torch.device),
)


class UnknownKindError(Exception):
    """A value is of a kind whose state is not known."""


class Asked(NamedTuple):
    """How objects are asked for their state."""

    known: Callable[[Any], bool]
    """Whether an object of this class says what it keeps, or somebody said it of the class."""
    state: Callable[[Any], Any]


def value_state(value: Any, asked: Asked, *, named: bool) -> Kept | None:
    """Return the kind of a value and what is kept of it.

    Args:
        value: An attribute.
        asked: How an object is asked.
        named: Whether a class asks for it by name; then modules are kept as well, and all that has
            a ``state_dict()``. Unasked they may be the strategy's own.

    Returns:
        ``None`` if it is something that an object is built with.

    Raises:
        UnknownKindError: If it is of a kind whose state is not known; the message names the kind.
    """
    if isinstance(value, nn.Module) and named:
        return "module", model_state(value)
    if isinstance(value, _FIXED) and not named:
        return None
    if _is_known(value, asked) or (named and isinstance(value, Stateful)):
        return "object", {"class": type(value).__name__, "state": asked.state(value)}
    return _kept(value, asked)


def load_value(current: Any, kept: Kept, where: str, load: Callable[[Any, Any], None]) -> Any:
    """Return the value that :func:`value_state` was given.

    Args:
        current: What stands there: an object into which a state is loaded, or a ``defaultdict``.
        kept: What was returned.
        where: Its name, for messages.
        load: Sets an object to its state.

    Raises:
        CheckpointError: If there is no such object.
    """
    kind, content = kept
    if kind == "plain":
        return content
    if kind == "array":
        return content.numpy()
    if kind == "module":
        if not isinstance(current, nn.Module):
            raise CheckpointError(f"{where} was a module, is a {type(current).__name__}")
        load_model_state(current, content)
        return current
    if kind == "object":
        name = content["class"]
        if current is None and name in _MADE:
            current = _MADE[name]()
        if type(current).__name__ != name:
            raise CheckpointError(
                f"{where}: a {type(current).__name__} stands where a {name} stood"
            )
        load(current, content["state"])
        return current
    if kind in _SEQUENCES:
        parts = [load_value(None, part, where, load) for part in content["parts"]]
        return deque(parts, content["maxlen"]) if kind == "deque" else _SEQUENCES[kind](parts)
    if kind == "defaultdict":
        if not isinstance(current, defaultdict):
            raise CheckpointError(f"{where} was a defaultdict, is a {type(current).__name__}")
        held: defaultdict[Any, Any] = defaultdict(current.default_factory)
        for key, part in content:  # the factory makes what is to be filled
            new = None if held.default_factory is None else held.default_factory()
            held[key] = load_value(new, part, where, load)
        return held
    return _MAPPINGS[kind]({key: load_value(None, part, where, load) for key, part in content})


def _is_known(value: Any, asked: Asked) -> bool:
    return type(value).__module__.startswith("avalanche.evaluation.") or asked.known(value)


def _kept(value: Any, asked: Asked) -> Kept:
    if _is_plain(value):
        return "plain", value
    if isinstance(value, np.ndarray) and value.dtype.kind in "bif":
        return "array", torch.from_numpy(np.ascontiguousarray(value).copy())
    if isinstance(value, np.integer | np.bool_ | np.floating):
        return "plain", value.item()
    kind = type(value)
    if kind in _SEQUENCES.values():
        held: dict[str, Any] = {"parts": [_inside(part, asked) for part in value]}
        return kind.__name__, held | ({"maxlen": value.maxlen} if kind is deque else {})
    if kind in _MAPPINGS.values():
        made = kind is defaultdict
        parts = [(key, _inside(part, asked, made=made)) for key, part in value.items()]
        return kind.__name__, parts
    raise UnknownKindError(kind.__name__)


def _inside(value: Any, asked: Asked, *, made: bool = False) -> Kept:
    """Return what is kept of a value in a container; an object must be one that can be made."""
    if type(value) in _MADE.values() or (made and _is_known(value, asked)):
        return "object", {"class": type(value).__name__, "state": asked.state(value)}
    try:
        return _kept(value, asked)
    except UnknownKindError as unknown:
        raise UnknownKindError(f"{unknown} in a container") from None


def _is_plain(value: Any) -> bool:
    kind = type(value)
    if value is None or kind in (bool, int, float, str, Tensor):
        return True
    if kind is dict:
        return all(_is_plain(inner) for inner in value.values())
    return kind in (list, tuple, set) and all(map(_is_plain, value))
