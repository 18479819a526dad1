"""What a run finds out about itself and where it runs, for its record."""

import json
import os
import platform
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.registry.offers import MetricOffers, PluginOffers
from avalanche_peftcl.registry.packages import Entry
from avalanche_peftcl.runs.schema import Provided

_PACKAGES = (
    "avalanche-peftcl",
    "avalanche-lib",
    "torch",
    "torchvision",
    "timm",
    "peft",
    "numpy",
)


def describe_components(entries: Iterable[Entry]) -> list[Provided]:
    """Return kind, name, provider, version and source of each component."""
    return [
        Provided(
            kind=entry.kind,
            name=entry.component.name,
            provider=entry.provider.name,
            version=entry.provider.version,
            source=entry.component.source,
        )
        for entry in entries
    ]


def describe_plugins(plugins: Iterable[Any]) -> dict[str, Any]:
    """Return by class name what those of ``plugins`` tell that have a ``summary()``.

    The second of a class goes by its name and ``_2``, and so on.

    Example:
        >>> class Told(dict):
        ...     def summary(self):
        ...         return dict(self)
        >>> describe_plugins([Told(a=1), object(), Told(a=2)])
        {'Told': {'a': 1}, 'Told_2': {'a': 2}}
    """
    return _summaries((type(each).__name__, PluginOffers.of(each).summary) for each in plugins)


def describe_metrics(metrics: Iterable[Any]) -> dict[str, Any]:
    """Return what those of ``metrics`` tell, named as by :func:`describe_plugins`."""
    return _summaries((type(each).__name__, MetricOffers.of(each).summary) for each in metrics)


def _summaries(told: Iterable[tuple[str, Callable[[], Any] | None]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    times: Counter[str] = Counter()
    for name, offered in told:
        if offered is None:
            continue
        times[name] += 1
        found[f"{name}_{times[name]}" if times[name] > 1 else name] = plain(offered())
    for name, summary in found.items():
        try:
            json.dumps(summary)
        except TypeError as error:
            raise ConfigError(
                f"{name}.summary() returns what a record cannot hold: {error}; return dicts, "
                "lists, strings, numbers and None, of a tensor its tolist()"
            ) from error
    return found


def plugin_headlines(plugins: Iterable[Any]) -> list[str]:
    """Return a line of each of ``plugins`` that has a ``headline()`` and something to say.

    Example:
        >>> from types import SimpleNamespace
        >>> plugin = SimpleNamespace(headline=lambda: "projection: 3 of 5 directions")
        >>> plugin_headlines([plugin, object()])
        ['projection: 3 of 5 directions']
    """
    offered = (PluginOffers.of(plugin).headline for plugin in plugins)
    return [line for headline in offered if headline is not None if (line := headline())]


def describe_platform(device: torch.device) -> dict[str, str | int | None]:
    """Return what the run computes on; no name of a machine or a person."""
    cuda = device.type == "cuda"
    return {
        "device": str(device),
        "device_name": torch.cuda.get_device_name(device) if cuda else None,
        "system": platform.system(),
        "machine": platform.machine(),
        "processors": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }


def describe_versions(entries: Iterable[Entry]) -> dict[str, str]:
    """Return the versions of Python and of the packages that a result depends on.

    Args:
        entries: Components of a run; what they compute with is told where it is installed.
    """
    told = {"python": platform.python_version()} | {name: version(name) for name in _PACKAGES}
    for name in sorted({name for entry in entries for name in entry.component.libraries}):
        with suppress(PackageNotFoundError):
            told[name] = version(name)
    return told


def now() -> str:
    """Return the time in UTC, to the second, as ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def plain(value: Any) -> Any:
    """Return ``value`` as JSON holds it: lists, dicts with string keys, ``None`` for nan.

    Example:
        >>> plain({1: (0.5, float("nan"))})
        {'1': [0.5, None]}
    """
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if isinstance(value, float) and not abs(value) < float("inf"):
        return None
    return value
