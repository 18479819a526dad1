"""What the runs of a sweep are seen doing: lines of their logs, and a bar each on a terminal."""

from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from avalanche_peftcl.runs.bar_file import Bar
from avalanche_peftcl.runs.progress import BAR_WIDTH, EXPERIENCE_LINES


class Tail:
    """Reads the lines of finished experiences that a log gets.

    Args:
        log: The file, which may not be there yet.
        begun: Bytes of it that are of earlier attempts.
    """

    def __init__(self, log: Path, begun: int = 0) -> None:
        self._log, self._read, self._rest = log, begun, b""

    def lines(self) -> list[str]:
        """Return those that were written since the last call, whole lines only."""
        try:
            with self._log.open("rb") as file:
                file.seek(self._read)
                new = file.read()
        except OSError:
            return []
        self._read += len(new)
        *whole, self._rest = (self._rest + new).split(b"\n")
        told = (line.decode(errors="replace").rstrip() for line in whole)
        return [line for line in told if line.startswith(EXPERIENCE_LINES)]


class TaskBars:
    """A bar for each task that runs, on a terminal; elsewhere nothing.

    Args:
        console: Where to.
    """

    def __init__(self, console: Console) -> None:
        self._bars: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        if console.is_terminal and not console.quiet:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(bar_width=BAR_WIDTH),
                TextColumn("{task.fields[pace]}"),
            )
            self._bars = Progress(*columns, console=console, transient=True)

    @property
    def wanted(self) -> bool:
        """Whether there are any."""
        return self._bars is not None

    def __enter__(self) -> "TaskBars":
        if self._bars is not None:
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

    def begin(self, name: str) -> None:
        """Show the bar of a task."""
        if self._bars is not None:
            self._tasks[name] = self._bars.add_task(f"{name} starts", total=None, pace="")

    def show(self, name: str, bar: Bar) -> None:
        """Show how far a task is."""
        if self._bars is not None and name in self._tasks:
            what = bar.description.removeprefix("experience ")  # 80 letters are few
            self._bars.update(
                self._tasks[name],
                description=f"{name} {what}".rstrip(),
                completed=bar.completed,
                total=bar.total,
                pace=bar.pace,
            )

    def end(self, name: str) -> None:
        """Take the bar of a task away."""
        if self._bars is not None and name in self._tasks:
            self._bars.remove_task(self._tasks.pop(name))
