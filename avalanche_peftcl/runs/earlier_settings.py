"""Settings as earlier versions recorded them: options without effect, and values by other names."""

from collections.abc import Mapping
from typing import Any

# of built-in strategies, which were recorded beside a module too: see Component.own_module
_IDLE = {"pegp": ("peft", "r", "length", "blocks")}
# of built-in strategies, by option and earlier name
_NOW = {"pegp": {"peft": {"adapter": "attention_adapter"}}}


def idle_options(strategy: str) -> tuple[str, ...]:
    """Return the options of a strategy that say nothing beside a module."""
    return _IDLE.get(_built_in(strategy), ())


def named_now(strategy: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a strategy with the names that values have now.

    Example:
        >>> named_now("pegp", {"peft": "adapter", "r": 5})
        {'peft': 'attention_adapter', 'r': 5}
    """
    names = _NOW.get(_built_in(strategy), {})
    return {
        key: names[key].get(value, value) if key in names and isinstance(value, str) else value
        for key, value in options.items()
    }


def as_now(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings of a run as this version would record them.

    Options that say nothing beside its module are left out, and values have their present names.

    Args:
        settings: As a record has them, or a part of it; whatever they are, no option is added.

    Example:
        >>> as_now({"strategy": {"name": "pegp", "r": 5, "lr": 0.1}, "module": {"name": "x"}})
        {'strategy': {'name': 'pegp', 'lr': 0.1}, 'module': {'name': 'x'}}
        >>> as_now({"strategy": {"name": "pegp", "r": 5}, "module": None})
        {'strategy': {'name': 'pegp', 'r': 5}, 'module': None}
    """
    kept, strategy = dict(settings), settings.get("strategy")
    if isinstance(strategy, Mapping):
        name = str(strategy.get("name"))
        idle = idle_options(name) if settings.get("module") is not None else ()
        told = {key: value for key, value in strategy.items() if key not in idle}
        kept["strategy"] = named_now(name, told)
    return kept


def _built_in(strategy: str) -> str:
    """Return the name of a built-in strategy; empty of another package's."""
    package, _, name = strategy.rpartition("/")
    return name if package in ("", "avalanche-peftcl") else ""
