"""The picture of an accuracy matrix, as SVG: a file of a run's folder, and part of a page."""

from collections.abc import Sequence

from avalanche_peftcl.runs.names import domain_names, numbered
from avalanche_peftcl.runs.report import percent, spread, title
from avalanche_peftcl.runs.schema import Record
from avalanche_peftcl.runs.templates import render

_DRAWN = 50  # experiences that are drawn cell by cell; of more, as many
_WRITTEN = 20  # experiences whose cells hold their number
_FINE = 10  # experiences whose numbers have a digit after the point
_LONGEST = 16  # letters of a name beside the cells
_LETTER = 5.8  # width of a letter
_DARK = 0.55  # fraction below which a cell is dark
# from 0 to 1: dark blue to yellow, of even steps in brightness to every eye
_COLOURS = ((0, 34, 78), (59, 73, 108), (125, 124, 120), (186, 175, 108), (254, 232, 56))
Rows = Sequence[Sequence[float | None]]


def record_picture(record: Record) -> str:
    """Draw the accuracy matrix of a run and its accuracy on all seen."""
    curve = record.accuracy.accuracy_curve
    domains = domain_names(record.protocol)
    return matrix_picture(record.accuracy_matrix, curve, title=title(record), domains=domains)


def matrix_picture(
    matrix: Rows,
    curve: Sequence[float | None],
    *,
    title: str = "",
    domains: Sequence[str] = (),
) -> str:
    """Draw an accuracy matrix; nothing stands where nothing was evaluated.

    Of more than 50 experiences 50 are drawn, evenly spread.

    Args:
        matrix: ``(T, T)``, fractions.
        curve: Accuracy on all test images seen so far, one value a row; drawn as a last column.
        title: What stands above; with one it is a document of its own, else part of a page.
        domains: Of the experiences, which are called by them; none, by their numbers.

    Returns:
        SVG.

    Example:
        >>> matrix_picture([[0.5]], [0.5]).count("<rect")
        2
    """
    drawn = spread(len(matrix), _DRAWN)
    written = len(drawn) <= _WRITTEN
    side = 44 if len(drawn) <= _FINE else 30 if written else 12
    size = side * len(drawn)
    domains = domains if len(domains) == len(matrix) else ()
    called = numbered(domains) if domains else [str(t + 1) for t in range(len(matrix))]
    names = [_cut(name) for name in domains] if domains and written else []
    room = round(_LETTER * max(map(len, names), default=0))
    cells = []
    for y, t in enumerate(drawn):
        row = matrix[t]
        seen = curve[t] if t < len(curve) else None
        columns = [(x * side, f"experience {called[i]}", row[i]) for x, i in enumerate(drawn)]
        for x, where, value in [*columns, (size + 0.4 * side, "all seen", seen)]:
            if value is not None:
                cell = {"x": x, "y": y * side, "colour": colour(value), "told": "", "number": ""}
                if written:
                    said = f"trained up to {called[t]}, tested on {where}: {percent(value)}"
                    number = f"{100 * value:.{1 if len(drawn) <= _FINE else 0}f}"
                    ink = "#fff" if value < _DARK else "#111"
                    cell |= {"told": said, "number": number, "ink": ink}
                cells.append(cell)
    values = {
        "alone": bool(title),
        "title": title,
        "cells": cells,
        "ticks": [
            (k * side, names[t] if names else t + 1)
            for k, t in enumerate(drawn)
            if written or k % 5 == 0
        ],
        "side": side,
        "turned": bool(names),
        "left": 52 + max(0, room - 16),
        "below": 58 + room,
        "size": size,
        "bar": [(10 + 15 * k, 100 - 25 * k, colour(1 - k / 4)) for k in range(5)],
    }
    return render("accuracy_matrix.svg", values)


def _cut(name: str) -> str:
    return name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…"


def colour(value: float) -> str:
    """Return the colour of a fraction.

    Example:
        >>> colour(0), colour(1)
        ('#00224e', '#fee838')
    """
    steps = len(_COLOURS) - 1
    place = min(max(value, 0.0), 1.0) * steps
    step = min(int(place), steps - 1)
    low, high = _COLOURS[step], _COLOURS[step + 1]
    parts = (round(a + (place - step) * (b - a)) for a, b in zip(low, high, strict=True))
    return "#" + "".join(f"{part:02x}" for part in parts)
