"""What is installed, as tables for a terminal."""

from rich.console import RenderableType
from rich.table import Table

from avalanche_peftcl.console import add_row, plain, plain_table
from avalanche_peftcl.registry.registry import Registry


def component_table(registry: Registry, kind: str | None = None) -> Table:
    """Return the components of ``kind``, or of every kind, each by the name that works.

    Raises:
        ConfigError: If there is no such kind.
    """
    table = plain_table("kind", "name", "provider", "version", "source")
    for each in registry.kinds if kind is None else (kind,):
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
    entry = registry.get(kind, name)
    component = entry.component
    table = plain_table("option", "type", "default")
    for option, annotation, default in registry.schema(kind, name).describe():
        add_row(table, option, annotation, default or ("" if option[0] == "*" else "required"))
    return [
        plain(f"{kind} {component.name} of {entry.provider}: {component.source}"),
        plain(f"scenarios: {', '.join(component.scenarios)}"),
        table if table.row_count else plain("It has no options."),
    ]


def package_table(registry: Registry) -> Table:
    """Return every plugin package, loaded or left out, and what is to be said of it."""
    table = plain_table("package", "version", "entry point", "state", "remark")
    for record in registry.plugins:
        provider, state = record.provider, "loaded" if record.loaded else "left out"
        remark = registry.remark(record)
        add_row(table, provider.name, provider.version, record.entry_point, state, remark)
    return table
