"""What is installed, as tables for a terminal."""

from dataclasses import asdict
from typing import Any

from rich.console import RenderableType
from rich.table import Table

from avalanche_peftcl.console import add_row, plain, plain_table
from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.registry.kinds import kind_of
from avalanche_peftcl.registry.packages import Entry
from avalanche_peftcl.registry.registry import Registry, schema_of


def component_table(registry: Registry, kind: str | None = None) -> Table:
    """Return the components of ``kind``, or of every kind, each by the name that works.

    Raises:
        ConfigError: If there is no such kind.
    """
    table = plain_table("kind", "name", "provider", "version", "source")
    for each in registry.kinds if kind is None else (kind_of(kind).name,):
        for name, entry in zip(registry.names(each), registry.entries(each), strict=True):
            provider = entry.provider
            add_row(table, each, name, provider.name, provider.version, entry.component.source)
        table.add_section()
    return table


def component_page(registry: Registry, kind: str, name: str) -> list[RenderableType]:
    """Return who offers a component, what it follows, the scenarios it serves and its options.

    Raises:
        ConfigError: If there is no such kind, or the builder cannot be read.
        UnknownComponentError: If no loaded package offers the name.
        AmbiguousComponentError: If several do and ``name`` does not say which.
    """
    kind = kind_of(kind).name
    entry = registry.get(kind, name)
    component = entry.component
    table = plain_table("option", "type and range", "default", "what it is")
    for option in schema_of(entry).told():
        default = "required" if option.required else option.default
        add_row(table, option.name, option.type, default, option.text)
    return [
        plain(f"{kind} {component.name} of {entry.provider}: {component.source}"),
        plain(f"scenarios: {', '.join(component.scenarios)}"),
        table if table.row_count else plain("It has no options."),
    ]


def components_json(registry: Registry, kind: str | None = None) -> list[dict[str, Any]]:
    """Return what :func:`component_table` shows, for programs."""
    return [
        _component_json(name, entry)
        for each in (registry.kinds if kind is None else (kind_of(kind).name,))
        for name, entry in zip(registry.names(each), registry.entries(each), strict=True)
    ]


def component_json(registry: Registry, kind: str, name: str) -> dict[str, Any]:
    """Return what :func:`component_page` shows, for programs; ``schema`` is one of JSON."""
    entry = registry.get(kind_of(kind).name, name)
    options = [asdict(option) for option in schema_of(entry).told()]
    return _component_json(name, entry) | {"options": options}


def packages_json(registry: Registry) -> list[dict[str, Any]]:
    """Return what :func:`package_table` shows, for programs."""
    return [
        {
            "package": record.provider.name,
            "version": record.provider.version,
            "entry_point": record.entry_point,
            "loaded": record.loaded,
            "remark": registry.remark(record),
            "components": [f"{e.kind} {e.component.name}" for e in record.entries],
        }
        for record in registry.plugins
    ]


def broken_builders(registry: Registry) -> list[tuple[str, str]]:
    """Import every builder and read its options; return those that cannot be, with the reason.

    Returns:
        ``"kind package/name"`` and what is wrong.
    """
    found = []
    for entry in registry.entries():
        try:
            schema_of(entry).told()
        except ConfigError as error:
            found.append((f"{entry.kind} {entry.spelling}", str(error)))
    return found


def _component_json(name: str, entry: Entry) -> dict[str, Any]:
    return {
        "kind": entry.kind,
        "name": name,
        "provider": entry.provider.name,
        "version": entry.provider.version,
        "source": entry.component.source,
        "scenarios": list(entry.component.scenarios),
    }


def package_table(registry: Registry) -> Table:
    """Return every plugin package, loaded or left out, and what is to be said of it."""
    table = plain_table("package", "version", "entry point", "state", "remark")
    for record in registry.plugins:
        provider, state = record.provider, "loaded" if record.loaded else "left out"
        remark = registry.remark(record)
        add_row(table, provider.name, provider.version, record.entry_point, state, remark)
    return table
