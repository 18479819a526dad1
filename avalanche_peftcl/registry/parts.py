"""What a run needs of each thing that a builder returns; asked before anything is trained."""

from collections.abc import Callable
from typing import Any

from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.registry.wording import show

_CALLBACKS = ("before_", "after_")


def _has(*names: str) -> Callable[[Any], bool]:
    return lambda part: all(hasattr(part, name) for name in names)


def _listens(part: Any) -> bool:
    return any(name.startswith(_CALLBACKS) for name in dir(part))


def _measures(part: Any) -> bool:
    metrics = part if isinstance(part, list | tuple) else [part]
    return all(hasattr(metric, "result") and hasattr(metric, "reset") for metric in metrics)


# kind: what it is, and whether a part may be one
_PARTS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "backbone": ("module of torch", _has("parameters", "state_dict")),
    "module": ("module of torch", _has("parameters", "state_dict")),
    "benchmark": ("Avalanche benchmark", _has("train_stream", "test_stream")),
    "strategy": ("Avalanche strategy", _has("train", "eval", "model", "plugins")),
    "strategy_plugin": ("Avalanche plugin", _listens),
    "metric": ("Avalanche plugin metric and no list of them", _measures),
    "logger": ("Avalanche logger", _has("log_single_metric")),
}


def check_part(kind: str, part: Any, title: str) -> None:
    """Refuse what is not of its kind.

    Args:
        kind: Kind of component.
        part: What its builder returned.
        title: Name of the component with its package.

    Raises:
        ConfigError: With what was returned.

    Example:
        >>> check_part("logger", 3, "logger 'x' of a 1.0")
        Traceback (most recent call last):
        avalanche_peftcl.errors.ConfigError: logger 'x' of a 1.0 built 3, which is no Avalanche ...
    """
    what, fits = _PARTS[kind]
    if not fits(part):
        raise ConfigError(f"{title} built {show(part)}, which is no {what}")
