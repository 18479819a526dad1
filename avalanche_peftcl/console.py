"""What the command line writes, and where to; text that others wrote gives no orders there.

Names of classes, files, methods and packages may hold anything. A terminal, Markdown and a
spreadsheet have one function each; LaTeX and HTML have theirs where they are written, on top of
:func:`visible`.
"""

import json
import os
import re
import sys
from collections.abc import Iterable
from typing import Any

from rich.console import Console, JustifyMethod
from rich.table import Table
from rich.text import Text

_SHORT = {"\n": r"\n", "\t": r"\t", "\r": r"\r"}
# controls, marks that turn the direction of writing, tags, line ends that are none, half characters
_UNSEEN = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff"
    "\U000e0000-\U000e007f]"
)
_MARKDOWN = re.compile(r"[\\`*\[\]<>|~]|(?<![^\W_])_|_(?![^\W_])|&(?=#?\w+;)")
# at the start of a line
_BLOCK = re.compile(r"(?=#{1,6}(?:\s|$)|[-+](?:\s|$)|(?:-\s*){3,}$|=+$)|\d+(?=[.)](?:\s|$))")
_ORDERS = tuple("=+-@\t\r\n\uff1d\uff0b\uff0d\uff20")  # the last four are the wide ones


def visible(text: object, *, lines: bool = False) -> str:
    r"""Return text in which every character is seen: controls stand as their escapes.

    Args:
        text: What to show.
        lines: Whether line ends and tabs stay.

    Example:
        >>> print(visible("red \x1b[31m, \u202eback\nnext"))
        red \x1b[31m, \u202eback\nnext
    """

    def escape(match: re.Match[str]) -> str:
        sign = match[0]
        if lines and sign in "\n\t":
            return sign
        code = ord(sign)
        long = f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
        return _SHORT.get(sign, f"\\x{code:02x}" if code < 0x100 else long)

    return _UNSEEN.sub(escape, str(text))


def markdown(text: object) -> str:
    r"""Return text in which Markdown reads no emphasis, code, link, tag, table, list or heading.

    Args:
        text: What to show; it may stand in a line or at its start.

    Example:
        >>> print(markdown("a|b\n<script> `c` snake_case - 3"))
        a\|b\\n\<script\> \`c\` snake_case - 3
    """
    escaped = _inline(text)
    if match := _BLOCK.match(escaped):
        return f"{escaped[: match.end()]}\\{escaped[match.end() :]}"
    return escaped


def markdown_row(cells: Iterable[object], *, emphasis: bool = False) -> str:
    r"""Return a row of a table in Markdown.

    Args:
        cells: What to show.
        emphasis: Whether every cell is emphasised.

    Example:
        >>> print(markdown_row(["a|b", "-"]))
        | a\|b | - |
    """
    star = "*" if emphasis else ""
    return f"| {' | '.join(f'{star}{_inline(cell)}{star}' for cell in cells)} |"


def _inline(text: object) -> str:
    return _MARKDOWN.sub(r"\\\g<0>", visible(text))


def csv_cell(value: Any) -> Any:
    """Return a cell that no spreadsheet takes for a formula; numbers stay numbers.

    Text that begins like a formula gets an apostrophe in front, which spreadsheets do not show.

    Example:
        >>> [csv_cell(cell) for cell in ("=1+2", "-0.5", "-a", 0.5, None, "cat")]
        ["'=1+2", '-0.5', "'-a", 0.5, None, 'cat']
    """
    if value is None or isinstance(value, int | float):
        return value
    text = str(value)
    if not text.lstrip(" ").startswith(_ORDERS):
        return text
    try:
        float(text)
    except ValueError:
        return f"'{text}"
    return text


def csv_row(cells: Iterable[Any]) -> list[Any]:
    """Return every cell as :func:`csv_cell` does."""
    return [csv_cell(cell) for cell in cells]


def plain(text: object, *, lines: bool = False, justify: JustifyMethod | None = None) -> Text:
    """Return text for a console: no markup is read in it, no control character reaches it.

    Args:
        text: What to show.
        lines: Whether line ends and tabs stay.
        justify: As rich's.
    """
    return Text(visible(text, lines=lines), justify=justify)


def broken(text: object, at: re.Pattern[str]) -> Text:
    """Return text for a console as :func:`plain` does, with line ends in the place of ``at``."""
    return Text(at.sub("\n", visible(text)))


def headed(head: str, text: str, *, style: str = "bold") -> Text:
    """Return a line for a console whose head has a style, and no order in either part."""
    return Text.assemble((visible(head), style), visible(text, lines=True))


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
    """Return a console as wide as the terminal; piped, as ``COLUMNS`` says, else wide."""
    stream = sys.stderr if stderr else sys.stdout
    columns = os.environ.get("COLUMNS", "")
    told = stream.isatty() or (columns.isdecimal() and int(columns) > 0)
    return Console(stderr=stderr, width=None if told else 200)


def print_json(console: Console, told: Any) -> None:
    """Write JSON, given as text or as plain values, and nothing of rich's."""
    text = told if isinstance(told, str) else json.dumps(told, indent=2)
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def tell_imports(of: str) -> None:
    """Say on standard error what takes the next seconds, on a terminal; a log gets no line.

    Args:
        of: What is imported.
    """
    if sys.stderr.isatty():
        standard_console(stderr=True).print(plain(f"importing {of} ..."), style="dim")


def complain(head: str, text: str, style: str) -> None:
    """Say ``head: text`` on standard error, the head in colour."""
    line = headed(f"{head}: ", text, style=f"bold {style}")
    standard_console(stderr=True).print(line, soft_wrap=True)
