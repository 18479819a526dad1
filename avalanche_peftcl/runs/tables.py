"""Tables as plain cells, and how they are drawn: for a terminal and in Markdown."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import JustifyMethod, RenderableType
from rich.table import Table

from avalanche_peftcl.console import broken, markdown_row, plain, visible
from avalanche_peftcl.runs.names import numbered

WIDTH = 80  # letters of a line, where nothing says how wide it may be
_GAP = 2  # between two columns
_EDGES = 2
_SHORTEST = 6  # letters of a name that is worth showing
_NAME = 20  # of a first column, before the others are parted
_BREAK = re.compile(r" (?=\(|/ )")


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
        heads: Columns that every part begins with, where the table is too wide for its place.
        parts: Columns before which it is parted then, if it has to be; else before any.
        sparse: Whether a part leaves out rows that have nothing in it.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    quoted: tuple[tuple[str, ...], ...] = ()
    notes: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    words: bool = False
    heads: int = 1
    parts: tuple[int, ...] = ()
    sparse: bool = False


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
    return _drawn(sheet, range(len(sheet.columns)), plain, {}, title=title)


def terminal_tables(sheet: Sheet, *, width: int) -> list[Table]:
    """Return a table for a rich console, in as many parts as ``width`` takes.

    Where it is too wide cells are broken before brackets and slashes first, heads and the
    first column at spaces; only then the columns are parted, and each part begins with the first.

    Args:
        sheet: What it shows.
        width: Letters of a line.

    Example:
        >>> sheet = Sheet("", ("method", "first", "second"), (("naive", "1.0 ± 0.1 (± 0.2)", "2"),))
        >>> [len(terminal_tables(sheet, width=width)) for width in (80, 27, 20)]
        [1, 1, 2]
    """
    columns = range(len(sheet.columns))
    if _taken([_widest(sheet, i, lambda cell: [cell]) for i in columns]) <= width:
        return [terminal_table(sheet)]
    least = [_widest(sheet, i, _unbroken) for i in columns]
    first = _widest(sheet, 0, lambda cell: str(broken(cell, _BREAK)).splitlines())
    least[0] = max(least[0], min(first, _NAME))
    tables, stacked = [], partial(broken, at=_BREAK)
    for number, part in enumerate(_parted(sheet, least, width)):
        widths = {i: least[i] for i in part}
        widths[0] = min(first, max(least[0], least[0] + width - _taken(list(widths.values()))))
        fits = _taken(list(widths.values())) <= width
        told = _without_empty_rows(sheet, part) if sheet.sparse else sheet
        tables.append(_drawn(told, part, stacked, widths if fits else {}, title=not number))
    return tables


def _drawn(
    sheet: Sheet,
    columns: Sequence[int],
    shown: Callable[[str], RenderableType],
    widths: Mapping[int, int],
    *,
    title: bool,
) -> Table:
    table = Table(
        title=plain(sheet.title) if title else None,
        title_justify="left",
        box=SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    for i in columns:
        side: JustifyMethod = "right" if i > 0 and not sheet.words else "left"
        head = plain(sheet.columns[i])
        table.add_column(head, justify=side, overflow="fold", width=widths.get(i))
    for row in sheet.rows:
        table.add_row(*(shown(row[i]) for i in columns))
    if sheet.quoted:
        table.add_section()
        for row in sheet.quoted:
            table.add_row(*(shown(row[i]) for i in columns), style="italic")
    return table


def _parted(sheet: Sheet, least: Sequence[int], width: int) -> list[list[int]]:
    """Return the columns of each part, as few parts as there is room for."""
    heads = list(range(sheet.heads))
    starts = [sheet.heads, *sheet.parts] if sheet.parts else range(sheet.heads, len(least))
    runs = [list(range(a, b)) for a, b in pairwise([*starts, len(least)])]
    parts: list[list[int]] = [] if runs else [heads]
    for run in runs:
        longer = [*(parts[-1] if parts else heads), *run]
        if not parts or _taken([least[i] for i in longer]) > width:
            longer = [*heads, *run]
            parts.append(longer)
        parts[-1] = longer
    return parts


def _without_empty_rows(sheet: Sheet, columns: Sequence[int]) -> Sheet:
    own = columns[sheet.heads :]
    return replace(sheet, rows=tuple(r for r in sheet.rows if any(r[i] != "-" for i in own)))


def _unbroken(cell: str) -> list[str]:
    """Return what of a cell has to stay in one line: numbers with their spread, words."""
    lines = str(broken(cell, _BREAK)).splitlines()
    return [
        word for line in lines for word in (line.split() if any(map(str.isalpha, line)) else [line])
    ]


def _widest(sheet: Sheet, i: int, lines: Callable[[str], list[str]]) -> int:
    cells = [row[i] for row in (sheet.columns, *sheet.rows, *sheet.quoted)]
    return max((cell_len(visible(line)) for cell in cells for line in lines(cell)), default=1)


def _taken(widths: Sequence[int]) -> int:
    return sum(widths) + _GAP * (len(widths) - 1) + _EDGES
