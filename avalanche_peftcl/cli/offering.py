"""Commands that tell what is installed."""

import json
from pathlib import Path
from typing import Annotated

import typer

from avalanche_peftcl.cli.arguments import Json
from avalanche_peftcl.console import complain, plain, print_json, standard_console, tell_imports
from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.registry import discover
from avalanche_peftcl.registry.kinds import KINDS, kind_of
from avalanche_peftcl.registry.tables import (
    broken_builders,
    component_json,
    component_page,
    component_table,
    components_json,
    cost_table,
    package_table,
    packages_json,
)

_HEAVY = "what the builders need"  # torch and Avalanche, nearly always


def _kinds(incomplete: str) -> list[str]:
    return [kind for kind in KINDS if kind.startswith(incomplete)]


def _names(ctx: typer.Context, incomplete: str) -> list[str]:
    kind = ctx.params.get("kind")
    names = discover().names(kind) if kind else []
    return [name for name in names if name.startswith(incomplete)]


def list_components(
    kind: Annotated[
        str | None,
        typer.Argument(help="Only this kind: " + ", ".join(KINDS), autocompletion=_kinds),
    ] = None,
    name: Annotated[
        str | None,
        typer.Argument(
            help="Show the options of this component of that kind.", autocompletion=_names
        ),
    ] = None,
    costs: Annotated[
        bool,
        typer.Option("--costs", help="Of strategies: passes and floats kept, as they say."),
    ] = False,
    as_json: Json = False,
) -> None:
    """List the components on offer, or the options of one: type, range, default and meaning.

    With --costs what every strategy says that it costs with its defaults: whether
    the number of experiences has to be known, passes through the backbone of an
    image, floats kept. With --json costs are there in any case.
    """
    registry, console = discover(), standard_console()
    if costs and (kind is None or kind_of(kind).name != "strategy" or name is not None):
        raise ConfigError("costs are those of strategies; write: peftcl list strategies --costs")
    if kind is not None and name is not None:
        registry.get(kind_of(kind).name, name)  # a wrong name waits for nothing
        tell_imports(_HEAVY)
    if as_json:
        one = kind is not None and name is not None
        print_json(
            console,
            component_json(registry, str(kind), str(name))
            if one
            else components_json(registry, kind),
        )
        return
    if costs:
        console.print(cost_table(registry, width=console.width))
        return
    if kind is None or name is None:
        console.print(component_table(registry, kind, width=console.width))
        return
    for part in component_page(registry, kind, name, width=console.width):
        console.print(part)


def plugins(
    check: Annotated[
        bool, typer.Option("--check", help="Import every builder and read its options too.")
    ] = False,
    as_json: Json = False,
) -> None:
    """List every plugin package, loaded or left out, and why.

    With --check exit status 1 if a package was left out, or a builder cannot
    be imported or read.
    """
    registry, console = discover(), standard_console()
    if check:
        tell_imports(_HEAVY)
    broken = broken_builders(registry) if check else []
    if as_json:
        told = packages_json(registry)
        problems = [{"component": title, "problem": problem} for title, problem in broken]
        print_json(console, {"packages": told, "broken": problems} if check else told)
    else:
        console.print(package_table(registry, width=console.width))
    for title, problem in broken:
        complain(title, problem, "red")
    if check and not as_json:
        count = len(registry.entries())
        console.print(plain(f"{count - len(broken)} of {count} components can be built"))
    if broken or (check and not all(record.loaded for record in registry.plugins)):
        raise typer.Exit(1)


def write_schema(
    file: Annotated[
        Path | None, typer.Argument(metavar="[FILE]", help="File to write; else it is shown.")
    ] = None,
) -> None:
    """Write the JSON schema of a run's YAML, with every installed component, for editors.

    Editors with yaml-language-server read it from the first line of a YAML:
    # yaml-language-server: $schema=FILE
    """
    from avalanche_peftcl.config.json_schema import json_schema
    from avalanche_peftcl.files import write_file

    registry = discover()
    tell_imports(_HEAVY)
    told = json_schema(registry)
    if file is None:
        print_json(standard_console(), told)
    else:
        write_file(file, (json.dumps(told, indent=1) + "\n").encode())
