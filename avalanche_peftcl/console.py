"""What the command line writes, and where to."""

import sys

from rich.console import Console, JustifyMethod
from rich.table import Table
from rich.text import Text

from avalanche_peftcl.escaping import visible


def plain(text: object, *, lines: bool = False, justify: JustifyMethod | None = None) -> Text:
    """Return text for a console: no markup is read in it, no control character reaches it.

    Args:
        text: What to show.
        lines: Whether line ends and tabs stay.
        justify: As rich's.
    """
    return Text(visible(text, lines=lines), justify=justify)


def plain_table(*columns: str) -> Table:
    """Return an empty table whose cells wrap instead of being cut."""
    table = Table()
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def add_row(table: Table, *cells: str) -> None:
    """Add a row of plain text."""
    table.add_row(*map(plain, cells))


def standard_console(*, stderr: bool = False) -> Console:
    """Return a console as wide as the terminal; wide enough for any table when piped."""
    stream = sys.stderr if stderr else sys.stdout
    return Console(stderr=stderr, width=None if stream.isatty() else 200)


def complain(head: str, text: str, style: str) -> None:
    """Say ``head: text`` on standard error, the head in colour."""
    line = Text.assemble((f"{head}: ", f"bold {style}"), visible(text, lines=True))
    standard_console(stderr=True).print(line, soft_wrap=True)
