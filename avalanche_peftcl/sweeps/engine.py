"""Tasks from their start to their end, shown on a console; what sweeps and searches share."""

from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from avalanche_peftcl.console import plain
from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.models.device import check_device
from avalanche_peftcl.runs.schema import Record
from avalanche_peftcl.runs.signals import how_to_stop, termination_raised
from avalanche_peftcl.sweeps.earlier import read_earlier
from avalanche_peftcl.sweeps.processes import Event, Task, run_processes
from avalanche_peftcl.sweeps.watch import TaskBars


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one run.

    Args:
        seed: Its seed.
        folder: Its folder.
        record: Its record; ``None`` if the run failed.
        error: Why it failed.
    """

    seed: int
    folder: Path
    record: Record | None = None
    error: str | None = None


def outcomes(
    tasks: Sequence[Task], *, jobs: int, ray: str | None, console: Console, lines: bool = True
) -> Generator[tuple[Task, Outcome], None, None]:
    """Run tasks; show starts, bars and what experiences gave.

    Args:
        tasks: The runs, started in this order.
        jobs: Processes at a time on this machine.
        ray: Run on Ray instead, see :func:`.run_sweep`.
        console: Where to.
        lines: Whether starts and lines of experiences are shown too, not bars alone.

    Yields:
        Each task that has ended, and what became of it.

    Raises:
        ConfigError: If a device is not there, or Ray cannot be reached.
        KeyboardInterrupt: After an interrupt, or a request to terminate, has stopped the runs.
    """
    if tasks and (how := how_to_stop()):
        say(console, how)
    bars = TaskBars(console)
    with (
        termination_raised(),
        closing(_events(tasks, jobs, ray, bars=bars.wanted)) as events,
        bars,
    ):
        for event in events:
            task = event.task
            if event.bar is not None:
                bars.show(task.name, event.bar)
            elif event.line is not None:
                if lines:
                    say(console, f"{task.name}: {event.line}")
            elif event.started:
                if lines:
                    say(console, f"{task.name}: started, {task.config.output}")
                bars.begin(task.name)
            else:
                bars.end(task.name)
                yield task, _outcome(event)


def say(console: Console, text: str) -> None:
    """Write a line of text as it is."""
    console.print(plain(text, lines=True), soft_wrap=True)


def _events(
    tasks: Sequence[Task], jobs: int, ray: str | None, *, bars: bool
) -> Generator[Event, None, None]:
    if ray is None:
        for device in {task.config.device for task in tasks}:
            check_device(device)
        return run_processes(tasks, jobs=jobs, bars=bars)
    from avalanche_peftcl.sweeps.ray import run_on_ray

    return run_on_ray(tasks, address=ray)


def _outcome(event: Event) -> Outcome:
    """Return what became of a run that ended; its record has the last word."""
    config, error, record = event.task.config, event.error, None
    if error is None:
        try:
            record = read_earlier(config.output)
        except ConfigError as unreadable:
            error = str(unreadable)
        if error is None and (record is None or not record.ended):
            error = f"it ended without a complete record in {config.output}"
    return Outcome(config.seed, config.output, None if error else record, error)
