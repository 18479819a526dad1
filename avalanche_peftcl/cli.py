"""The command ``peftcl``: run an experiment, compare runs, list what is installed."""

import sys
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text
from typer.core import TyperGroup

from avalanche_peftcl import __version__
from avalanche_peftcl.discovery import SWITCH
from avalanche_peftcl.errors import PEFTCLError, PluginLoadWarning
from avalanche_peftcl.registry import Registry, discover


class _Group(TyperGroup):
    """Turns errors made on purpose into one message and an exit code, warnings into one line."""

    def invoke(self, ctx: Any) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("always", PluginLoadWarning)
            # Avalanche imports a solver for one method that is none of ours
            warnings.filterwarnings("ignore", "no QP solver found", UserWarning)
            default = warnings.showwarning

            def show(message: Any, category: Any, *place: Any, **more: Any) -> None:
                if issubclass(category, PluginLoadWarning):
                    _complain("warning", str(message), "yellow")
                else:
                    default(message, category, *place, **more)

            warnings.showwarning = show
            try:
                return super().invoke(ctx)
            except BrokenPipeError:
                raise
            except (PEFTCLError, OSError) as error:
                _complain("error", str(error), "red")
                raise typer.Exit(2) from None
            except KeyboardInterrupt:
                _complain(
                    "interrupted",
                    "the experiences of a run that were finished are on disk, in its output folder",
                    "red",
                )
                raise typer.Exit(130) from None


app = typer.Typer(
    cls=_Group,
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Parameter-efficient continual learning for Avalanche.",
    epilog=f"The environment variable {SWITCH} says which plugin packages to load: unset, all; "
    "empty, none; a comma-separated list, those.",
)


def _version(wanted: bool) -> None:
    if wanted:
        _console().print(f"avalanche-peftcl {__version__}", highlight=False)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    pass


@app.command()
def run(
    config: Annotated[Path, typer.Argument(help="YAML file that describes the run.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Settings to replace: strategy.lr=0.1"),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the record of an earlier run.")
    ] = False,
) -> None:
    """Train and evaluate one configuration and write its record."""
    from avalanche_peftcl.run import run_from_file

    run_from_file(config, overrides or [], overwrite, _console())


@app.command()
def compare(
    folders: Annotated[
        list[Path],
        typer.Argument(help="Run records, or folders that contain run records at any depth."),
    ],
    markdown: Annotated[Path | None, typer.Option(help="Write the tables as Markdown.")] = None,
    latex: Annotated[Path | None, typer.Option(help="Write the tables as LaTeX.")] = None,
    csv: Annotated[Path | None, typer.Option(help="Write every number as CSV.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write a page with tables and plots.")] = None,
    published: Annotated[
        bool, typer.Option("--published", help="Quote published numbers of the same protocol.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Compare runs that do not share one protocol.")
    ] = False,
) -> None:
    """Compare runs: mean and spread over the seeds, and tests between methods."""
    from avalanche_peftcl.compare.command import compare_and_show

    files = {"markdown": markdown, "latex": latex, "csv": csv, "html": html}
    comparison = compare_and_show(
        folders, files, force=force, published=published, console=_console()
    )
    if count := len(comparison.unreadable):
        _complain("error", f"{count} of the records could not be read, see above", "red")
        raise typer.Exit(1)


@app.command("list")
def list_components(
    kind: Annotated[
        str | None, typer.Argument(help="Only this kind: " + ", ".join(Registry([]).kinds))
    ] = None,
    name: Annotated[
        str | None, typer.Argument(help="Show the options of this component of that kind.")
    ] = None,
) -> None:
    """List the components on offer, or the options of one."""
    registry = discover()
    if kind is not None and name is not None:
        _print_options(registry, kind, name)
        return
    table = _table("kind", "name", "provider", "version", "source")
    for each in registry.kinds if kind is None else (kind,):
        pairs = zip(registry.names(each), registry.entries(each), strict=True)
        for spelling, entry in pairs:
            provider, source = entry.provider, entry.component.source
            _add_row(table, each, spelling, provider.name, provider.version, source)
        table.add_section()
    _console().print(table)


@app.command()
def plugins() -> None:
    """List every plugin package, loaded or left out, and why."""
    table = _table("package", "version", "entry point", "state", "cause")
    for record in discover().plugins:
        provider, state = record.provider, "loaded" if record.loaded else "left out"
        _add_row(
            table, provider.name, provider.version, record.entry_point, state, record.cause or ""
        )
    _console().print(table)


def _print_options(registry: Registry, kind: str, name: str) -> None:
    entry = registry.get(kind, name)
    console = _console()
    console.print(
        Text(f"{kind} {entry.component.name} of {entry.provider}: {entry.component.source}")
    )
    table = _table("option", "type", "default")
    for option, annotation, default in registry.schema(kind, name).describe():
        _add_row(table, option, annotation, default or ("" if option[0] == "*" else "required"))
    console.print(table if table.row_count else Text("It has no options."))


def _table(*columns: str) -> Table:
    table = Table()
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _add_row(table: Table, *cells: str) -> None:
    table.add_row(*(Text(cell) for cell in cells))  # Text: brackets are no markup here


def _console(*, stderr: bool = False) -> Console:
    """Return a console as wide as the terminal; wide enough for any table when piped."""
    stream = sys.stderr if stderr else sys.stdout
    return Console(stderr=stderr, width=None if stream.isatty() else 200)


def _complain(head: str, text: str, style: str) -> None:
    line = Text.assemble((f"{head}: ", f"bold {style}"), text)
    _console(stderr=True).print(line, soft_wrap=True)


def main() -> None:
    """Run the command line; errors made on purpose end with one message and exit code 2."""
    app(prog_name="peftcl")
