"""What the plots of a comparison are made of, whatever they show.

Colours are CSS variables (``var(--series-0)``, ``var(--text)``), which the page resolves when it
draws, so that a plot follows the light or dark mode of its reader.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import plotly.graph_objects as go

from avalanche_peftcl.compare.comparison import Comparison
from avalanche_peftcl.compare.methods import Method
from avalanche_peftcl.compare.sheets import MANY, Scale, cell
from avalanche_peftcl.compare.statistics import Estimate
from avalanche_peftcl.console import visible
from avalanche_peftcl.runs.tables import Sheet

SERIES = 8  # colours, and signs that go with them
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "x", "star", "pentagon")
SIGNS = "●■◆▲✚✖★⬟"
PERCENT = Scale(100.0, "%", 1)
_DASHES = ("solid", "dash", "dot", "dashdot")  # after so many methods as there are colours
_MARKED = 60  # points of a line that are marked

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


@dataclass(frozen=True)
class Section:
    """Plots of one thing that some runs measured.

    Args:
        title: Its heading.
        plots: What is drawn.
        notes: Lines below the heading.
        sheet: A table between them; ``None`` without one.
    """

    title: str
    plots: tuple[Plot, ...]
    notes: tuple[str, ...] = ()
    sheet: Sheet | None = None


@dataclass(frozen=True)
class Line:
    """What a line of one method goes through.

    Args:
        x: Where.
        y: As many values, ``None`` where there is none.
    """

    x: Sequence[int]
    y: Estimates


def empty_figure(x: str, y: str, *, height: int = 360) -> go.Figure:
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


def add_lines(
    figure: go.Figure, comparison: Comparison, lines: Mapping[Method, Line], scale: Scale
) -> None:
    """Draw a line a method in its own style, with confidence bands unless there are many."""
    percent = scale == PERCENT
    low = lowest(e for each in lines.values() for e in each.y) if percent else -math.inf
    high = 100.0 if percent else math.inf
    for method, drawn in lines.items():
        series = comparison.methods.index(method)
        style = style_of(series)
        points = [(x, e) for x, e in zip(drawn.x, drawn.y, strict=True) if e is not None]
        band = [
            (x, scale.factor * e.mean, scale.factor * e.half_width)
            for x, e in points
            if e.half_width is not None
        ]
        if band and len(lines) <= MANY:
            figure.add_scatter(
                x=[x for x, _, _ in (*band, *band[::-1])],
                y=[round(min(y + half, high), scale.digits + 2) for _, y, half in band]
                + [round(max(y - half, low), scale.digits + 2) for _, y, half in band[::-1]],
                mode="lines",
                line={"width": 0, "color": style["line"]["color"]},
                fill="toself",
                fillcolor=f"var(--band-{series % SERIES})",
                hoverinfo="skip",
                meta=series,
                showlegend=False,
            )
        figure.add_scatter(
            x=list(drawn.x),
            y=[
                None if e is None else round(scale.factor * e.mean, scale.digits + 2)
                for e in drawn.y
            ],
            mode="lines+markers" if len(points) <= _MARKED else "lines",
            customdata=["-" if e is None else cell(e, scale) for e in drawn.y],
            hovertemplate=f"{label_of(method)}<br>%{{x}}: %{{customdata}}<extra></extra>",
            **style,
        )


def over_experiences(
    comparison: Comparison,
    title: str,
    caption: str,
    values: Mapping[Method, Estimates],
    axes: tuple[str, str],
    *,
    scale: Scale = PERCENT,
    names: Sequence[str] = (),
) -> Plot:
    """Draw a line a method over the experiences, with its confidence band.

    Args:
        comparison: Whose methods they are.
        title: What is drawn.
        caption: The numbers in words.
        values: Of each method one value an experience.
        axes: What stands at them.
        scale: How values are shown.
        names: Of the experiences; none, their numbers.
    """
    figure = empty_figure(*axes)
    lines = {method: Line(range(1, len(each) + 1), each) for method, each in values.items()}
    add_lines(figure, comparison, lines, scale)
    longest = max(len(each) for each in values.values())
    step = 1 if longest <= 12 else math.ceil(longest / 10)
    figure.update_xaxes(range=[0.7, longest + 0.3], dtick=step)
    if names:
        places = range(1, longest + 1, step)
        ticks = [plot_text(names[place - 1]) for place in places]
        angle = -45 if max(map(len, names)) > 2 else 0
        figure.update_xaxes(tickvals=list(places), ticktext=ticks, tickangle=angle)
    if scale == PERCENT:
        figure.update_yaxes(range=percent_range([e for each in values.values() for e in each]))
    else:
        figure.update_yaxes(rangemode="tozero")
    sheet = Sheet(
        title,
        ("method", *(names[:longest] or map(str, range(1, longest + 1)))),
        tuple(
            (method.label, *(cell(e, scale) for e in each), *["-"] * (longest - len(each)))
            for method, each in values.items()
        ),
    )
    return Plot(title, caption + bands_in_words(values.values()), sheet, figure)


def listed(words: Sequence[str]) -> str:
    """Return what a caption says of each method; of many, where that stands.

    Example:
        >>> listed(["a: 1 %", "b: 2 %"]), listed(["a: 1 %"] * 9)
        ('a: 1 %; b: 2 %', '9 methods, whose numbers stand in the table below')
    """
    if len(words) > MANY:
        return f"{len(words)} methods, whose numbers stand in the table below"
    return "; ".join(words)


def bands_in_words(lines: Iterable[Estimates]) -> str:
    """Return the end of a caption, which says what bands are, where there are any."""
    drawn = list(lines)
    several = any(e is not None and e.count > 1 for values in drawn for e in values)
    if not several or len(drawn) > MANY:
        return ""
    return " Bands are 95 % confidence intervals of the mean over the seeds."


def sign_of(series: int) -> int:
    """Return which sign a method has: another one in every round through the colours."""
    return (series + series // SERIES) % SERIES


def style_of(series: int, size: int = 7) -> dict[str, Any]:
    """Return line and marker of a method, by its place among all."""
    colour = f"var(--series-{series % SERIES})"
    return {
        "meta": series,
        "line": {"color": colour, "dash": _DASHES[series // SERIES % len(_DASHES)]},
        "marker": {"color": colour, "symbol": SYMBOLS[sign_of(series)], "size": size},
    }


def lowest(estimates: Iterable[Estimate | None]) -> float:
    """Return where percent values can begin: at 0, or at -100 where one is below 0."""
    means = [e.mean for e in estimates if e is not None]
    return 0.0 if min(means, default=0.0) >= 0 else -100.0


def percent_range(estimates: Estimates) -> list[float]:
    """Return where percent values and their intervals lie, within [-100, 100], and a margin."""
    defined = [e for e in estimates if e is not None]
    if not defined:
        return [0.0, 100.0]
    low = min(100 * (e.mean - (e.half_width or 0.0)) for e in defined)
    high = max(100 * (e.mean + (e.half_width or 0.0)) for e in defined)
    low, high = max(lowest(defined), low), min(100.0, high)
    margin = 0.04 * (high - low) + 0.5
    return [round(low - margin, 2), round(high + margin, 2)]


def mean_of(estimate: Estimate | None) -> float | None:
    """Return the mean, ``None`` where there is none."""
    return None if estimate is None else estimate.mean


def label_of(method: Method) -> str:
    """Return the label as text of a plot, where signs of HTML and of templates mean nothing."""
    return plot_text(method.label)


def plot_text(text: str) -> str:
    """Return text as a plot shows it as it is."""
    return escape(visible(text)).replace("%{", "% {")


def seeds(count: int, of: int | None = None) -> str:
    """Say how many seeds there are, and of how many.

    Example:
        >>> seeds(1), seeds(3), seeds(2, of=3)
        ('one seed', '3 seeds', '2 of 3 seeds')
    """
    if of is not None and of != count:
        return f"{count} of {of} seeds"
    return "one seed" if count == 1 else f"{count} seeds"
