"""What the command line writes, and where to."""

import sys

from rich.console import Console
from rich.table import Table
from rich.text import Text


def printable(text: str) -> str:
    """Return ``text`` with what is no UTF-8, such as bytes in a file name, as escapes."""
    return text.encode(errors="backslashreplace").decode()


def plain_table(*columns: str) -> Table:
    """Return an empty table whose cells wrap instead of being cut."""
    table = Table()
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def add_row(table: Table, *cells: str) -> None:
    """Add a row of plain text."""
    table.add_row(*(Text(cell) for cell in cells))  # Text: brackets are no markup here


def standard_console(*, stderr: bool = False) -> Console:
    """Return a console as wide as the terminal; wide enough for any table when piped."""
    stream = sys.stderr if stderr else sys.stdout
    return Console(stderr=stderr, width=None if stream.isatty() else 200)


def complain(head: str, text: str, style: str) -> None:
    """Say ``head: text`` on standard error, the head in colour."""
    line = Text.assemble((f"{head}: ", f"bold {style}"), text)
    standard_console(stderr=True).print(line, soft_wrap=True)
