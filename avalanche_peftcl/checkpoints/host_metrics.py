"""What Avalanche's own metrics remember, read from and written to their attributes."""

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from avalanche_peftcl.errors import CheckpointError

_HOST = "avalanche.evaluation."
_CLOCKS = ("_init_time", "_prev_time")  # readings that mean nothing in another process


def metric_state(metric: Any) -> dict[str, Any]:
    """Return the attributes of an Avalanche metric, those of metrics inside it among them.

    Functions are left out, a metric is built with them; so are readings of a clock.

    Raises:
        CheckpointError: If an attribute is of a kind that cannot be written down.

    Example:
        >>> from avalanche.evaluation.metrics import Mean
        >>> mean = Mean()
        >>> mean.update(3.0)
        >>> metric_state(mean)
        {'class': 'Mean', 'attributes': {'summed': 3.0, 'weight': 1.0}}
    """
    kind = type(metric).__name__
    attributes = {
        name: _value(value, f"{kind}.{name}")
        for name, value in vars(metric).items()
        if name not in _CLOCKS and (is_host_metric(value) or not callable(value))
    }
    return {"class": kind, "attributes": attributes}


def load_metric_state(metric: Any, state: Mapping[str, Any]) -> None:
    """Set the attributes of ``metric`` to what :func:`metric_state` returned.

    Raises:
        CheckpointError: If the state is that of another metric.
    """
    if state["class"] != type(metric).__name__:
        raise CheckpointError(f"a {type(metric).__name__} stands where a {state['class']} stood")
    for name, value in state["attributes"].items():
        setattr(metric, name, _loaded(getattr(metric, name), value))


def is_host_metric(value: Any) -> bool:
    """Whether ``value`` is an instance of a class in Avalanche's evaluation package."""
    return type(value).__module__.startswith(_HOST)


def _value(value: Any, where: str) -> Any:
    if is_host_metric(value):
        return metric_state(value)
    if isinstance(value, defaultdict):
        return {key: _value(inner, where) for key, inner in value.items()}
    inside = value.values() if isinstance(value, dict) else value
    flat = isinstance(value, dict | list | tuple | set) and all(map(_is_plain, inside))
    if not flat and not _is_plain(value):
        raise CheckpointError(f"{where} is a {type(value).__name__}, which cannot be written down")
    return value


def _loaded(now: Any, value: Any) -> Any:
    if is_host_metric(now):
        load_metric_state(now, value)
        return now
    if isinstance(now, defaultdict):
        now.clear()
        for key, inner in value.items():
            now[key] = _loaded(now[key], inner)  # the factory makes what is to be filled
        return now
    return value


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, bool | int | float | str | Tensor)
