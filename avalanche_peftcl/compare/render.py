"""Render the tables of a comparison: for the terminal, as Markdown, LaTeX and CSV."""

import csv
import io
import json
import re
from collections.abc import Iterator
from typing import Any

from rich.console import Group, RenderableType

from avalanche_peftcl.compare.comparison import Comparison
from avalanche_peftcl.compare.pairs_sheet import pairs_sheet
from avalanche_peftcl.compare.sheets import (
    further_sheet,
    left_out_lines,
    results_sheet,
    shown_quantities,
)
from avalanche_peftcl.compare.statistics import Estimate
from avalanche_peftcl.console import csv_row, markdown, plain, visible
from avalanche_peftcl.runs.tables import Sheet, markdown_table
from avalanche_peftcl.runs.tables import terminal_tables as drawn

_COLUMNS = (
    "source",
    "method",
    "quantity",
    "unit",
    "seeds",
    "count",
    "mean",
    "standard_deviation",
    "confidence_half_width",
    "t",
    "p",
    "p_holm",
    "note",
)
_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\ensuremath{<}",
    ">": r"\ensuremath{>}",
    "|": r"\ensuremath{|}",
    "±": r"\ensuremath{\pm}",
    "Ā": r"\ensuremath{\bar{A}}",
} | {sign: "\\" + sign for sign in "&%$#_{}"}


def terminal_tables(comparison: Comparison, *, width: int = 200) -> RenderableType:
    """Return the tables for a rich console.

    Args:
        comparison: What they show.
        width: Letters of a line; what is too wide is stacked, and parted.
    """
    parts: list[RenderableType] = []
    for sheet in shown_sheets(comparison):
        parts += [
            *drawn(sheet, width=width),
            *map(plain, (*sheet.notes, *sheet.sources)),
            plain(""),
        ]
    return Group(*parts, *map(plain, left_out_lines(comparison)))


def markdown_tables(comparison: Comparison) -> str:
    """Return the tables as Markdown."""
    lines: list[str] = []
    for sheet in shown_sheets(comparison):
        lines += [
            f"## {markdown(sheet.title)}",
            "",
            *markdown_table(sheet),
            "",
            *(line for note in (*sheet.notes, *sheet.sources) for line in (markdown(note), "")),
        ]
    left = left_out_lines(comparison)
    if left:
        lines += ["## Left out", "", *(f"- {markdown(line)}" for line in left), ""]
    return "\n".join(lines)


def latex_tables(comparison: Comparison) -> str:
    r"""Return the tables as LaTeX, for a document that has ``\usepackage{booktabs}``."""
    lines = [r"% needs \usepackage{booktabs}"]
    for sheet in shown_sheets(comparison):
        lines += [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{_latex(sheet.title)}}}",
            rf"\begin{{tabular}}{{l{'r' * (len(sheet.columns) - 1)}}}",
            r"\toprule",
            _latex_line(sheet.columns),
            r"\midrule",
            *map(_latex_line, sheet.rows),
        ]
        if sheet.quoted:
            span = len(sheet.columns)
            lines += [
                r"\midrule",
                rf"\multicolumn{{{span}}}{{l}}{{\emph{{quoted, not measured here}}}} \\",
                *map(_latex_line, sheet.quoted),
            ]
        lines += [r"\bottomrule", r"\end{tabular}"]
        lines += [rf"\par\footnotesize {_latex(note)}" for note in (*sheet.notes, *sheet.sources)]
        lines += [r"\end{table}", ""]
    lines += [f"% left out: {visible(line)}" for line in left_out_lines(comparison)]
    return "\n".join(lines) + "\n"


def csv_table(comparison: Comparison) -> str:
    """Return one row a method and quantity, then one a paired test, numbers as they are.

    Columns: ``source`` (``"own"`` or where a number was quoted from), ``method``, ``quantity``,
    ``unit`` (fractions and seconds), ``seeds`` (separated by spaces), ``count``, ``mean``,
    ``standard_deviation``, ``confidence_half_width``, ``t``, ``p``, ``p_holm``, ``note``. Of a
    quoted number the definition of its spread is in ``note``. A test has the ``source``
    ``"paired test"``, two methods, and the numbers of their difference on the seeds of both. Text
    that a spreadsheet would take for a formula has an apostrophe in front.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    for cells in (_COLUMNS, *_rows(comparison)):
        writer.writerow(csv_row(cells))
    return text.getvalue()


def json_tables(comparison: Comparison) -> str:
    """Return as JSON what :func:`csv_table` writes, and what lies behind it.

    ``methods`` has the settings in which each differs from others, and the folders of its runs;
    ``left_out`` what was not compared, ``differences`` how protocols differ.
    """
    told = {
        "methods": [
            {
                "method": method.label,
                "settings": dict(method.settings),
                "folders": [str(run.folder) for run in method.runs],
            }
            for method in comparison.methods
        ],
        "numbers": [dict(zip(_COLUMNS, row, strict=True)) for row in _rows(comparison)],
        "left_out": left_out_lines(comparison),
        "differences": [str(difference) for difference in comparison.differences],
    }
    return json.dumps(told, indent=2)


def _rows(comparison: Comparison) -> Iterator[list[Any]]:
    """Yield the rows of :func:`csv_table`."""
    note = "; ".join(f"protocols differ in {difference}" for difference in comparison.differences)
    for method in comparison.methods:
        seeds = " ".join(map(str, method.seeds))
        for quantity in (*shown_quantities(comparison.methods), *comparison.further):
            numbers = _numbers(method.estimate(quantity))
            row = ["own", method.label, quantity.key, quantity.unit, seeds, len(method.runs)]
            yield [*row, *numbers, None, None, None, note]
    for test in comparison.tests:
        result, quantity = test.result, test.quantity
        both = test.first.by_seed(quantity).keys() & test.second.by_seed(quantity).keys()
        seeds = " ".join(map(str, sorted(both))) if result.difference else ""
        pair, found = f"{test.first.label} / {test.second.label}", result.difference
        row = ["paired test", pair, quantity.key, quantity.unit, seeds, found.count if found else 0]
        row += _numbers(found)
        why = "; ".join(filter(None, [result.reason, note]))
        yield [*row, result.statistic, result.p_value, test.corrected, why]
    for one in comparison.quoted or ():
        for key, (value, spread) in one.values.items():
            said = [one.definitions[key].definition, one.table.spread or "", one.table.note or ""]
            row = [one.table.source, one.method, key, "fraction", None, None, f"{value:.4f}"]
            deviation = None if spread is None else f"{spread:.4f}"
            told = "; ".join(filter(None, ["quoted", one.stream.title, *said]))
            yield [*row, deviation, *[None] * 4, told]


def _numbers(estimate: Estimate | None) -> list[float | None]:
    if estimate is None:
        return [None] * 3
    return [estimate.mean, estimate.standard_deviation, estimate.half_width]


def shown_sheets(comparison: Comparison) -> tuple[Sheet, ...]:
    """Return the tables that are shown, one after the other."""
    sheets = results_sheet(comparison), further_sheet(comparison), pairs_sheet(comparison)
    return tuple(sheet for sheet in sheets if sheet is not None)


def _latex_line(cells: tuple[str, ...]) -> str:
    line = " & ".join(re.sub(r"^-(?=\d)", r"\\ensuremath{-}", _latex(cell)) for cell in cells)
    guard = "{}" if line.startswith(("[", "*")) else ""  # \\ before it would take it as its own
    return guard + line + r" \\"


def _latex(text: str) -> str:
    return "".join(_LATEX.get(sign, sign) for sign in visible(text))
