"""The command ``peftcl``: run an experiment, compare runs, list what is installed."""

from typing import Annotated

import typer

from avalanche_peftcl import __version__
from avalanche_peftcl.cli.exporting import (
    evaluate_network,
    export_network,
    predict_images,
    push_network,
)
from avalanche_peftcl.cli.offering import list_components, plugins, write_schema
from avalanche_peftcl.cli.running import WithRay, compare, init, manifest, run
from avalanche_peftcl.cli.tuning import tune
from avalanche_peftcl.console import standard_console
from avalanche_peftcl.registry.packages import SWITCH
from avalanche_peftcl.runs.messages import PlainEnds

__all__ = ["app", "main"]

app = typer.Typer(
    cls=PlainEnds,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Parameter-efficient continual learning for Avalanche.",
    epilog=f"The environment variable {SWITCH} says which plugin packages to load: unset, all; "
    "empty, none; a comma-separated list, those.",
)


def _version(wanted: bool) -> None:
    if wanted:
        standard_console().print(f"avalanche-peftcl {__version__}", highlight=False)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    pass


app.command()(init)
app.command(cls=WithRay)(run)
app.command(cls=WithRay)(tune)
app.command()(compare)
app.command()(manifest)
app.command("list")(list_components)
app.command()(plugins)
app.command("schema")(write_schema)
app.command("export")(export_network)
app.command("predict")(predict_images)
app.command("evaluate")(evaluate_network)
app.command("push")(push_network)


def main() -> None:
    """Run the command line; errors made on purpose end with one message and exit code 2."""
    app(prog_name="peftcl")
