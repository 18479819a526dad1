"""What ``peftcl evaluate`` does, and what it shows: tables that a narrow terminal holds."""

from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from avalanche_peftcl.console import add_row, complain, plain, plain_table, print_json
from avalanche_peftcl.export.evaluate import Evaluation, evaluate
from avalanche_peftcl.export.load import load
from avalanche_peftcl.models.device import check_device
from avalanche_peftcl.registry.wording import clip

_WIDTH = 80
_NAME = 24  # letters of a class's name before its row


def evaluate_and_show(
    export: Path,
    folder: Path,
    *,
    as_json: bool,
    task: int | None,
    device: str,
    checkpoint: Path | None,
    pretrained: bool,
    console: Console,
) -> int:
    """Evaluate a network on images in folders that are called like classes, and show it.

    Args:
        export: A file of an export, or a run's folder.
        folder: The images.
        as_json: Write JSON in the place of tables.
        task: Task label, for a network that needs one.
        device: Where to compute.
        checkpoint: The frozen network's weights, where they are not in the file.
        pretrained: Whether they may be downloaded.
        console: Where to; images that cannot be read are told on standard error.

    Returns:
        How many images could not be read.

    Raises:
        PEFTCLError: As :func:`.load` and :func:`.evaluate`.
    """
    where = check_device(device)
    model = load(export, checkpoint=checkpoint, pretrained=pretrained).to(where)
    told = evaluate(model, folder, task=task)
    for reason in told.unreadable:
        complain("unreadable", reason, "red")
    if told.untrained:
        names = ", ".join(told.untrained[:5]) + (", ..." if len(told.untrained) > 5 else "")
        complain("warning", f"the network was never trained on {names}", "yellow")
    if as_json:
        print_json(console, told.to_json())
    elif told.images:
        console.print(confusion_table(told), width=_WIDTH)
        if len(told.domains) > 1:
            console.print(domain_table(told), width=_WIDTH)
        share = f"accuracy {100 * (told.accuracy or 0.0):.1f} %"
        console.print(plain(f"{share}, {told.right} of {told.images} images"))
    return len(told.unreadable)


def confusion_table(told: Evaluation) -> Table:
    """Return the confusion matrix, or of many classes a line each, at most 80 columns wide."""
    names = [clip(name, _NAME) for name in told.class_names]
    number = len(str(len(names)))
    cell = max(number, len(str(told.confusion.max(initial=0))))
    width = number + 2 + max(map(len, names), default=0) + len(names) * (cell + 2) + 10
    return _matrix(told, names) if width <= _WIDTH else _lines(told)


def domain_table(told: Evaluation) -> Table:
    """Return a line a domain: its images, and how many are right."""
    table = Table(box=box.SIMPLE, padding=(0, 1))
    table.add_column("domain", overflow="fold")
    for column in ("images", "right"):
        table.add_column(column, justify="right", no_wrap=True)
    for each in told.domains:
        add_row(table, each.name or "none", str(each.images), f"{100 * each.accuracy:.1f} %")
    return table


def _matrix(told: Evaluation, names: list[str]) -> Table:
    """Return images by class (row) and by what they were taken for (column, by number)."""
    table = Table(box=box.SIMPLE, padding=(0, 1))
    table.add_column("class \\ taken for", overflow="fold")
    for number in range(1, 1 + len(names)):
        table.add_column(str(number), justify="right", no_wrap=True)
    table.add_column("right", justify="right", no_wrap=True)
    for i, name in enumerate(names):
        counts = [str(count) if count else "." for count in told.confusion[i].tolist()]
        add_row(table, f"{i + 1} {name}", *counts, _percent(told.class_accuracy[i]))
    return table


def _lines(told: Evaluation) -> Table:
    """Return a line a class: its images, how many are right, what the others were taken for."""
    table = plain_table("class", "images", "right", "most often taken for")
    table.box = box.SIMPLE
    for i, name in enumerate(told.class_names):
        mistakes = ", ".join(f"{clip(other, _NAME)} {n}" for other, n in told.mistakes(i))
        images = str(int(told.confusion[i].sum()))
        add_row(table, name, images, _percent(told.class_accuracy[i]), mistakes)
    return table


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.0f} %"
