"""Find plugin packages through their entry points and load each in isolation."""

import os
import warnings
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, fields
from importlib.metadata import Distribution, EntryPoint, version
from itertools import islice
from typing import Any

import pluggy
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from avalanche_peftcl.errors import ConfigError, PluginLoadWarning
from avalanche_peftcl.registry import hookspecs
from avalanche_peftcl.registry.component import Component
from avalanche_peftcl.registry.installed import Package, Point, packages
from avalanche_peftcl.registry.isolation import ForeignError, isolated
from avalanche_peftcl.registry.kinds import KINDS
from avalanche_peftcl.registry.wording import did_you_mean, join, say, show

HOST = "avalanche-peftcl"
SWITCH = "AVALANCHE_PEFTCL_PLUGINS"
_MOST = 10_000  # components of one hook; a generator may have no end


@dataclass(frozen=True, slots=True)
class Provider:
    """The installed distribution that offers something."""

    name: str
    version: str

    def __str__(self) -> str:
        return f"{self.name} {self.version}"


@dataclass(frozen=True, slots=True)
class Entry:
    """One component, its kind and who offers it."""

    kind: str
    component: Component
    provider: Provider

    @property
    def spelling(self) -> str:
        """The name that is right whoever else uses the same one: ``"package/name"``."""
        return f"{self.provider.name}/{self.component.name}"

    @property
    def built_in(self) -> bool:
        """Whether it is one of this package's own, which keeps its bare name."""
        return canonicalize_name(self.provider.name) == HOST


@dataclass(frozen=True, slots=True)
class PluginRecord:
    """What one entry point offers: ``entries``, or nothing, and ``cause`` says why."""

    provider: Provider
    entry_point: str
    loaded: bool
    cause: str | None = None
    entries: tuple[Entry, ...] = ()


def load_packages(
    only: Collection[str] | None = None,
) -> tuple[list[Entry], list[PluginRecord]]:
    """Load what ``AVALANCHE_PEFTCL_PLUGINS`` allows and say what became of every entry point.

    Args:
        only: Names of the distributions to look at; ``None`` looks at all.

    Returns:
        All components on offer, and one record for each entry point.
    """
    wanted = _switch()
    records: list[PluginRecord] = []
    found = packages(hookspecs.GROUP)
    asked = {canonicalize_name(name) for name in only or ()}
    for package in found:
        if only is not None and canonicalize_name(package.name) not in asked:
            continue
        provider = Provider(package.name, package.version)
        taken: set[tuple[str, str]] = set()
        for point in package.points:
            if not _is_wanted(package, wanted):
                cause = f"not named in {SWITCH}"
                records.append(PluginRecord(provider, point.name, False, cause))
                continue
            record = _load(package, point, provider, taken)
            taken |= {(e.kind, e.component.name) for e in record.entries}
            records.append(record)
            if record.cause is not None:
                _warn(
                    f"plugin package {provider} (entry point {point.name!r}, with {HOST} "
                    f"{version(HOST)}) was left out: {record.cause}"
                )
    names = {canonicalize_name(package.name) for package in found}
    for name in sorted((wanted or set()) - names):
        _warn(
            f"{SWITCH} names {name!r}, but no installed distribution of that name has an entry "
            f"point in group {hookspecs.GROUP!r}; those that have: {join(sorted(names))}"
        )
    return [entry for record in records for entry in record.entries], records


def plugin_modules() -> set[str]:
    """Return the top-level modules of the plugin packages that may be loaded, importing none."""
    wanted = _switch()
    return {
        point.entry_point.module.partition(".")[0]
        for package in packages(hookspecs.GROUP)
        if package.cause is None and _is_wanted(package, wanted)
        for point in package.points
        if point.entry_point is not None
    }


def _switch() -> set[str] | None:
    value = os.environ.get(SWITCH)
    if value is None:
        return None
    return {canonicalize_name(part.strip()) for part in value.split(",") if part.strip()}


def _is_wanted(package: Package, wanted: set[str] | None) -> bool:
    return wanted is None or canonicalize_name(package.name) in {HOST, *wanted}


def _load(
    package: Package, point: Point, provider: Provider, taken: set[tuple[str, str]]
) -> PluginRecord:
    """Load one entry point; whatever happens there is told, not raised."""
    cause = package.cause or point.cause
    entries: tuple[Entry, ...] = ()
    if cause is None and point.entry_point is not None:
        try:
            with isolated():
                _check_version(package.distribution)
                offered = _components(point.entry_point, taken)
                entries = tuple(Entry(kind, component, provider) for kind, component in offered)
        except ForeignError as caught:
            cause = say(caught.error)
    return PluginRecord(provider, point.name, cause is None, cause, entries)


def _check_version(distribution: Distribution) -> None:
    """Refuse a distribution whose ``Requires-Dist`` excludes the version of ours."""
    for line in distribution.requires or ():
        required = Requirement(line)
        if canonicalize_name(required.name) != HOST:
            continue
        if required.marker is not None and not required.marker.evaluate({"extra": ""}):
            continue
        if not required.specifier.contains(version(HOST), prereleases=True):
            raise ConfigError(f"it requires {HOST}{required.specifier}")


def _components(point: EntryPoint, taken: set[tuple[str, str]]) -> Iterator[tuple[str, Component]]:
    """Yield kind and component from every hook of one entry point."""
    manager = pluggy.PluginManager(hookspecs.GROUP)
    manager.add_hookspecs(hookspecs)
    plugin = point.load()
    manager.register(plugin, name=point.name)
    callers = manager.get_hookcallers(plugin) or []
    if not callers:
        raise ConfigError("it has no hook; decorate a function with @avalanche_peftcl.hookimpl")
    try:
        manager.check_pending()
    except pluggy.PluginValidationError as error:
        wrong = next(c.name for c in callers if not c.has_spec())
        hooks = [kind.hook for kind in KINDS.values()]
        raise ConfigError(
            f"unknown hook {wrong!r}{did_you_mean(wrong, hooks)}; the hooks are {join(hooks)}"
        ) from error
    taken = set(taken)
    for kind in KINDS.values():
        for implementation in getattr(manager.hook, kind.hook).get_hookimpls():
            for component in _offered(kind.hook, implementation.function()):
                if (kind.name, component.name) in taken:
                    raise ConfigError(f"it offers {kind.name} {component.name!r} twice")
                taken.add((kind.name, component.name))
                yield kind.name, component


def _offered(hook: str, offer: Any) -> Iterator[Component]:
    """Yield what a hook returned, each checked; pluggy itself passes over a ``None``."""
    if not isinstance(offer, Iterable) or isinstance(offer, str | bytes):
        raise ConfigError(f"hook {hook} must return an iterable of Component, not {show(offer)}")
    for count, component in enumerate(islice(offer, _MOST + 1)):
        if count == _MOST:
            raise ConfigError(f"hook {hook} offers more than {_MOST} components")
        if not isinstance(component, Component):
            raise ConfigError(f"hook {hook} must offer Component, not {show(component)}")
        # made again, which checks it: a subclass may lie
        yield Component(*(getattr(component, field.name) for field in fields(Component)))


def _warn(text: str) -> None:
    warnings.warn(text, PluginLoadWarning, stacklevel=4)
