"""What a run shows while it runs: a bar on a terminal, and one line per finished experience."""

import math
import os
import re
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from avalanche.logging import BaseLogger
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from avalanche_peftcl.console import plain
from avalanche_peftcl.registry.offers import ExperienceOffers
from avalanche_peftcl.runs.bar_file import BAR, BarFile, Bars
from avalanche_peftcl.runs.names import domain_names
from avalanche_peftcl.runs.pace import Pace
from avalanche_peftcl.runs.schema import Record
from avalanche_peftcl.training.plugins.budget import used_share

_REFRESH = 0.2  # seconds between two readings of the loss, each of which waits for the device
BAR_WIDTH = 6  # letters of the bar, so that 80 hold all that stands beside it
EXPERIENCE_LINES = ("experience ", "all experiences ")  # how those of finished ones begin
_MOST = 12  # names and numbers that one line lists


class RunProgress(BaseLogger):
    """An Avalanche logger that shows a run on ``console``.

    Args:
        console: Where to; ``None`` shows nothing. Bars are drawn on a terminal only; elsewhere
            there are plain lines without control characters.

    Example:
        >>> with RunProgress(Console(width=80)) as progress:
        ...     progress.say("ntk_cl on digits")
        ...     progress.begin(0, 5)
        ...     progress.end(1, 5, classes=["3", "7"], seconds=12.34, seen=0.931, row=[0.9, 0.96])
        ntk_cl on digits
        experience 1/5  classes 3, 7  trained 12.3 s  accuracy on seen 93.1 %  [90.0 96.0]
    """

    def __init__(self, console: Console | None = None) -> None:
        super().__init__()
        self.console = Console(quiet=True) if console is None else console
        self._bars: Bars | None = None
        self._bar: TaskID | None = None
        self._loss_read = 0.0
        self._experience, self._later, self._tests = "", 0, (0, 0)
        self._pace = Pace()
        self._done, self._steps = 0, None
        self._said_trainable = False

    def __enter__(self) -> "RunProgress":
        if (file := os.environ.get(BAR)) and not self.console.quiet:
            self._bars = BarFile(Path(file))  # a sweep shows it
        elif self.console.is_terminal and not self.console.quiet:
            self._bars = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=BAR_WIDTH),
                TextColumn("{task.fields[pace]}"),
                console=self.console,
                transient=True,
            )
            self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bars is not None:
            self._bars.stop()
        self._bars = self._bar = None

    def say(self, text: str) -> None:
        """Print one plain line."""
        self.console.print(plain(text), soft_wrap=True)

    def begin(
        self, index: int, total: int, *, later: int = 0, tests: tuple[int, int] = (0, 0)
    ) -> None:
        """Start the bar of an experience.

        Args:
            index: Its number, counted from 0.
            total: Experiences of the run.
            later: Training images of all experiences behind it.
            tests: Images that are evaluated when it has ended, and when all behind it have.
        """
        self._experience, self._later = f"experience {index + 1}/{total}", later
        self._tests = tests
        if self._bars is not None:
            self._bar = self._bars.add_task(self._experience, total=None, pace="")

    def end(
        self,
        finished: int,
        total: int,
        *,
        classes: Sequence[str],
        seconds: float,
        seen: float | None,
        row: Sequence[float | None],
        notes: Sequence[str] = (),
        name: str = "",
        together: bool = False,
    ) -> None:
        """Replace the bar by the line of a finished experience.

        Args:
            finished: Experiences finished, this one included.
            total: Experiences of the run.
            classes: Names of the experience's classes.
            seconds: Time of the training.
            seen: Accuracy over all test images seen so far, a fraction.
            row: Accuracy on each test experience seen so far, fractions.
            notes: Further lines.
            name: Of the experience, where it has one: then its classes are not listed.
            together: Whether all experiences were trained on at once.
        """
        if self._bars is not None and self._bar is not None:
            self._bars.remove_task(self._bar)
            self._bar = None
        called = f"{'classes' if len(classes) > 1 else 'class'} {_listed(classes)}"
        what = "all experiences" if together else f"experience {finished}/{total}"
        each = f"  [{' '.join(map(_percent, row))}]" if len(row) <= _MOST else ""
        self.say(
            f"{what}  {name or called}  trained {seconds:.1f} s"
            f"  accuracy on seen {_percent(seen)} %{each}"
        )
        for note in notes:
            self.say(f"  {note}")

    def tell(self, record: Record) -> None:
        """Show the experience that was finished last, see :meth:`end`."""
        finished = record.experiences.finished
        domains = [] if record.joint else domain_names(record.protocol)
        trained = record.protocol.experiences[0 if record.joint else finished - 1 : finished]
        self.end(
            finished,
            record.experiences.total,
            classes=list(dict.fromkeys(name for each in trained for name in each.class_names)),
            name=domains[finished - 1] if domains else "",
            together=record.joint,
            seconds=record.cost.training_seconds[-1],
            seen=record.accuracy.accuracy_curve[-1],
            row=record.accuracy_matrix[finished - 1][:finished],
            notes=record.notes[-1],
        )

    def before_training_exp(self, strategy: Any, *args: Any) -> None:
        """Say what trains, now that the model is adapted; give the bar its length."""
        if not self._said_trainable:
            self._say_trainable(strategy.model)
        if self._bars is not None and self._bar is not None:
            steps = strategy.train_epochs * len(strategy.dataloader)
            # an online stream comes in chunks, and nobody says how many follow
            online = ExperienceOffers.of(strategy.experience).is_last_subexp is not None
            self._bars.update(self._bar, total=None if online else steps)
            self._done, self._steps = 0, None if online else steps
            later = strategy.train_epochs * math.ceil(self._later / strategy.train_mb_size)
            self._pace.begin(here=None if online else steps, later=later, tests=self._tests)

    def after_training_iteration(self, strategy: Any, *args: Any) -> None:
        """Advance the bar; read the loss a few times a second only."""
        if self._bars is None or self._bar is None:
            return
        self._bars.advance(self._bar)
        self._pace.count(len(strategy.mb_x))
        self._done += 1
        if time.monotonic() - self._loss_read > _REFRESH:
            groups = [] if strategy.optimizer is None else strategy.optimizer.param_groups
            epoch = min(strategy.clock.train_exp_epochs + 1, strategy.train_epochs)
            here = self._steps
            if here is not None and (used := used_share(strategy)):
                here = min(here, math.ceil(self._done / min(1.0, used)))
                self._pace.expect(here)
            self._bars.update(
                self._bar,
                total=here,
                description=f"{self._experience} epoch {epoch}/{strategy.train_epochs}",
                pace=self._pace.text(
                    loss=float(strategy.loss.detach()), lr=groups[0]["lr"] if groups else None
                ),
            )
            self._loss_read = time.monotonic()

    def before_eval_exp(self, strategy: Any, *args: Any) -> None:
        """Say which test experience is evaluated."""
        if self._bars is not None and self._bar is not None:
            number = strategy.experience.current_experience + 1
            self._bars.update(
                self._bar, description=self._experience, pace=f"evaluating on {number}"
            )

    def _say_trainable(self, model: Any) -> None:
        self._said_trainable = True
        total = sum(p.numel() for p in model.parameters())
        trainable = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        train = sum(p.numel() for _, p in trainable)
        self.say(f"trains {train:,} of {total:,} parameters:" if train else "nothing trains")
        for pattern, shapes in group_parameters(
            [(n, tuple(p.shape)) for n, p in trainable]
        ).items():
            self.say(f"  {pattern}  {_listed(shapes)}")


def group_parameters(parameters: Sequence[tuple[str, tuple[int, ...]]]) -> dict[str, list[str]]:
    """Put parameters that differ in a number only under one pattern.

    Args:
        parameters: Names and shapes.

    Returns:
        Patterns with ``*`` for numbers, and the shapes there are, with how often each.

    Example:
        >>> group_parameters([("blocks.0.up", (4, 8)), ("blocks.1.up", (4, 8)), ("b_0_w1", ())])
        {'blocks.*.up': ['2 of 4x8'], 'b_*_w1': ['1 of scalar']}
    """
    groups: dict[str, dict[str, int]] = {}
    for name, shape in parameters:
        pattern = re.sub(r"(?<![a-zA-Z0-9])\d+(?![a-zA-Z0-9])", "*", name)
        shapes = groups.setdefault(pattern, {})
        text = "x".join(map(str, shape)) or "scalar"
        shapes[text] = shapes.get(text, 0) + 1
    return {
        pattern: [f"{n} of {shape}" for shape, n in shapes.items()]
        for pattern, shapes in groups.items()
    }


def _percent(accuracy: float | None) -> str:
    return "-" if accuracy is None else f"{100 * accuracy:.1f}"


def _listed(words: Sequence[str]) -> str:
    if len(words) <= _MOST:
        return ", ".join(words)
    return f"{', '.join(words[:_MOST])}, ... ({len(words)} in all)"
