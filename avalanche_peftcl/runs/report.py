"""From the numbers of a run to what people read: Markdown, figures, a table on the terminal.

Everything here is made from the content of ``metrics.json``, where accuracies are fractions; they
become percent only here. Experiences are counted from 1 in everything that is rendered.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table

from avalanche_peftcl.console import markdown, markdown_row, plain

Metrics = Mapping[str, Any]

_HEADLINES = {
    "average_incremental_accuracy": "average accuracy",
    "last_accuracy": "last accuracy",
    "forgetting": "forgetting",
}
_INDEPENDENCE: dict[Any, str] = {
    "tested": "independent of its minibatch (tested in avalanche-peftcl, which all parts are from)",
    "stated": "independent of its minibatch (the strategy says so)",
    "dependent": "depends on its minibatch (the strategy says so)",
    "not stated": "unknown whether it depends on its minibatch",
}
_MOST = 20  # experiences whose matrix is printed cell by cell
_FEW = 10  # of more experiences, how many are printed
_DRAWN = 200  # experiences whose matrix is drawn cell by cell; of more, as many


def percent(value: float | None, *, sign: str = " %") -> str:
    """Return a fraction in percent, a dash for ``None``.

    Example:
        >>> percent(0.9312), percent(None)
        ('93.1 %', '-')
    """
    return "-" if value is None else f"{100 * value:.1f}{sign}"


def headlines(metrics: Metrics) -> list[tuple[str, str]]:
    """Return the run's headline numbers, name and percent.

    ``average accuracy`` is the mean over the experiences of the accuracy on all test images seen;
    ``last accuracy`` is that after the last experience; ``forgetting`` the mean drop from the best.
    """
    accuracy = metrics["accuracy"]
    return [(name, percent(accuracy.get(key))) for key, name in _HEADLINES.items()]


def terminal_report(metrics: Metrics, folder: str) -> RenderableType:
    """Return what a run shows at its end, for a rich console.

    Args:
        metrics: Content of ``metrics.json``.
        folder: Where the run record is.
    """
    numbers = Table.grid(padding=(0, 2))
    for name, value in headlines(metrics):
        numbers.add_row(plain(name), plain(value, justify="right"))
    parts: list[RenderableType] = [plain(""), numbers, plain(""), plain(f"run record: {folder}")]
    matrix = metrics["accuracy_matrix"]
    if len(matrix) <= _MOST:
        table = Table(box=SIMPLE_HEAD)
        for name in ("", *map(str, range(1, len(matrix) + 1))):
            table.add_column(name, justify="right")
        for t, row in enumerate(matrix, start=1):
            table.add_row(str(t), *(percent(value, sign="") for value in row))
        parts[1:1] = [
            plain("accuracy in %; row: trained up to, column: tested on"),
            table,
        ]
    return Group(*parts)


def markdown_report(metrics: Metrics) -> str:
    """Return ``summary.md``.

    Args:
        metrics: Content of ``metrics.json``.
    """
    protocol, count = metrics["protocol"], metrics["experiences"]
    matrix = metrics["accuracy_matrix"]
    shown = spread(len(matrix), _FEW) if len(matrix) > _MOST else range(len(matrix))
    state = "" if metrics["complete"] else f" ({count['finished']} of {count['total']} experiences)"
    lines = [
        f"# {markdown(_name(metrics))}{state}",
        "",
        *_table(["number", "value"], headlines(metrics)),
        "",
        "Average accuracy is the mean over the experiences of the accuracy on all test images seen "
        "so far; last accuracy is that accuracy after the last experience; forgetting is the mean "
        "drop of the earlier experiences from their best accuracy.",
        "",
        "## Accuracy matrix",
        "",
        "In percent; rows: after training on that experience, columns: on the test images of it."
        + (
            ""
            if len(matrix) <= _MOST
            else f" Here are {_FEW} of {len(matrix)} experiences; accuracy_matrix.csv has all."
        ),
        "",
        *_table(
            ["", *(str(i + 1) for i in shown)],
            [
                (str(t + 1), *(percent(row[i], sign="") for i in shown))
                for t, row in ((t, matrix[t]) for t in shown)
            ],
        ),
        "",
        "![accuracy matrix](accuracy_matrix.png)",
        "",
        "![accuracy curve](accuracy_curve.png)",
        "",
        "## Protocol",
        "",
        f"- scenario: {markdown(protocol['scenario'])}, {count['total']} experiences, "
        f"seed {metrics['seed']}",
        f"- class order: {markdown(_words(protocol['class_order']))}",
        *(f"- {name}: {markdown(value)}" for name, value in protocol_rules(protocol)),
        f"- input: {markdown(_pairs(protocol['normalisation']))}",
        *(
            [f"- timm's name of the backbone: {markdown(name)}"]
            if (name := metrics.get("model_name"))
            else []
        ),
        f"- weights of the backbone: sha256 {metrics['weights_sha256']}",
        "",
        *_table(
            ["experience", "classes", "train images", "test images"],
            [
                (
                    str(e),
                    _words(experience["class_names"]),
                    str(experience["train_images"]),
                    str(experience["test_images"]),
                )
                for e, experience in enumerate(protocol["experiences"], start=1)
            ],
        ),
        "",
        "## Components",
        "",
        *_table(
            ["kind", "name", "provider", "version", "source"],
            [tuple(component.values()) for component in metrics["components"]],
        ),
        "",
        *_notes(metrics),
        "## Cost",
        "",
        *(f"- {name}: {markdown(_value(value))}" for name, value in _spaced(metrics["cost"])),
        f"- device: {markdown(_pairs(metrics['platform']))}",
        f"- versions: {markdown(_pairs(metrics['versions']))}",
        "",
    ]
    return "\n".join(lines)


def protocol_rules(protocol: Metrics) -> list[tuple[str, str]]:
    """Return the rules of the evaluation in words, name and value.

    Args:
        protocol: ``protocol`` of ``metrics.json``; what it lacks is called unknown.

    Example:
        >>> dict(protocol_rules({"task_label_at_test": False}))["task label at test"]
        'not used'
    """
    labelled: dict[Any, str] = {True: "used", False: "not used"}
    tested_on, images = protocol.get("tested_on"), protocol.get("test_images")
    manifest = protocol.get("manifest_sha256")
    return [
        ("images", f"sha256 {protocol.get('split_sha256') or 'unknown'} of names, sizes and split"),
        ("manifest", f"sha256 {manifest}, every image compared" if manifest else "none given"),
        ("tested on", f"{'unknown' if images is None else images} {tested_on or 'images'}"),
        ("precision", protocol.get("precision") or "unknown"),
        ("task label at test", labelled.get(protocol.get("task_label_at_test"), "unknown")),
        (
            "prediction of an image",
            _INDEPENDENCE.get(protocol.get("batch_independence"), _INDEPENDENCE["not stated"]),
        ),
    ]


def _notes(metrics: Metrics) -> list[str]:
    """Return the section with what plugins said after each experience, if they said anything."""
    notes = metrics.get("notes", [])
    lines = [
        f"- experience {t}: {markdown(line)}"
        for t, said in enumerate(notes, start=1)
        for line in said
    ]
    return ["## Notes", "", *lines, ""] if lines else []


def spread(size: int, most: int) -> list[int]:
    """Return the numbers from 0 up to ``size``, or ``most`` of them from first to last.

    Example:
        >>> spread(3, 5), spread(1000, 5)
        ([0, 1, 2], [0, 250, 500, 749, 999])
    """
    if size <= most:
        return list(range(size))
    return [round(i * (size - 1) / (most - 1)) for i in range(most)]


def matrix_figure(metrics: Metrics) -> Figure:
    """Draw the accuracy matrix as a heat map; grey where nothing was evaluated.

    Of more than 200 experiences 200 are drawn, evenly spread.
    """
    whole = metrics["accuracy_matrix"]
    size, drawn = len(whole), spread(len(whole), _DRAWN)
    matrix = _array([[row[i] for i in drawn] for row in (whole[t] for t in drawn)])
    side = min(10.0, 3.0 + 0.45 * size)
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(
        title=_title(metrics), xlabel="tested on experience", ylabel="trained up to experience"
    )
    axes.set_facecolor("0.92")
    extent = (0.5, size + 0.5, size + 0.5, 0.5)  # so that ticks count from 1
    image = axes.imshow(100 * matrix, vmin=0, vmax=100, cmap="viridis", extent=extent)
    figure.colorbar(image, label="accuracy (%)", shrink=0.85)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True, nbins=size if size <= _MOST else 10))
    if size <= _MOST:
        for (t, i), value in np.ndenumerate(100 * matrix):
            if np.isfinite(value):
                colour = "white" if value < 60 else "black"
                text = f"{value:.1f}" if size <= 10 else f"{value:.0f}"
                axes.text(i + 1, t + 1, text, ha="center", va="center", color=colour, fontsize=9)
    return figure


def curve_figure(metrics: Metrics) -> Figure:
    """Draw the accuracy on all test images seen so far after each experience."""
    curve = 100 * _array(metrics["accuracy"]["accuracy_curve"])
    total = metrics["experiences"]["total"]
    figure = Figure(figsize=(6, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(
        title=_title(metrics),
        xlabel="experiences trained",
        ylabel="accuracy on all seen (%)",
        xlim=(0.5, total + 0.5),
        ylim=(0, 103),
    )
    axes.grid(color="0.9")
    axes.plot(range(1, len(curve) + 1), curve, marker="o", markersize=4, clip_on=False)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=total if total <= _MOST else 10))
    if len(curve):
        axes.annotate(
            f"{curve[-1]:.1f}",
            (len(curve), curve[-1]),
            xytext=(0, -14 if curve[-1] > 50 else 8),
            textcoords="offset points",
            ha="center",
        )
    return figure


def _array(values: Sequence[Any]) -> np.ndarray:
    """Return (nested) fractions as an array, ``None`` as nan."""
    return np.array(values, dtype=float)


def _title(metrics: Metrics) -> str:
    count = metrics["experiences"]
    so_far = "" if metrics["complete"] else f", {count['finished']} of {count['total']} experiences"
    return f"{_name(metrics)}, seed {metrics['seed']}{so_far}"


def _name(metrics: Metrics) -> str:
    config = metrics["config"]
    return f"{config['strategy']['name']} on {config['benchmark']['name']}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a Markdown table."""
    return [markdown_row(line) for line in (head, ["---"] * len(head), *rows)]


def _words(values: Sequence[Any] | None) -> str:
    return "unknown" if values is None else ", ".join(map(str, values))


def _pairs(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {_value(value)}" for name, value in _spaced(values))


def _spaced(values: Mapping[str, Any]) -> list[tuple[str, Any]]:
    return [(name.replace("_", " "), value) for name, value in values.items() if value is not None]


def _value(value: Any) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "(" + ", ".join(map(_value, value)) + ")"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
