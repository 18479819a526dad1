"""From the record of a run to what people read: Markdown, and tables on the terminal.

Accuracies are fractions; they become percent only here. Experiences are counted from 1 in
everything that is rendered.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.filesize import decimal
from rich.table import Table

from avalanche_peftcl.console import markdown, plain
from avalanche_peftcl.runs.names import domain_names, full_names, numbered
from avalanche_peftcl.runs.schema import Cost, Protocol, Record
from avalanche_peftcl.runs.tables import (
    WIDTH,
    Sheet,
    markdown_table,
    matrix_sheet,
    terminal_table,
)
from avalanche_peftcl.runs.units import duration

PICTURE = "accuracy_matrix.svg"
_PAGE = 160  # letters of a line of the summary's matrix, which a viewer lays out
_INDEPENDENCE: dict[str | None, str] = {
    "tested": "independent of its minibatch (tested in avalanche-peftcl, which all parts are from)",
    "stated": "independent of its minibatch (the strategy says so)",
    "dependent": "depends on its minibatch (the strategy says so)",
    "not stated": "unknown whether it depends on its minibatch",
}
_JOINT = (
    "All experiences were trained on at once (joint training), so there is the last row of the "
    "accuracy matrix alone: average accuracy and forgetting are not defined."
)
_FLOOR = "This run is a floor that other methods are held against."
_MOST = 20  # experiences whose matrix is printed cell by cell
_FEW = 10  # of more experiences, how many are printed
_COLUMN, _HEAD = 7, 5  # letters of a column, and of the first with both edges


def percent(value: float | None, *, sign: str = " %") -> str:
    """Return a fraction in percent, a dash for ``None``.

    Example:
        >>> percent(0.9312), percent(None)
        ('93.1 %', '-')
    """
    return "-" if value is None else f"{100 * value:.1f}{sign}"


def headlines(record: Record) -> list[tuple[str, str]]:
    """Return the run's headline numbers, name and percent.

    ``average accuracy`` is the mean over the experiences of the accuracy on all test images seen;
    ``last accuracy`` is that after the last experience; ``forgetting`` the mean drop from the best.
    """
    return [(name, percent(value)) for name, value in record.accuracy.headlines().items()]


def title(record: Record) -> str:
    """Return what was run, in one line."""
    count = record.experiences
    so_far = "" if record.complete else f", {count.finished} of {count.total} experiences"
    return f"{_name(record)}, seed {record.seed}{so_far}"


def terminal_report(record: Record, folder: str, *, width: int = WIDTH) -> RenderableType:
    """Return what a run shows at its end, for a rich console.

    Args:
        record: The run's record.
        folder: Where it is.
        width: Of the console, in letters.
    """
    numbers = Table.grid(padding=(0, 2))
    for name, value in headlines(record):
        numbers.add_row(plain(name), plain(value, justify="right"))
    parts: list[RenderableType] = [plain(""), numbers, plain(""), plain(f"run record: {folder}")]
    if len(record.accuracy_matrix) <= _MOST:
        sheet = _matrix(record, width=width)
        parts[1:1] = [plain(sheet.title), terminal_table(sheet, title=False)]
    return Group(*parts)


def markdown_report(record: Record) -> str:
    """Return ``summary.md``.

    Args:
        record: The run's record.
    """
    protocol, count, size = record.protocol, record.experiences, len(record.accuracy_matrix)
    called = _called(record)
    state = "" if record.complete else f" ({count.finished} of {count.total} experiences)"
    part = f" Here are {_FEW} of {size} experiences; accuracy_matrix.csv has all."
    lines = [
        f"# {markdown(_name(record))}{state}",
        "",
        *_table(("number", "value"), headlines(record)),
        "Average accuracy is the mean over the experiences of the accuracy on all test images seen "
        "so far; last accuracy is that accuracy after the last experience; forgetting is the mean "
        "drop of the earlier experiences from their best accuracy.",
        "",
        *([_JOINT, ""] if record.joint else []),
        *([_FLOOR, ""] if record.config.floor else []),
        "## Accuracy matrix",
        "",
        "In percent; rows: after training on that experience, columns: on the test images of it."
        + (part if size > _MOST else ""),
        "",
        *markdown_table(_matrix(record, width=_PAGE)),
        "",
        *([f"![accuracy matrix]({PICTURE})", ""] if count.finished else []),
        *_further(record),
        "## Protocol",
        "",
        f"- scenario: {markdown(protocol.scenario)}, {count.total} experiences, seed {record.seed}",
        *_if(record.config.budget.said() if record.config.budget else None, "- budget: "),
        f"- class order: {markdown(_words(protocol.class_order))}",
        *(f"- {name}: {markdown(value)}" for name, value in protocol_rules(protocol)),
        f"- input: {markdown(_pairs(protocol.normalisation))}",
        *_if(record.model_name, "- timm's name of the backbone: "),
        f"- weights of the backbone: sha256 {record.weights_sha256}",
        *_if(record.overlap.said() if record.overlap else None, "- pre-training: "),
        *_if(record.config.tuned.said() if record.config.tuned else None, "- options: tuned, "),
        "",
        *_table(
            ("experience", "classes", "train images", "test images"),
            [
                (e, _words(each.class_names), f"{each.train_images:,}", f"{each.test_images:,}")
                for e, each in zip(called, protocol.experiences, strict=True)
            ],
            words=True,
        ),
        "## Components",
        "",
        *_table(
            ("kind", "name", "provider", "version", "source"),
            [
                (each.kind, each.name, each.provider, each.version, each.source)
                for each in record.components
            ],
            words=True,
        ),
        *_notes(record),
        "## Cost",
        "",
        *(f"- {name}: {markdown(value)}" for name, value in cost_lines(record.cost)),
        f"- device: {markdown(_pairs(record.platform))}",
        f"- versions: {markdown(_pairs(record.versions))}",
        "",
    ]
    return "\n".join(lines)


def protocol_rules(protocol: Protocol) -> list[tuple[str, str]]:
    """Return the rules of the evaluation in words, name and value; what it lacks is unknown."""
    images, manifest = protocol.test_images, protocol.manifest_sha256
    independence = _INDEPENDENCE.get(protocol.batch_independence, _INDEPENDENCE["not stated"])
    return [
        ("images", f"sha256 {protocol.split_sha256 or 'unknown'} of names, sizes and split"),
        ("manifest", f"sha256 {manifest}, every image compared" if manifest else "none given"),
        (
            "tested on",
            f"{'unknown' if images is None else images} {protocol.tested_on or 'images'}",
        ),
        ("precision", protocol.precision or "unknown"),
        ("task label at test", "used" if protocol.task_label_at_test else "not used"),
        ("prediction of an image", independence),
    ]


def spread(size: int, most: int) -> list[int]:
    """Return the numbers from 0 up to ``size``, or ``most`` of them from first to last.

    Example:
        >>> spread(3, 5), spread(1000, 5)
        ([0, 1, 2], [0, 250, 500, 749, 999])
    """
    if size <= most:
        return list(range(size))
    return [round(i * (size - 1) / (most - 1)) for i in range(most)]


def number(value: float | None) -> str:
    """Return a number whose unit nobody knows, a dash for ``None``.

    Example:
        >>> number(0.123456), number(1234567.0), number(None)
        ('0.1235', '1.235e+06', '-')
    """
    return "-" if value is None else f"{value:.4g}"


def _matrix(record: Record, *, width: int = WIDTH) -> Sheet:
    """Return the accuracy matrix; of a large one some experiences, of joint training its row."""
    size = len(record.accuracy_matrix)
    most = min(_MOST, max(_FEW, (width - _HEAD) // _COLUMN))
    shown = spread(size, _FEW if size > most else most)
    rows = shown[-1:] if record.joint else shown
    cells = [[percent(record.accuracy_matrix[t][i], sign="") for i in shown] for t in rows]
    return matrix_sheet(
        cells,
        [t + 1 for t in shown],
        rows=[t + 1 for t in rows],
        names=full_names(record.protocol),
        domains=domain_names(record.protocol),
        width=width,
    )


def _further(record: Record) -> list[str]:
    """Return the section with the values of further metrics, if there are any."""
    if not record.further_metrics:
        return []
    shown = spread(record.experiences.finished, _FEW)
    rows = [
        (name, *(number(values[t]) if t < len(values) else "-" for t in shown))
        for name, values in record.further_metrics.items()
    ]
    columns = ("after experience", *(str(t + 1) for t in shown))
    return ["## Further metrics", "", *_table(columns, rows)]


def _notes(record: Record) -> list[str]:
    """Return the section with what plugins said after each experience, if they said anything."""
    lines = [
        f"- experience {markdown(called)}: {markdown(line)}"
        for called, said in zip(_called(record), record.notes, strict=False)
        for line in said
    ]
    return ["## Notes", "", *lines, ""] if lines else []


def _called(record: Record) -> list[str]:
    """Return the number of each experience, and its domain where it has one."""
    domains = domain_names(record.protocol)
    count = max(len(record.protocol.experiences), len(record.notes))
    return numbered(domains) if domains else [str(t + 1) for t in range(count)]


def cost_lines(cost: Cost) -> list[tuple[str, str]]:
    """Return what a run cost in units that people use, name and value.

    Example:
        >>> cost_lines(Cost(trainable_parameters=1200, training_seconds=[61.0, 4.0]))
        [('trainable parameters', '1,200'), ('training', '1 min 5 s (1 min 1 s, 4.0 s)')]
    """
    trained = f"{cost.trainable_parameters:,}"
    if cost.total_parameters is not None:
        trained += f" of {cost.total_parameters:,}"
    if cost.trainable_share is not None:
        trained += f" ({100 * cost.trainable_share:.2g} %)"
    lines = [("trainable parameters", trained)]
    if cost.stored_floats is not None:
        lines.append(("numbers stored beside the network", f"{cost.stored_floats:,}"))
    if cost.forward_passes is not None:
        lines.append(("passes of the backbone for a test image", str(cost.forward_passes)))
    if cost.training_passes:
        lines.append(("passes of the backbone for a training image", _passes(cost)))
    lines += [("training", _seconds(cost.training_seconds))]
    if cost.evaluation_seconds:
        lines.append(("evaluation", _seconds(cost.evaluation_seconds)))
    if cost.peak_memory_bytes is not None:
        lines.append(("most memory", decimal(cost.peak_memory_bytes, precision=2)))
    return lines


def _passes(cost: Cost) -> str:
    """Return the passes of each experience's training; of many the least and the most."""
    each, steps = [f"{value:.4g}" for value in cost.training_passes], sum(cost.training_steps)
    if len(each) > _MOST:
        least, most = min(cost.training_passes), max(cost.training_passes)
        each = [f"{least:.4g} to {most:.4g}"]
    return ", ".join(each) + (f" ({steps:,} steps)" if cost.training_steps else "")


def _seconds(values: Sequence[float]) -> str:
    each = f" ({', '.join(map(duration, values))})" if 1 < len(values) <= _MOST else ""
    return duration(sum(values)) + each


def _name(record: Record) -> str:
    return f"{record.config.strategy.name} on {record.config.benchmark.name}"


def _table(
    columns: tuple[str, ...], rows: Iterable[tuple[str, ...]], *, words: bool = False
) -> list[str]:
    return [*markdown_table(Sheet("", columns, tuple(rows), words=words)), ""]


def _if(value: str | None, head: str) -> list[str]:
    return [f"{head}{markdown(value)}"] if value else []


def _words(values: Sequence[Any] | None) -> str:
    return "unknown" if values is None else ", ".join(map(str, values))


def _pairs(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {_value(value)}" for name, value in _spaced(values))


def _spaced(values: Mapping[str, Any]) -> list[tuple[str, Any]]:
    return [(name.replace("_", " "), value) for name, value in values.items() if value is not None]


def _value(value: Any) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "(" + ", ".join(map(_value, value)) + ")"
    return number(value) if isinstance(value, float) else str(value)
