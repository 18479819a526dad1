"""Tables as plain cells, and how they are drawn: for a terminal and in Markdown."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.table import Table

from avalanche_peftcl.console import markdown_row, plain
from avalanche_peftcl.runs.names import numbered

WIDTH = 80  # letters of a line, where nothing says how wide it may be
_GAP = 2  # between two columns
_EDGES = 2
_SHORTEST = 6  # letters of a name that is worth showing


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
    cells: Sequence[Sequence[str]],
    numbers: Sequence[int],
    *,
    rows: Sequence[int] | None = None,
    names: Sequence[str] = (),
    domains: Sequence[str] = (),
    width: int = WIDTH,
) -> Sheet:
    """Return the table of an accuracy matrix.

    Columns are called by domain where that leaves the table narrow enough, else by number; rows
    have their names as far as there is room.

    Args:
        cells: Row by row, what is shown.
        numbers: The experiences that they are of, counted from 1.
        rows: Those of the rows, if not all are shown.
        names: Of all experiences.
        domains: Of all experiences; none where these are no domains.
        width: Letters that a line of the table has at most, if names can help it.

    Example:
        >>> sheet = matrix_sheet(
        ...     [["90.0", "-"], ["80.0", "95.0"]], [1, 2], names=["one", "art"], domains=["a", "b"]
        ... )
        >>> sheet.columns, sheet.rows[1]
        (('', 'a', 'b'), ('2 (art)', '80.0', '95.0'))
        >>> matrix_sheet([["90.0", "-"], ["80.0", "95.0"]], [1, 2]).rows
        (('1', '90.0', '-'), ('2', '80.0', '95.0'))
    """
    longest = max((len(cell) for row in cells for cell in row), default=1)
    columns = [str(number) for number in numbers]
    room = width - _EDGES - sum(max(len(column), longest) + _GAP for column in columns)
    heads = columns if rows is None else [str(row) for row in rows]
    least = room - max(map(len, heads), default=0) - len(" ()")
    if len(names) >= max(numbers, default=1) and least >= _SHORTEST:
        named = numbered(names, longest=least)
        heads = [named[int(head) - 1] for head in heads]
    if len(domains) >= max(numbers, default=1):
        called = [domains[number - 1] for number in numbers]
        wide = (
            sum(max(len(each), longest) + _GAP for each in called)
            + max(map(len, heads), default=0)
            + _EDGES
        )
        columns = called if wide <= width else columns
    lines = tuple((head, *row) for head, row in zip(heads, cells, strict=True))
    return Sheet("accuracy in %; row: trained up to, column: tested on", ("", *columns), lines)


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
        collapse_padding=True,
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
