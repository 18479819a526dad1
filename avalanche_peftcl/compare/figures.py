"""The plots of accuracies: interactive figures, each with its numbers in words and as a table."""

import math
from collections.abc import Sequence
from typing import Any

from avalanche_peftcl.compare.comparison import Comparison
from avalanche_peftcl.compare.methods import QUANTITIES, Method
from avalanche_peftcl.compare.plots import (
    PERCENT,
    Estimates,
    Plot,
    empty_figure,
    label_of,
    listed,
    mean_of,
    over_experiences,
    seeds,
    style_of,
)
from avalanche_peftcl.compare.sheets import Scale, cell, scale_of
from avalanche_peftcl.compare.statistics import Estimate
from avalanche_peftcl.compare.summaries import experience_names
from avalanche_peftcl.runs.names import domain_names
from avalanche_peftcl.runs.picture import matrix_picture
from avalanche_peftcl.runs.record import RunRecord
from avalanche_peftcl.runs.tables import Sheet, matrix_sheet

_PAGE = 10_000  # letters of a table's line on the page, which scrolls
_FAR = 30.0  # largest over smallest from where an axis is logarithmic
_LAST = next(quantity for quantity in QUANTITIES if quantity.key == "last_accuracy")


def curve_plot(comparison: Comparison) -> Plot:
    """Draw the accuracy on all images seen so far after each experience."""
    curves = {method: method.curve() for method in comparison.methods}
    words = []
    for method, curve in curves.items():
        last = _words(curve[-1])
        goes = f"goes from {_words(curve[0])} after experience 1 to {last}"
        goes = f"has {last}, all at once," if method.joint else goes
        words.append(f"{method.label} {goes} after experience {len(curve)}")
    return over_experiences(
        comparison,
        "Accuracy on all seen, after each experience",
        f"Accuracy on all test images seen so far: {listed(words)}.",
        curves,
        ("experiences trained", "accuracy on all seen (%)"),
        names=experience_names(comparison.runs),
    )


def forgetting_plot(comparison: Comparison) -> Plot | None:
    """Draw how far each experience fell from its best; ``None`` where nothing can be forgotten."""
    drops = {method: method.forgetting_by_experience() for method in comparison.methods}
    if not any(estimate for values in drops.values() for estimate in values):
        return None
    domains = _domains(comparison.runs)
    words = [f"{m.label}{_extremes(values, domains=domains)}" for m, values in drops.items()]
    return over_experiences(
        comparison,
        "Forgetting of each experience",
        "Best earlier accuracy on an experience minus the accuracy on it at the end, in points: "
        f"{listed(words)}.",
        drops,
        ("experience", "forgetting (points)"),
        names=experience_names(comparison.runs),
    )


def matrix_plot(method: Method) -> Plot:
    """Draw the accuracy matrix of a method, the mean over its seeds."""
    matrix = method.matrix()
    means = [list(map(mean_of, row)) for row in matrix]
    names = experience_names(method.runs)
    domains = _domains(method.runs)
    return Plot(
        f"Accuracy matrix: {method.label}",
        f"Accuracy on each experience (column) after training up to each (row), mean over "
        f"{seeds(len(method.runs))}. At the end {method.label} has"
        f"{_extremes(matrix[-1], ' %', domains)}.",
        matrix_sheet(
            [[cell(e, PERCENT) for e in row] for row in matrix],
            range(1, len(matrix) + 1),
            names=[name.partition(" (")[2].removesuffix(")") for name in names],
            domains=domains,
            width=_PAGE,
        ),
        picture=matrix_picture(means, list(map(mean_of, method.curve())), domains=domains),
    )


def trade_off_plot(comparison: Comparison, key: str) -> Plot:
    """Draw last accuracy against what it costs: the quantity called ``key``."""
    cost = next(quantity for quantity in QUANTITIES if quantity.key == key)
    scale = scale_of(cost, comparison.methods)
    title = f"{cost.title} ({scale.unit})" if scale.unit else cost.title
    figure = empty_figure(title, "last accuracy (%)")
    points = [(each, each.estimate(cost), each.estimate(_LAST)) for each in comparison.methods]
    axis = _CostAxis([scale.factor * x.mean for _, x, y in points if x and y])
    words = []
    for series, (method, x, y) in enumerate(points):
        if x is None or y is None:
            continue
        shown = scale.number(x.mean)
        words.append(f"{method.label}: {shown} {scale.unit or cost.title}, {_words(y)}")
        figure.add_scatter(
            x=[axis.place(scale.factor * x.mean)],
            y=[100 * y.mean],
            error_x=_error(x, scale) if scale.unit and x.mean else None,
            error_y=_error(y, PERCENT) | _within(y),
            mode="markers",
            cliponaxis=False,
            hovertemplate=f"{label_of(method)}<br>{shown}, %{{y:.1f}} %<extra></extra>",
            **style_of(series, size=12),
        )
    figure.update_xaxes(**axis.layout())
    rows = [(method.label, cell(x, scale), cell(y, PERCENT)) for method, x, y in points]
    return Plot(
        f"Last accuracy against {cost.title}",
        f"Last accuracy and {cost.title}: {listed(words)}.",
        Sheet(title, ("method", title, "last accuracy (%)"), tuple(rows)),
        figure,
    )


class _CostAxis:
    """An axis of costs: logarithmic if they are far apart, with a place of its own for 0."""

    def __init__(self, costs: Sequence[float]) -> None:
        above = [cost for cost in costs if cost > 0]
        self._low, self._high = min(above, default=1.0), max(above, default=1.0)
        self._far = self._high > _FAR * self._low
        self._zero = 10.0 ** (math.floor(math.log10(self._low)) - 1) if 0 in costs else None

    def place(self, cost: float) -> float:
        """Return where a cost is drawn."""
        return self._zero if self._far and not cost and self._zero else cost

    def layout(self) -> dict[str, Any]:
        """Return what the figure is told."""
        if not self._far:
            return {"rangemode": "tozero"}
        ticks = {
            tick: f"{tick:,.0f}" if tick >= 1 else f"{tick:g}"
            for tick in _ticks(self._low, self._high)
        }
        if self._zero is not None:
            ticks[self._zero] = "0"
        return {"type": "log", "tickvals": list(ticks), "ticktext": list(ticks.values())}


def _domains(runs: Sequence[RunRecord]) -> list[str]:
    """Return the domain of each experience; none where they are none, or not the same."""
    found = [domain_names(run.record.protocol) for run in runs]
    return found[0] if all(names == found[0] for names in found) else []


def _error(estimate: Estimate, scale: Scale) -> dict[str, Any]:
    half = estimate.half_width
    return {"array": [scale.factor * (half or 0.0)], "visible": bool(half), "thickness": 1}


def _within(estimate: Estimate) -> dict[str, Any]:
    """Return an interval of percent that ends at 0 and 100."""
    half, mean = 100 * (estimate.half_width or 0.0), 100 * estimate.mean
    return {
        "array": [min(half, 100 - mean)],
        "arrayminus": [min(half, mean)],
        "symmetric": False,
    }


def _ticks(low: float, high: float) -> list[float]:
    """Return round numbers around [low, high]: powers of ten, over few of them 1, 2 and 5 times."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = (1, 2, 5) if len(powers) <= 3 else (1,)
    return [float(f"{step}e{power}") for power in powers for step in steps]


def _words(estimate: Estimate | None) -> str:
    return "an unknown value" if estimate is None else f"{PERCENT.number(estimate.mean)} %"


def _extremes(values: Estimates, unit: str = "", domains: Sequence[str] = ()) -> str:
    """Say the smallest and largest value and whose they are."""
    called = dict(enumerate(domains, start=1))
    defined = [(e.mean, i) for i, e in enumerate(values, start=1) if e is not None]
    if not defined:
        return " without a value"
    (low, i), (high, j) = min(defined), max(defined)
    if len(defined) == 1:
        return f" {PERCENT.number(low)}{unit} ({called.get(i, f'experience {i}')})"
    return (
        f" between {PERCENT.number(low)}{unit} ({called.get(i, f'experience {i}')}) and "
        f"{PERCENT.number(high)}{unit} ({called.get(j, f'experience {j}')})"
    )
