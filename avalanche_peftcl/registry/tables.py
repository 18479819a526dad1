"""What is installed, as tables for a terminal."""

from dataclasses import asdict
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table

from avalanche_peftcl.console import add_row, headed, plain, plain_table
from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.registry.costs import FORMULAS, SYMBOLS, Costs
from avalanche_peftcl.registry.kinds import kind_of
from avalanche_peftcl.registry.packages import Entry
from avalanche_peftcl.registry.registry import Registry, schema_of
from avalanche_peftcl.registry.schema import Option

_WIDE = 110  # letters of a line that tables with borders want
_COST_WIDE = 170  # likewise, those with formulas
_COST_COLUMNS = (
    "length known",
    "passes a step",
    "a test image",
    "floats a class",
    "an experience",
    "once",
)
_COLUMNS = ("kind", "name", "provider", "version", "source")


def component_table(registry: Registry, kind: str | None = None, *, width: int = _WIDE) -> Table:
    """Return the components of ``kind``, or of every kind, each by the name that works.

    Args:
        registry: What is installed.
        kind: ``None`` for all.
        width: Letters of a line; where it is narrow kinds are headings, and versions are left to
            :func:`package_table`.

    Raises:
        ConfigError: If there is no such kind.
    """
    narrow = width < _WIDE
    table = _borderless("name", "provider", "source") if narrow else plain_table(*_COLUMNS)
    for each in registry.kinds if kind is None else (kind_of(kind).name,):
        if narrow:
            table.add_row(plain(each), style="bold")
        for name, entry in zip(registry.names(each), registry.entries(each), strict=True):
            provider, source = entry.provider, entry.component.source
            if narrow:
                add_row(table, f"  {name}", provider.name, source)
            else:
                add_row(table, each, name, provider.name, provider.version, source)
        table.add_section()
    return table


def cost_table(registry: Registry, *, width: int = _WIDE) -> RenderableType:
    """Return what each strategy says that it costs with the defaults of its builder.

    Args:
        registry: What is installed.
        width: Letters of a line; where it is narrow, what a strategy says stands in lines.
    """
    names = registry.names("strategy")
    entries = dict(zip(names, registry.entries("strategy"), strict=True))
    told = {name: _cost_cells(entry.component.costs) for name, entry in entries.items()}
    legend = [plain(f"{symbol}: {meaning}") for symbol, meaning in SYMBOLS.items()]
    legend += [plain("<=: fewer, as data and options have it; -: it does not say")]
    if width < _COST_WIDE:
        lines: list[RenderableType] = []
        for name, cells in told.items():
            scenarios = ", ".join(entries[name].component.scenarios)
            lines.append(headed(name, f"  {scenarios}"))
            pairs = zip(_COST_COLUMNS, cells, strict=True)
            text = "; ".join(f"{column} {cell}" for column, cell in pairs)
            lines.append(Padding(plain(text), (0, 0, 0, 4)))
        return Group(*lines, plain(""), *legend)
    table = plain_table("strategy", "scenarios", *_COST_COLUMNS)
    for name, cells in told.items():
        add_row(table, name, ", ".join(entries[name].component.scenarios), *cells)
    return Group(table, *legend)


def _cost_cells(costs: Costs | None) -> tuple[str, ...]:
    if costs is None:
        return ("-",) * len(_COST_COLUMNS)
    told = [("<= " * (name in costs.at_most)) + getattr(costs, name) for name in FORMULAS]
    return ("yes" if costs.needs_length else "no"), *told


def component_page(
    registry: Registry, kind: str, name: str, *, width: int = _WIDE
) -> list[RenderableType]:
    """Return who offers a component, what it follows, the scenarios it serves and its options.

    Args:
        registry: What is installed.
        kind: Of the component.
        name: Of the component.
        width: Letters of a line; where it is narrow the columns of an option stand in lines.

    Raises:
        ConfigError: If there is no such kind, or the builder cannot be read.
        UnknownComponentError: If no loaded package offers the name.
        AmbiguousComponentError: If several do and ``name`` does not say which.
    """
    kind = kind_of(kind).name
    entry = registry.get(kind, name)
    component = entry.component
    head = [
        plain(f"{kind} {component.name} of {entry.provider}: {component.source}"),
        plain(f"scenarios: {', '.join(component.scenarios)}"),
    ]
    if component.costs is not None:
        pairs = zip(_COST_COLUMNS, _cost_cells(component.costs), strict=True)
        head.append(plain("costs: " + "; ".join(f"{column} {cell}" for column, cell in pairs)))
    options = schema_of(entry).told()
    if not options:
        return [*head, plain("It has no options.")]
    if width < _WIDE:
        lines = [each for option in options for each in _option_lines(option)]
        return [*head, plain(""), *lines]
    table = plain_table("option", "type and range", "default", "what it is")
    for option in options:
        default = "required" if option.required else option.default
        add_row(table, option.name, option.type, default, option.text)
    return [*head, table]


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
        "costs": None if entry.component.costs is None else asdict(entry.component.costs),
    }


def package_table(registry: Registry, *, width: int = _WIDE) -> RenderableType:
    """Return every plugin package, loaded or left out, and what is to be said of it.

    Args:
        registry: What is installed.
        width: Letters of a line; where it is narrow, remarks stand below the table.
    """
    columns = ("package", "version", "entry point", "state", "remark")
    narrow = width < _WIDE
    table = _borderless(*columns[:-1]) if narrow else plain_table(*columns)
    remarks = []
    for record in registry.plugins:
        provider, state = record.provider, "loaded" if record.loaded else "left out"
        remark = registry.remark(record)
        cells = provider.name, provider.version, record.entry_point, state
        add_row(table, *cells, *[remark] * (not narrow))
        if remark:
            remarks.append(plain(f"{provider.name}: {remark}"))
    return Group(table, *remarks) if narrow else table


def _option_lines(option: Option) -> tuple[RenderableType, RenderableType]:
    """Return name, type and default of an option, and below them what it is."""
    default = "required" if option.required else f"default {option.default}"
    head = headed(option.name, f"  {option.type}, {default}")
    return head, Padding(plain(option.text), (0, 0, 0, 4))


def _borderless(*columns: str) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table
