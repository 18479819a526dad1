"""The bar of a run whose terminal is that of another process: a file that the other one reads."""

import json
import os
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Protocol

from rich.progress import TaskID

BAR = "AVALANCHE_PEFTCL_BAR"  # environment variable: the file
_SELDOM = 0.5  # seconds between two writings


class Bars(Protocol):
    """What a run asks of its bar; rich's ``Progress`` is one."""

    def start(self) -> None:
        """Begin to show."""

    def stop(self) -> None:
        """Show nothing any more."""

    def add_task(self, description: str, *, total: float | None, pace: str) -> TaskID:
        """Show a bar."""

    def update(
        self,
        task_id: TaskID,
        *,
        total: float | None = None,
        description: str | None = None,
        pace: str = "",
    ) -> None:
        """Change what stands beside it; ``None`` stays as it is."""

    def advance(self, task_id: TaskID) -> None:
        """Count a step."""

    def remove_task(self, task_id: TaskID) -> None:
        """Take it away."""


@dataclass(frozen=True)
class Bar:
    """A bar at one moment.

    Args:
        description: What stands before it.
        pace: What stands behind it.
        completed: Steps that are done.
        total: All of them; ``None`` if nobody knows.
    """

    description: str = ""
    pace: str = ""
    completed: int = 0
    total: float | None = None


class BarFile:
    """Writes a bar to a file, twice a second at most, and nothing where it cannot.

    Args:
        path: The file.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     bars = BarFile(Path(folder) / "bar")
        ...     task = bars.add_task("experience 1/2", total=4, pace="")
        ...     read_bar(Path(folder) / "bar")
        Bar(description='experience 1/2', pace='', completed=0, total=4)
    """

    def __init__(self, path: Path) -> None:
        self._path, self._bar, self._written = path, Bar(), -_SELDOM

    def start(self) -> None:
        """Do nothing."""

    def stop(self) -> None:
        """Do nothing."""

    def add_task(self, description: str, *, total: float | None, pace: str) -> TaskID:
        """Begin the bar anew."""
        self._write(Bar(description, pace, total=total), at_once=True)
        return TaskID(0)

    def update(
        self,
        task_id: TaskID,
        *,
        total: float | None = None,
        description: str | None = None,
        pace: str = "",
    ) -> None:
        """Change what stands beside it; ``None`` stays as it is."""
        old = self._bar
        total = old.total if total is None else total
        description = old.description if description is None else description
        self._write(replace(old, total=total, description=description, pace=pace))

    def advance(self, task_id: TaskID) -> None:
        """Count a step."""
        self._write(replace(self._bar, completed=self._bar.completed + 1))

    def remove_task(self, task_id: TaskID) -> None:
        """Say that there is none."""
        self._write(Bar(), at_once=True)

    def _write(self, bar: Bar, *, at_once: bool = False) -> None:
        self._bar = bar
        if not at_once and time.monotonic() - self._written < _SELDOM:
            return
        self._written = time.monotonic()
        new = self._path.with_suffix(".new")
        with suppress(OSError):  # nobody may be looking any more
            new.write_text(json.dumps(asdict(bar)), encoding="utf-8")
            os.replace(new, self._path)


def read_bar(path: Path) -> Bar | None:
    """Return the bar in a file; ``None`` if there is no file, or none of a bar."""
    try:
        return Bar(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
