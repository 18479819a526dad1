"""The picture of a kernel map, as SVG in a page."""

from collections.abc import Sequence

from avalanche_peftcl.console import visible
from avalanche_peftcl.runs.picture import colour
from avalanche_peftcl.runs.report import spread
from avalanche_peftcl.runs.templates import render

_DRAWN = 50  # experiences that are drawn cell by cell; of more, as many
_WRITTEN = 20  # experiences whose cells hold their number
_LARGE = 10  # experiences whose cells are large
_DARK = 0.55  # place in the colours below which a cell is dark
_WIDE = 6.4  # of a sign of the names
_STEPS = 4  # of the bar


def kernel_picture(
    values: Sequence[Sequence[float | None]], names: Sequence[str], ends: tuple[float, float]
) -> str:
    """Draw how much the kernels of experiences overlap; nothing stands where nobody knows.

    Of more than 50 experiences 50 are drawn, evenly spread.

    Args:
        values: ``(T, T)``.
        names: Of the experiences.
        ends: What the first and the last colour stand for; pictures with the same ends compare.

    Returns:
        SVG.

    Example:
        >>> kernel_picture([[1.0, 0.5], [0.5, 1.0]], ["1", "2"], (0.0, 1.0)).count("<rect")
        4
    """
    drawn = spread(len(values), _DRAWN)
    written = len(drawn) <= _WRITTEN
    side = 44 if len(drawn) <= _LARGE else 30 if written else 12
    size = side * len(drawn)
    low, high = ends
    cells = []
    for y, i in enumerate(drawn):
        for x, j in enumerate(drawn):
            value = values[i][j]
            if value is None:
                continue
            place = (value - low) / (high - low) if high > low else 1.0
            number = f"{value:.2f}" if written else ""
            ink = "#fff" if place < _DARK else "#111"
            said = f"experiences {names[i]} and {names[j]}: {value:.3f}"
            cell = {"x": x * side, "y": y * side, "colour": colour(place), "told": said}
            cells.append(cell | {"number": number, "ink": ink})
    shown = [k for k in range(len(drawn)) if written or k % 5 == 0]
    ticks = [(k * side, names[drawn[k]]) for k in shown]
    longest = max((len(visible(name)) for _, name in ticks), default=1)
    tilted = longest > 2
    left = 14 + round(_WIDE * longest)
    below = 14 + round((0.72 if tilted else 0.0) * _WIDE * longest) + 10
    parts = [k / _STEPS for k in range(_STEPS + 1)]
    bar = [
        (10 + 20 * k, f"{high - p * (high - low):.2f}", colour(1 - p)) for k, p in enumerate(parts)
    ]
    frame = {"left": left, "width": left + size + 70, "height": max(size + below, 110) + 8}
    return render(
        "kernel_map.svg",
        frame
        | {
            "cells": cells,
            "ticks": ticks,
            "tilted": tilted,
            "side": side,
            "size": size,
            "bar": bar,
        },
    )
