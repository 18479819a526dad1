"""The tables of a comparison as plain cells, before anything is rendered."""

from collections.abc import Sequence
from dataclasses import dataclass

from avalanche_peftcl.compare.comparison import Comparison
from avalanche_peftcl.compare.methods import QUANTITIES, Method, Quantity
from avalanche_peftcl.compare.published import Quoted
from avalanche_peftcl.compare.statistics import Estimate
from avalanche_peftcl.runs.report import number
from avalanche_peftcl.runs.tables import Sheet

MANY = 8  # methods: of more, sentences and tables that have each of them are too long to read
QUOTED = "quoted"  # in the place of the number of seeds
_TIMES = ((3 * 3600.0, 3600.0, "h"), (180.0, 60.0, "min"), (0.0, 1.0, "s"))  # from, divisor, unit


@dataclass(frozen=True)
class Scale:
    """How the values of a quantity are shown.

    Args:
        factor: What values are multiplied by.
        unit: Sign of the unit; empty without one.
        digits: Digits after the point.
    """

    factor: float
    unit: str
    digits: int

    def number(self, value: float | None) -> str:
        """Return a value, a dash for ``None``."""
        text = "-" if value is None else f"{self.factor * value:,.{self.digits}f}"
        return "0" + text[2:] if text.startswith("-0") and not text.strip("-0.") else text


def scale_of(quantity: Quantity, methods: Sequence[Method]) -> Scale:
    """Return how ``quantity`` is shown: percent, whole numbers, or the unit of time that fits."""
    if quantity.unit == "fraction":
        return Scale(100.0, "%", 1)
    if quantity.unit == "parameters":
        return Scale(1.0, "", 0)
    if quantity.unit == "passes":
        return Scale(1.0, "", 2)
    longest = max((e.mean for m in methods if (e := m.estimate(quantity))), default=0.0)
    divisor, unit = next((divisor, unit) for least, divisor, unit in _TIMES if longest >= least)
    return Scale(1 / divisor, unit, 1)


def shown_quantities(methods: Sequence[Method]) -> list[Quantity]:
    """Return what methods are compared by; passes where a record has counted them."""
    return [
        quantity
        for quantity in QUANTITIES
        if quantity.unit != "passes" or any(method.by_seed(quantity) for method in methods)
    ]


def results_sheet(comparison: Comparison) -> Sheet:
    """Return the table of methods: mean, spread and interval of every quantity, number of seeds."""
    shown = shown_quantities(comparison.methods)
    scales = {quantity: scale_of(quantity, comparison.methods) for quantity in shown}
    columns = (
        "method",
        "seeds",
        *(f"{q.title} ({scale.unit})" if scale.unit else q.title for q, scale in scales.items()),
    )
    rows = tuple(
        (
            method.label,
            str(len(method.runs)),
            *(cell(method.estimate(quantity), scale) for quantity, scale in scales.items()),
        )
        for method in comparison.methods
    )
    quoted, sources = _quoted_rows(comparison.quoted or (), scales)
    notes = (*_result_notes(comparison), *_notes(comparison))
    costs = 2 + sum(quantity.unit == "fraction" for quantity in QUANTITIES)
    return Sheet("Methods", columns, rows, quoted, notes, sources, parts=(costs,))


def further_sheet(comparison: Comparison) -> Sheet | None:
    """Return the table of further metrics; ``None`` of none.

    A row is a metric and a column a method; of many methods, the other way round.
    """
    methods, found, partly = comparison.methods, [], []
    for quantity in comparison.further:
        values = [method.estimate(quantity) for method in methods]
        if any(values):
            found.append((quantity.title, *map(_free_cell, values)))
        else:
            partly.append(quantity.title)
    if not (found or partly):
        return None
    labels = tuple(method.label for method in methods)
    many = len(methods) > MANY
    rows = [("method" if many else "metric", *labels), *found]
    if many:
        rows = list(zip(*rows, strict=True))
    notes = ["Values after the last experience, in the metric's own unit."] * bool(found)
    if partly:
        notes.append(f"Of no method do all seeds have {', '.join(partly)}.")
    shown = tuple(rows[1:]) if found else ()
    return Sheet("Further metrics", rows[0], shown, notes=tuple(notes), sparse=many)


def cell(estimate: Estimate | None, scale: Scale) -> str:
    """Return mean ± standard deviation (± half-width); a count that never varies stands alone.

    Example:
        >>> cell(Estimate(0.5, 0.01, 0.0248, 3), Scale(100.0, "%", 1))
        '50.0 ± 1.0 (± 2.5)'
        >>> cell(None, Scale(100.0, "%", 1)), cell(Estimate(20, 1e-9, 1e-9, 3), Scale(1.0, "", 0))
        ('-', '20')
    """
    if estimate is None:
        return "-"
    mean = scale.number(estimate.mean)
    if estimate.standard_deviation is None or estimate.half_width is None:
        return mean
    spread = scale.number(estimate.standard_deviation)
    if not scale.unit and spread == scale.number(0.0):
        return mean
    return f"{mean} ± {spread} (± {scale.number(estimate.half_width)})"


def _free_cell(estimate: Estimate | None) -> str:
    """Return mean ± standard deviation (± half-width) of a quantity whose unit nobody knows."""
    if estimate is None:
        return "-"
    if estimate.standard_deviation is None:
        return number(estimate.mean)
    spread, half = number(estimate.standard_deviation), number(estimate.half_width)
    return f"{number(estimate.mean)} ± {spread} (± {half})"


def left_out_lines(comparison: Comparison) -> list[str]:
    """Return a line for every record that is not compared: what, where, why."""
    return [
        f"{what}: {left.folder}: {left.reason}"
        for what, those in (
            ("incomplete", comparison.incomplete),
            ("unreadable", comparison.unreadable),
        )
        for left in those
    ]


def _result_notes(comparison: Comparison) -> list[str]:
    several = any(len(method.runs) > 1 for method in comparison.methods)
    return [
        "Mean ± standard deviation (± half-width of the 95 % confidence interval, Student's t) "
        "over the seeds."
        if several
        else "One seed a method: no spread.",
        "Average accuracy: mean over the experiences of the accuracy on all test images seen so "
        "far. Last accuracy: that after the last experience. Forgetting: mean drop of the earlier "
        "experiences from their best accuracy.",
        *_joint(comparison),
        *_budgets(comparison),
        *_tuned(comparison),
        *_overlaps(comparison),
    ]


def _joint(comparison: Comparison) -> list[str]:
    those = [method.label for method in comparison.methods if method.joint]
    its = "its" if len(those) == 1 else "their"
    said = f"trained on all experiences at once: there is {its} last accuracy alone."
    return [f"{', '.join(those)} {said}"] if those else []


def _budgets(comparison: Comparison) -> list[str]:
    """Return what the training of an experience was allowed, and of whom where that differs."""
    found: dict[str, list[str]] = {}
    for method in comparison.methods:
        budgets = {run.record.config.budget for run in method.runs}
        for words in sorted(budget.said() for budget in budgets if budget is not None):
            found.setdefault(words, []).append(method.label)
    if [len(labels) for labels in found.values()] == [len(comparison.methods)]:
        return [f"Budget: {words}." for words in found]
    return [f"Budget of {', '.join(labels)}: {words}." for words, labels in found.items()]


def _tuned(comparison: Comparison) -> list[str]:
    """Return how options were searched for, and of which methods nobody says so."""
    found: dict[str, list[str]] = {}
    for method in comparison.methods:
        configs = [run.record.config for run in method.runs if not run.record.config.floor]
        for words in sorted({c.tuned.said() if c.tuned else "" for c in configs}):
            found.setdefault(words, []).append(method.label)
    if not any(found):
        return []
    untold = found.pop("", [])
    if len(found) == 1 and all(len(labels) > len(untold) for labels in found.values()):
        others = f", all but {', '.join(untold)}" if untold else ""
        return [f"Tuned{others}: {words}." for words in found]
    return [f"Tuned, {', '.join(labels)}: {words}." for words, labels in found.items()] + [
        f"No search of options is recorded of {', '.join(untold)}."
    ] * bool(untold)


def _overlaps(comparison: Comparison) -> list[str]:
    """Return what pre-training knew of the classes, and of which methods where they differ."""
    found: dict[str, list[str]] = {}
    for method in comparison.methods:
        told = {run.record.overlap.said() for run in method.runs if run.record.overlap is not None}
        for words in sorted(told):
            found.setdefault(words, []).append(method.label)
    return [
        f"Pre-training{'' if len(found) == 1 else ' of ' + ', '.join(labels)}: {words}."
        for words, labels in found.items()
    ]


def _notes(comparison: Comparison) -> list[str]:
    notes = [
        f"{method.label} differs in more: {', '.join(method.untold)}."
        for method in comparison.methods
        if method.untold
    ]
    notes += ["No published number that ships with the package has this protocol."] * (
        comparison.quoted == ()
    )
    notes += [f"The runs differ in {name}: {', '.join(v)}." for name, v in comparison.versions]
    if comparison.differences:
        notes.append(
            "These runs do not share one protocol and stand side by side only because that was "
            "asked for. They differ in " + "; ".join(map(str, comparison.differences)) + "."
        )
    return notes


def _quoted_rows(
    quoted: Sequence[Quoted], scales: dict[Quantity, Scale]
) -> tuple[tuple[tuple[str, ...], ...], tuple[str, ...]]:
    """Return a row a quoted method, and a note a table with its source and definitions."""
    tables: dict[str, list[Quoted]] = {}
    for one in quoted:
        tables.setdefault(one.table.id, []).append(one)
    marks = {table: f"[{mark}]" for mark, table in enumerate(tables, start=1)}
    several = len({one.stream.title for one in quoted}) > 1  # of runs that were forced together
    rows = []
    for one in quoted:
        cells = []
        for quantity, scale in scales.items():
            value, spread = one.values.get(quantity.key, (None, None))
            fine = Scale(scale.factor, scale.unit, 2)
            text = fine.number(value)
            cells.append(text if spread is None else f"{text} ± {fine.number(spread)}")
        label = f"{one.method} on {one.stream.title}" if several else one.method
        rows.append((f"{label} {marks[one.table.id]}", QUOTED, *cells))
    sources = tuple(f"{marks[key]} {_source(those)}" for key, those in tables.items())
    return tuple(rows), sources


def _source(quoted: Sequence[Quoted]) -> str:
    """Say where the numbers of one table were read and what they are."""
    table = quoted[0].table
    definitions = {d.name: d.definition for one in quoted for d in one.definitions.values()}
    said = [
        f"Quoted, not measured here: {table.paper}, {table.place}",
        table.reference,
        f"Read from {table.read_from}",
        ", ".join(filter(None, (table.backbone, table.weights))),
        table.class_order and f"Class order: {table.class_order}",
        f"± is the {table.spread}" if table.spread else "No spread is stated",
        *(f"{name}: {definition}" for name, definition in definitions.items()),
    ]
    text = ". ".join(part for part in said if part) + "."
    return f"{text} {table.note}" if table.note else text
