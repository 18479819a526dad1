"""The plot and table of accuracies that were measured while runs trained."""

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

from avalanche_peftcl.compare.comparison import Comparison
from avalanche_peftcl.compare.methods import Method, estimate_of
from avalanche_peftcl.compare.plots import (
    PERCENT,
    Line,
    Plot,
    Section,
    add_lines,
    bands_in_words,
    empty_figure,
    listed,
    percent_range,
    seeds,
)
from avalanche_peftcl.compare.sheets import cell
from avalanche_peftcl.compare.summaries import AnyTime, experience_names, told
from avalanche_peftcl.runs.report import spread
from avalanche_peftcl.runs.tables import Sheet

METRIC = "AnyTimeMetric"
_ROWS = 50  # points of a curve that are listed
_TOLD = 20  # experiences whose minimum is listed
_NUMBERED = 20  # experiences whose numbers stand above the curves
_TITLE = "Accuracy while training"
_CURVES = "Accuracy on all seen, at any time"
_COLUMNS: dict[str, Callable[[AnyTime], float | None]] = {
    "area": lambda summary: summary.area,
    "average minimum": lambda summary: summary.average_minimum,
    "worst case": lambda summary: summary.worst_case,
}

Summaries = Mapping[int, AnyTime]  # by seed


def any_time_sections(comparison: Comparison) -> list[Section]:
    """Draw the accuracy at any time, with what follows from it; nothing if no run tells it."""
    found = told(comparison, METRIC, AnyTime)
    if not found:
        return []
    lines = {method: _mean_curve(summaries) for method, summaries in found.by_method.items()}
    apart = [
        f"The seeds of {method.label} were not evaluated at the same iterations: no curve."
        for method, line in lines.items()
        if not line.x
    ]
    lines = {m: line for m, line in lines.items() if any(e is not None for e in line.y)}
    plots = (_plot(comparison, lines, found.by_method),) if lines else ()
    sheet = _sheet(found.by_method, experience_names(comparison.runs)) if found.by_method else None
    said = (
        "In percent. Area: under the curve, over its length. Minimum: lowest accuracy on an "
        "experience since its training ended; average minimum: their mean; worst case: the same "
        "with the last experience as it is at the end."
    )
    notes = [said] if sheet else []
    return [Section(_TITLE, plots, (*notes, *apart, *found.left_out), sheet)]


def _mean_curve(summaries: Summaries) -> Line:
    """Return the mean over the seeds, at the iterations that all of them have."""
    curves = [dict(zip(s.iterations, s.accuracy, strict=True)) for s in summaries.values()]
    shared = sorted(set(curves[0]).intersection(*curves[1:]))
    return Line(shared, [estimate_of([curve[x] for curve in curves]) for x in shared])


def _plot(
    comparison: Comparison, lines: Mapping[Method, Line], methods: Mapping[Method, Summaries]
) -> Plot:
    figure = empty_figure("training iterations", "accuracy on all seen (%)")
    add_lines(figure, comparison, lines, PERCENT)
    figure.update_xaxes(rangemode="tozero")
    figure.update_yaxes(range=percent_range([e for line in lines.values() for e in line.y]))
    ends = {_switches(s) for method in lines for s in methods[method].values()}
    switches = ends.pop() if len(ends) == 1 else ()
    for x in switches:
        stroke = {"color": "var(--muted)", "width": 1, "dash": "dot"}
        figure.add_shape(
            type="line", x0=x, x1=x, y0=0, y1=1, yref="paper", line=stroke, layer="below"
        )
    if switches and len(switches) < _NUMBERED:
        last = max(line.x[-1] for line in lines.values())
        for number, (a, b) in enumerate(pairwise((0, *switches, last)), start=1):
            figure.add_annotation(
                x=(a + b) / 2,
                y=1,
                yref="paper",
                yanchor="bottom",
                text=str(number),
                showarrow=False,
                font={"color": "var(--muted)"},
            )
        figure.update_layout(margin={"t": 24})
    words = []
    for method, line in lines.items():
        values = [(e.mean, x) for x, e in zip(line.x, line.y, strict=True) if e is not None]
        low, x = min(values)
        mean = seeds(len(methods[method]), of=len(method.runs))
        words.append(
            f"{method.label} is lowest at iteration {x:,} with {PERCENT.number(low)} % and ends "
            f"with {PERCENT.number(values[-1][0])} % ({mean})"
        )
    dotted = " At dotted lines the experience changes." if switches else ""
    return Plot(
        _CURVES,
        f"Mean accuracy on the experiences that the stream has come to: {listed(words)}."
        f"{dotted}{bands_in_words(line.y for line in lines.values())}",
        _points(lines),
        figure,
    )


def _switches(summary: AnyTime) -> tuple[int, ...]:
    """Return the iterations after which another experience trains."""
    points = pairwise(zip(summary.iterations, summary.experience, strict=True))
    return tuple(x for (x, one), (_, other) in points if one != other)


def _points(lines: Mapping[Method, Line]) -> Sheet:
    """Return the curves as a table; of many points some."""
    every = sorted({x for line in lines.values() for x in line.x})
    few = [every[i] for i in spread(len(every), _ROWS)]
    values = [dict(zip(line.x, line.y, strict=True)) for line in lines.values()]
    of = f", {len(few)} of {len(every)} points" if len(few) < len(every) else ""
    return Sheet(
        f"{_CURVES} (%){of}",
        ("iteration", *(method.label for method in lines)),
        tuple((f"{x:,}", *(cell(each.get(x), PERCENT) for each in values)) for x in few),
    )


def _sheet(methods: Mapping[Method, Summaries], names: Sequence[str]) -> Sheet:
    """Return what follows from the curves, a row a method."""
    size = max(len(s.minimum) for summaries in methods.values() for s in summaries.values())
    few = spread(size, _TOLD)
    rows = tuple(
        (
            method.label,
            str(len(summaries)),
            *(
                cell(estimate_of([value(s) for s in summaries.values()]), PERCENT)
                for value in _COLUMNS.values()
            ),
            *(
                cell(estimate_of([_at(s.minimum, i) for s in summaries.values()]), PERCENT)
                for i in few
            ),
        )
        for method, summaries in methods.items()
    )
    columns = ("method", "seeds", *_COLUMNS, *(f"minimum on {names[i]}" for i in few))
    return Sheet(f"{_TITLE}: area and minimum", columns, rows)


def _at(values: Sequence[float | None], place: int) -> float | None:
    return values[place] if place < len(values) else None
