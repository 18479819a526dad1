"""Settings as earlier versions recorded them, without options that had no effect."""

from collections.abc import Mapping
from typing import Any

# of built-in strategies, which were recorded beside a module too: see Component.own_module
_IDLE = {"pegp": ("peft", "r", "length", "blocks")}


def idle_options(strategy: str) -> tuple[str, ...]:
    """Return the options of a strategy that say nothing beside a module."""
    package, _, name = strategy.rpartition("/")
    return _IDLE.get(name, ()) if package in ("", "avalanche-peftcl") else ()


def without_idle(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings of a run without options that say nothing beside its module.

    Args:
        settings: As a record has them, or a part of it; whatever they are, no option is added.

    Example:
        >>> without_idle({"strategy": {"name": "pegp", "r": 5, "lr": 0.1}, "module": {"name": "x"}})
        {'strategy': {'name': 'pegp', 'lr': 0.1}, 'module': {'name': 'x'}}
        >>> without_idle({"strategy": {"name": "pegp", "r": 5}, "module": None})
        {'strategy': {'name': 'pegp', 'r': 5}, 'module': None}
    """
    kept, strategy = dict(settings), settings.get("strategy")
    if settings.get("module") is not None and isinstance(strategy, Mapping):
        idle = idle_options(str(strategy.get("name")))
        kept["strategy"] = {key: value for key, value in strategy.items() if key not in idle}
    return kept
