"""Look components up by name and build them, whoever provides them."""

import inspect
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from packaging.utils import canonicalize_name

from avalanche_peftcl.errors import (
    AmbiguousComponentError,
    ConfigError,
    UnknownComponentError,
)
from avalanche_peftcl.registry.isolation import ForeignError, isolated
from avalanche_peftcl.registry.kinds import KINDS, kind_of
from avalanche_peftcl.registry.packages import Entry, PluginRecord, load_packages
from avalanche_peftcl.registry.schema import Schema
from avalanche_peftcl.registry.wording import did_you_mean, join, say


class Registry:
    """The components that the loaded packages offer, by kind and name.

    Args:
        entries: Every component on offer.
        plugins: Every plugin package, loaded or left out.

    Example:
        >>> registry = discover()
        >>> registry.get("strategy_plugin", "ewc").provider.name
        'avalanche-peftcl'
        >>> sorted(registry.options("strategy_plugin", "lwf"))
        ['alpha', 'temperature']
    """

    def __init__(self, entries: Iterable[Entry], plugins: Iterable[PluginRecord] = ()) -> None:
        self._entries = list(entries)
        self.plugins = list(plugins)

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of component, one for each hook."""
        return tuple(KINDS)

    def entries(self, kind: str | None = None) -> list[Entry]:
        """Return the components of ``kind``, or all, sorted by kind, name and provider.

        Raises:
            ConfigError: If there is no such kind.
        """
        if kind is not None:
            kind = kind_of(kind).name
        order = list(KINDS)
        return sorted(
            (e for e in self._entries if kind is None or e.kind == kind),
            key=lambda e: (order.index(e.kind), e.component.name, e.provider.name),
        )

    def names(self, kind: str) -> list[str]:
        """Return the spellings of ``kind`` that work: bare, or in full where two clash."""
        entries = self.entries(kind)
        return [e.component.name if self._alone(e, entries) else e.spelling for e in entries]

    def remark(self, record: PluginRecord) -> str:
        """Return why a package was left out, or which of its names must be written in full."""
        if record.cause is not None:
            return record.cause
        full = [e for e in record.entries if not self._alone(e, self.entries(e.kind))]
        return "; ".join(f"{self._clash(e)}: write {e.spelling!r}" for e in full)

    def _clash(self, entry: Entry) -> str:
        name = f"{entry.kind} {entry.component.name!r}"
        others = [e for e in self._same(entry, self.entries(entry.kind)) if e is not entry]
        if any(e.built_in for e in others):
            return f"{name} is a built-in's name"
        return f"{name} is offered by {join(e.provider.name for e in others)} too"

    @staticmethod
    def _same(entry: Entry, entries: list[Entry]) -> list[Entry]:
        return [e for e in entries if e.component.name == entry.component.name]

    def _alone(self, entry: Entry, entries: list[Entry]) -> bool:
        """Whether the bare name means this entry."""
        return entry.built_in or len(self._same(entry, entries)) == 1

    def get(self, kind: str, name: str) -> Entry:
        """Look up one component.

        Args:
            kind: One of :attr:`kinds`.
            name: ``"name"`` or ``"package/name"``. The bare name of a built-in is the built-in's,
                whoever else offers it.

        Returns:
            The one entry of that name.

        Raises:
            ConfigError: If there is no such kind.
            UnknownComponentError: If no loaded package offers the name.
            AmbiguousComponentError: If several do and ``name`` does not say which.
        """
        package, slash, bare = name.rpartition("/")
        found = [
            e
            for e in self.entries(kind)
            if e.component.name == bare
            and (not slash or canonicalize_name(e.provider.name) == canonicalize_name(package))
        ]
        if not slash:  # no installed stranger breaks a configuration
            found = [e for e in found if e.built_in] or found
        if len(found) == 1:
            return found[0]
        if found:
            raise AmbiguousComponentError(
                f"{kind} {name!r} is offered by {len(found)} packages "
                f"({join(str(e.provider) for e in found)}); "
                f"write {' or '.join(repr(e.spelling) for e in found)}"
            )
        known = self.names(kind)
        near = did_you_mean(name, known) or did_you_mean(bare, known)
        out = join(f"{r.provider} ({r.cause})" for r in self.plugins if not r.loaded)
        raise UnknownComponentError(
            f"unknown {kind} {name!r}{near or _of_timm(kind, bare)}; known: {join(known) or 'none'}"
            + (f"; left out: {out}" if out else "")
        )

    def schema(self, kind: str, name: str) -> Schema:
        """Return the options of a component, ready to be shown or checked.

        Raises:
            ConfigError: If what the provider named cannot be imported or has no signature.
        """
        return schema_of(self.get(kind, name))

    def options(self, kind: str, name: str) -> dict[str, inspect.Parameter]:
        """Return what may stand in a configuration: the arguments that the run does not hand in."""
        return dict(self.schema(kind, name).options)

    def build(
        self,
        kind: str,
        name: str,
        options: Mapping[str, Any] | None = None,
        given: Mapping[str, Any] | None = None,
    ) -> Any:
        """Build a component.

        Args:
            kind: One of :attr:`kinds`.
            name: ``"name"`` or ``"package/name"``.
            options: Values by option name; each is converted to its annotation.
            given: What the run hands in; passed if the builder's signature names it.

        Returns:
            Whatever the component builds.

        Raises:
            ConfigError: Unknown or missing option, wrong type, out of range, or a builder that
                cannot be imported, raises or returns ``None``. Every problem has its own line.
            PEFTCLError: Whatever else of this kind the builder raises, as it is.
            UnknownComponentError: If no loaded package offers the name.
            AmbiguousComponentError: If several do and ``name`` does not say which.

        Example:
            >>> discover().build("strategy_plugin", "ewc", {"ewc_lambda": -1})
            Traceback (most recent call last):
            avalanche_peftcl.errors.ConfigError: strategy_plugin 'ewc' of avalanche-peftcl ...
        """
        schema = self.schema(kind, name)
        return schema.build(schema.check(options or {}), given or {})


def discover(only: Collection[str] | None = None) -> Registry:
    """Load the installed plugin packages, each in isolation, the package's own among them.

    Entry points of group ``avalanche_peftcl`` are loaded one by one, sorted by distribution name.
    One that fails is left out with a :class:`PluginLoadWarning`; the others are not affected. The
    environment variable ``AVALANCHE_PEFTCL_PLUGINS`` says which distributions to load: unset, all;
    empty, none; a comma-separated list, those. Our own is always loaded.

    Args:
        only: Names of the distributions to load; ``None`` loads all.

    Returns:
        What was found; keep it and pass it around, nothing is cached.

    Example:
        >>> "strategy" in discover().kinds
        True
    """
    return Registry(*load_packages(only))


def schema_of(entry: Entry) -> Schema:
    """Return what the builder of a component takes; its module is imported if need be.

    Raises:
        ConfigError: If what the provider named cannot be imported or has no signature.
    """
    title = f"{entry.kind} {entry.component.name!r} of {entry.provider}"
    try:
        with isolated():
            builder = entry.component.load()
    except ForeignError as caught:
        raise ConfigError(
            f"{title} cannot be loaded from {entry.component.build!r}: {say(caught.error)}"
        ) from caught.error
    kind = kind_of(entry.kind)
    wanted = f"; its hook {kind.hook} asks for a {kind.what}"
    return Schema.of(builder, given=kind.given, title=title, wanted=wanted)


def _of_timm(kind: str, name: str) -> str:
    """Say how a network of timm's is written where its name stands as a backbone's."""
    if kind != "backbone" or "_patch" not in name:
        return ""
    return f", which timm may have: {{name: timm_vit, model_name: {name}}}"
