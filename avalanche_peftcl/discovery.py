"""Find plugin packages through their entry points and load each in isolation."""

import os
import warnings
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.metadata import Distribution, EntryPoint, distributions, version

import pluggy
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from avalanche_peftcl import hookspecs
from avalanche_peftcl.component import Component
from avalanche_peftcl.errors import ConfigError, PluginLoadWarning

HOST = "avalanche-peftcl"
SWITCH = "AVALANCHE_PEFTCL_PLUGINS"
HOOKS = {
    "backbone": "peftcl_backbones",
    "module": "peftcl_modules",
    "benchmark": "peftcl_benchmarks",
    "strategy": "peftcl_strategies",
    "strategy_plugin": "peftcl_strategy_plugins",
    "metric": "peftcl_metrics",
    "logger": "peftcl_loggers",
}


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


@dataclass(frozen=True, slots=True)
class PluginRecord:
    """What became of one entry point; ``cause`` says why it was left out."""

    provider: Provider
    entry_point: str
    loaded: bool
    cause: str | None = None


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
    entries: list[Entry] = []
    plugins: list[PluginRecord] = []
    packages = list(_plugin_packages())
    asked = {canonicalize_name(name) for name in only or ()}
    for distribution, points in packages:
        if only is not None and canonicalize_name(distribution.name) not in asked:
            continue
        provider = Provider(distribution.name, distribution.version)
        taken: set[tuple[str, str]] = set()
        for point in points:
            cause = None
            if wanted is not None and canonicalize_name(provider.name) not in {HOST, *wanted}:
                cause = f"not named in {SWITCH}"
            else:
                try:
                    _check_version(distribution)
                    offered = [Entry(k, c, provider) for k, c in _components(point, taken)]
                except (Exception, SystemExit) as error:
                    cause = say(error)
                    _warn(
                        f"plugin package {provider} (entry point {point.name!r}, with {HOST} "
                        f"{version(HOST)}) was left out: {cause}"
                    )
                else:
                    entries += offered
                    taken |= {(e.kind, e.component.name) for e in offered}
            plugins.append(PluginRecord(provider, point.name, cause is None, cause))
    found = {canonicalize_name(distribution.name) for distribution, _ in packages}
    for name in sorted((wanted or set()) - found):
        _warn(
            f"{SWITCH} names {name!r}, but no installed distribution of that name has an entry "
            f"point in group {hookspecs.GROUP!r}; those that have: {join(sorted(found))}"
        )
    return entries, plugins


def plugin_modules() -> set[str]:
    """Return the top-level modules of the plugin packages that may be loaded, importing none."""
    wanted = _switch()
    return {
        point.module.partition(".")[0]
        for distribution, points in _plugin_packages()
        if wanted is None or canonicalize_name(distribution.name) in {HOST, *wanted}
        for point in points
    }


def _switch() -> set[str] | None:
    value = os.environ.get(SWITCH)
    if value is None:
        return None
    return {canonicalize_name(part.strip()) for part in value.split(",") if part.strip()}


def _plugin_packages() -> Iterator[tuple[Distribution, list[EntryPoint]]]:
    """Yield distributions with entry points of ours; the first of a name on ``sys.path`` wins."""
    first: dict[str, Distribution] = {}
    for distribution in distributions():
        # the text first: a foreign package's broken entry_points.txt must not stop us
        if f"[{hookspecs.GROUP}]" in (distribution.read_text("entry_points.txt") or ""):
            first.setdefault(canonicalize_name(distribution.name), distribution)
    for _, distribution in sorted(first.items()):
        points = [p for p in distribution.entry_points if p.group == hookspecs.GROUP]
        yield distribution, sorted(points, key=lambda p: p.name)


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
        hooks = HOOKS.values()
        raise ConfigError(
            f"unknown hook {wrong!r}{did_you_mean(wrong, hooks)}; the hooks are {join(hooks)}"
        ) from error
    taken = set(taken)
    for kind, hook in HOOKS.items():
        for offer in getattr(manager.hook, hook)():
            if not isinstance(offer, Iterable):
                raise ConfigError(
                    f"hook {hook} must return an iterable of Component, not {offer!r}"
                )
            for component in offer:
                if not isinstance(component, Component):
                    raise ConfigError(f"hook {hook} must offer Component, not {component!r}")
                if (kind, component.name) in taken:
                    raise ConfigError(f"it offers {kind} {component.name!r} twice")
                taken.add((kind, component.name))
                yield kind, component


def _warn(text: str) -> None:
    warnings.warn(text, PluginLoadWarning, stacklevel=4)


def say(error: BaseException) -> str:
    """Return an error as one line."""
    text = str(error) if isinstance(error, ConfigError) else f"{type(error).__name__}: {error}"
    return " ".join(text.split())


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return the nearest of ``known`` in brackets, or nothing if none is near."""
    match = get_close_matches(name, list(known), n=1)
    return f" (did you mean {match[0]!r}?)" if match else ""


def join(words: Iterable[str]) -> str:
    """Return a list as one writes it in a sentence."""
    return ", ".join(words)
