"""The plots of a comparison: interactive figures, each with its numbers in words and as a table.

Colours are CSS variables (``var(--series-0)``, ``var(--text)``), which the page resolves when it
draws, so that a plot follows the light or dark mode of its reader.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import plotly.graph_objects as go

from avalanche_peftcl.compare.comparison import Comparison
from avalanche_peftcl.compare.methods import QUANTITIES, Method
from avalanche_peftcl.compare.sheets import Scale, cell, scale_of
from avalanche_peftcl.compare.statistics import Estimate
from avalanche_peftcl.console import visible
from avalanche_peftcl.runs.picture import matrix_picture
from avalanche_peftcl.runs.tables import Sheet, matrix_sheet

SERIES = 8  # colours, and signs that go with them
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "x", "star", "pentagon")
SIGNS = "●■◆▲✚✖★⬟"
_DASHES = ("solid", "dash", "dot", "dashdot")  # after so many methods as there are colours
_PERCENT = Scale(100.0, "%", 1)
_FAR = 30.0  # largest over smallest from where an axis is logarithmic
_LAST = next(quantity for quantity in QUANTITIES if quantity.key == "last_accuracy")

Estimates = Sequence[Estimate | None]


@dataclass(frozen=True)
class Plot:
    """One plot.

    Args:
        title: What it shows.
        caption: Its numbers in words.
        sheet: Its numbers as a table.
        figure: Data and layout, of what the plotting library draws.
        picture: SVG, of what is drawn already.
    """

    title: str
    caption: str
    sheet: Sheet
    figure: go.Figure | None = None
    picture: str = ""


def curve_plot(comparison: Comparison) -> Plot:
    """Draw the accuracy on all images seen so far after each experience."""
    curves = {method: method.curve() for method in comparison.methods}
    words = []
    for method, curve in curves.items():
        last = _words(curve[-1])
        goes = f"goes from {_words(curve[0])} after experience 1 to {last}"
        goes = f"has {last}, all at once," if method.joint else goes
        words.append(f"{method.label} {goes} after experience {len(curve)}")
    return _line_plot(
        comparison,
        "Accuracy on all seen, after each experience",
        f"Accuracy on all test images seen so far: {'; '.join(words)}.",
        curves,
        ("experiences trained", "accuracy on all seen (%)"),
    )


def forgetting_plot(comparison: Comparison) -> Plot | None:
    """Draw how far each experience fell from its best; ``None`` where nothing can be forgotten."""
    drops = {method: method.forgetting_by_experience() for method in comparison.methods}
    if not any(estimate for values in drops.values() for estimate in values):
        return None
    return _line_plot(
        comparison,
        "Forgetting of each experience",
        "Best earlier accuracy on an experience minus the accuracy on it at the end, in points: "
        + "; ".join(f"{method.label}{_extremes(values)}" for method, values in drops.items())
        + ".",
        drops,
        ("experience", "forgetting (points)"),
    )


def matrix_plot(method: Method) -> Plot:
    """Draw the accuracy matrix of a method, the mean over its seeds."""
    matrix = method.matrix()
    means = [list(map(_mean, row)) for row in matrix]
    return Plot(
        f"Accuracy matrix: {method.label}",
        f"Accuracy on each experience (column) after training up to each (row), mean over "
        f"{_seeds(method)}. At the end {method.label} has{_extremes(matrix[-1], ' %')}.",
        matrix_sheet(
            [[cell(e, _PERCENT) for e in row] for row in matrix], range(1, len(matrix) + 1)
        ),
        picture=matrix_picture(means, list(map(_mean, method.curve()))),
    )


def trade_off_plot(comparison: Comparison, key: str) -> Plot:
    """Draw last accuracy against what it costs: the quantity called ``key``."""
    cost = next(quantity for quantity in QUANTITIES if quantity.key == key)
    scale = scale_of(cost, comparison.methods)
    title = f"{cost.title} ({scale.unit})" if scale.unit else cost.title
    figure = _figure(title, "last accuracy (%)")
    rows, words, costs = [], [], []
    for series, method in enumerate(comparison.methods):
        x, y = method.estimate(cost), method.estimate(_LAST)
        rows.append((method.label, cell(x, scale), cell(y, _PERCENT)))
        if x is None or y is None:
            continue
        costs.append(x.mean)
        unit = f" {scale.unit}" if scale.unit else f" {cost.title}"
        words.append(f"{method.label}: {scale.number(x.mean)}{unit}, {_words(y)}")
        figure.add_scatter(
            x=[scale.factor * x.mean],
            y=[100 * y.mean],
            error_x=_error(x, scale) if scale.unit else None,
            error_y=_error(y, _PERCENT),
            mode="markers",
            cliponaxis=False,
            hovertemplate=f"{_label(method)}<br>%{{x:,}}, %{{y:.1f}} %<extra></extra>",
            **_style(series, size=12),
        )
    if costs and min(costs) > 0 and max(costs) > _FAR * min(costs):
        ticks = _ticks(scale.factor * min(costs), scale.factor * max(costs))
        figure.update_xaxes(type="log", tickvals=ticks, ticktext=[f"{tick:,g}" for tick in ticks])
    else:
        figure.update_xaxes(rangemode="tozero")
    return Plot(
        f"Last accuracy against {cost.title}",
        f"Last accuracy and {cost.title}: {'; '.join(words)}.",
        Sheet(title, ("method", title, "last accuracy (%)"), tuple(rows)),
        figure,
    )


def _line_plot(
    comparison: Comparison,
    title: str,
    caption: str,
    lines: dict[Method, list[Estimate | None]],
    axes: tuple[str, str],
) -> Plot:
    """Draw a line a method over the experiences, with its confidence band."""
    figure = _figure(*axes)
    for series, (method, values) in enumerate(lines.items()):
        style = _style(series)
        points = [(i, e) for i, e in enumerate(values, start=1) if e is not None]
        band = [
            (i, 100 * e.mean, 100 * e.half_width) for i, e in points if e.half_width is not None
        ]
        if band:
            figure.add_scatter(
                x=[i for i, _, _ in (*band, *band[::-1])],
                y=[round(y + half, 3) for _, y, half in band]
                + [round(y - half, 3) for _, y, half in band[::-1]],
                mode="lines",
                line={"width": 0, "color": style["line"]["color"]},
                fill="toself",
                fillcolor=f"var(--band-{series % SERIES})",
                hoverinfo="skip",
                meta=series,
                showlegend=False,
            )
        figure.add_scatter(
            x=list(range(1, len(values) + 1)),
            y=[None if e is None else round(100 * e.mean, 3) for e in values],
            mode="lines+markers",
            customdata=["-" if e is None else cell(e, _PERCENT) for e in values],
            hovertemplate=f"{_label(method)}<br>%{{x}}: %{{customdata}}<extra></extra>",
            **style,
        )
    longest = max(len(values) for values in lines.values())
    figure.update_xaxes(
        range=[0.7, longest + 0.3], dtick=1 if longest <= 12 else math.ceil(longest / 10)
    )
    figure.update_yaxes(range=_range([e for values in lines.values() for e in values]))
    several = any(len(method.runs) > 1 for method in lines)
    bands = " Bands are 95 % confidence intervals of the mean over the seeds." if several else ""
    return Plot(title, caption + bands, _by_experience(title, lines, longest), figure)


def _by_experience(title: str, lines: dict[Method, list[Estimate | None]], longest: int) -> Sheet:
    return Sheet(
        title,
        ("method", *map(str, range(1, longest + 1))),
        tuple(
            (method.label, *(cell(e, _PERCENT) for e in values), *["-"] * (longest - len(values)))
            for method, values in lines.items()
        ),
    )


def _figure(x: str, y: str, *, height: int = 360) -> go.Figure:
    """Return an empty figure in the colours of the page."""
    axis = {
        "gridcolor": "var(--grid)",
        "zerolinecolor": "var(--grid)",
        "linecolor": "var(--grid)",
        "automargin": True,
    }
    clear = "rgba(0,0,0,0)"
    return go.Figure(
        layout={
            "template": go.layout.Template(),
            "height": height,
            "margin": {"l": 8, "r": 8, "t": 12, "b": 8},
            "paper_bgcolor": clear,
            "plot_bgcolor": clear,
            "font": {"color": "var(--text)", "size": 13},
            "hoverlabel": {"bgcolor": "var(--surface)", "font": {"color": "var(--text)"}},
            "showlegend": False,
            "xaxis": axis | {"title": {"text": x}},
            "yaxis": axis | {"title": {"text": y}},
        }
    )


def sign_of(series: int) -> int:
    """Return which sign a method has: another one in every round through the colours."""
    return (series + series // SERIES) % SERIES


def _style(series: int, size: int = 7) -> dict[str, Any]:
    colour = f"var(--series-{series % SERIES})"
    return {
        "meta": series,
        "line": {"color": colour, "dash": _DASHES[series // SERIES % len(_DASHES)]},
        "marker": {"color": colour, "symbol": SYMBOLS[sign_of(series)], "size": size},
    }


def _error(estimate: Estimate, scale: Scale) -> dict[str, Any]:
    half = estimate.half_width
    return {"array": [scale.factor * (half or 0.0)], "visible": bool(half), "thickness": 1}


def _range(estimates: Estimates) -> list[float]:
    """Return where percent values and their intervals lie, within [-100, 100], and a margin."""
    defined = [e for e in estimates if e is not None]
    if not defined:
        return [0.0, 100.0]
    low = min(100 * (e.mean - (e.half_width or 0.0)) for e in defined)
    high = max(100 * (e.mean + (e.half_width or 0.0)) for e in defined)
    floor = 0.0 if min(e.mean for e in defined) >= 0 else -100.0
    low, high = max(floor, low), min(100.0, high)
    margin = 0.04 * (high - low) + 0.5
    return [round(low - margin, 2), round(high + margin, 2)]


def _ticks(low: float, high: float) -> list[float]:
    """Return round numbers around [low, high]: powers of ten, over few of them 1, 2 and 5 times."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = (1, 2, 5) if len(powers) <= 3 else (1,)
    return [float(f"{step}e{power}") for power in powers for step in steps]


def _mean(estimate: Estimate | None) -> float | None:
    return None if estimate is None else estimate.mean


def _words(estimate: Estimate | None) -> str:
    return "an unknown value" if estimate is None else f"{_PERCENT.number(estimate.mean)} %"


def _extremes(values: Estimates, unit: str = "") -> str:
    """Say the smallest and largest value and whose they are."""
    defined = [(e.mean, i) for i, e in enumerate(values, start=1) if e is not None]
    if not defined:
        return " without a value"
    (low, i), (high, j) = min(defined), max(defined)
    if len(defined) == 1:
        return f" {_PERCENT.number(low)}{unit} (experience {i})"
    return (
        f" between {_PERCENT.number(low)}{unit} (experience {i}) and "
        f"{_PERCENT.number(high)}{unit} (experience {j})"
    )


def _seeds(method: Method) -> str:
    count = len(method.runs)
    return "one seed" if count == 1 else f"{count} seeds"


def _label(method: Method) -> str:
    """Return the label as text of a plot, where signs of HTML and of templates mean nothing."""
    return escape(visible(method.label)).replace("%{", "% {")
