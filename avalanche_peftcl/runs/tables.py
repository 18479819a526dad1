"""Tables as plain cells, and how they are drawn: for a terminal and in Markdown."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.table import Table

from avalanche_peftcl.console import markdown_row, plain


@dataclass(frozen=True)
class Sheet:
    """A table.

    Args:
        title: What it shows.
        columns: The head; the first column holds words.
        rows: As many cells as columns.
        quoted: Further rows, quoted from others.
        notes: Lines below the table.
        sources: Lines that say where the quoted rows come from.
        words: Whether the other columns hold words too, and no numbers.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    quoted: tuple[tuple[str, ...], ...] = ()
    notes: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    words: bool = False


def matrix_sheet(
    cells: Sequence[Sequence[str]], numbers: Sequence[int], *, rows: Sequence[int] | None = None
) -> Sheet:
    """Return the table of an accuracy matrix.

    Args:
        cells: Row by row, what is shown.
        numbers: The experiences that they are of, counted from 1.
        rows: Those of the rows, if not all are shown.

    Example:
        >>> matrix_sheet([["90.0", "-"], ["80.0", "95.0"]], [1, 2]).rows
        (('1', '90.0', '-'), ('2', '80.0', '95.0'))
    """
    names = tuple(map(str, numbers))
    heads = names if rows is None else map(str, rows)
    lines = tuple((head, *row) for head, row in zip(heads, cells, strict=True))
    return Sheet("accuracy in %; row: trained up to, column: tested on", ("", *names), lines)


def markdown_table(sheet: Sheet) -> list[str]:
    """Return the lines of a table in Markdown, without title and notes.

    Example:
        >>> markdown_table(Sheet("", ("number", "value"), (("a", "1"),)))
        ['| number | value |', '| :--- | ---: |', '| a | 1 |']
    """
    others = ":---" if sheet.words else "---:"
    return [
        markdown_row(sheet.columns),
        markdown_row([":---", *[others] * (len(sheet.columns) - 1)]),
        *map(markdown_row, sheet.rows),
        *(markdown_row(row, emphasis=True) for row in sheet.quoted),
    ]


def terminal_table(sheet: Sheet, *, title: bool = True) -> Table:
    """Return a table for a rich console; quoted rows in italics, below a line.

    Args:
        sheet: What it shows.
        title: Whether its title stands above it.
    """
    table = Table(
        title=plain(sheet.title) if title else None,
        title_justify="left",
        box=SIMPLE_HEAD,
        pad_edge=False,
    )
    for i, column in enumerate(sheet.columns):
        right = i > 0 and not sheet.words
        table.add_column(plain(column), justify="right" if right else "left", overflow="fold")
    for row in sheet.rows:
        table.add_row(*map(plain, row))
    if sheet.quoted:
        table.add_section()
        for row in sheet.quoted:
            table.add_row(*map(plain, row), style="italic")
    return table
