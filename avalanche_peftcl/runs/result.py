"""What Python gets of a run: its numbers by name, its accuracy matrix, its picture; no torch."""

from pathlib import Path
from typing import Any

import numpy as np

from avalanche_peftcl.errors import RecordError
from avalanche_peftcl.runs.names import experience_names
from avalanche_peftcl.runs.picture import record_picture
from avalanche_peftcl.runs.reading import read_record
from avalanche_peftcl.runs.record import RunRecord
from avalanche_peftcl.runs.report import headlines, title
from avalanche_peftcl.runs.shown import (
    NamedMatrix,
    Picture,
    html_parts,
    html_table,
    import_pandas,
)
from avalanche_peftcl.runs.tables import Sheet


class RunResult(RunRecord):
    """What a run gave, complete or not; accuracies and forgetting are fractions.

    Args:
        folder: Where its files are.
        record: Everything that was recorded, see :class:`.Record`.
    """

    @property
    def names(self) -> tuple[str, ...]:
        """What the experiences are called: by domain or classes, else by number from 1."""
        return tuple(experience_names(self.record.protocol))

    @property
    def accuracy_matrix(self) -> NamedMatrix:
        """Accuracy on each experience (column) after training up to each (row)."""
        rows = [[np.nan if v is None else v for v in row] for row in self.record.accuracy_matrix]
        size = len(self.names)
        return NamedMatrix(np.array(rows, dtype=np.float64).reshape(-1, size), self.names)

    @property
    def average_accuracy(self) -> float | None:
        """Mean over the experiences of the accuracy on all test images seen so far."""
        return self.record.accuracy.average_incremental_accuracy

    @property
    def last_accuracy(self) -> float | None:
        """Accuracy on all test images seen after the last experience."""
        return self.record.accuracy.last_accuracy

    @property
    def forgetting(self) -> float | None:
        """Mean drop of the earlier experiences from their best accuracy; ``None`` of one alone."""
        return self.record.accuracy.forgetting

    def to_pandas(self) -> Any:
        """Return a ``pandas.DataFrame`` with a row a finished experience.

        Columns: ``classes``, ``train_images``, ``test_images``, ``accuracy_on_seen``,
        ``training_passes`` and ``training_seconds`` when it was finished, ``last_accuracy`` on it
        so far, and its ``forgetting`` (nan of the last).

        Raises:
            ConfigError: If pandas is not installed.
        """
        pandas, record = import_pandas(), self.record
        accuracy, done = record.accuracy, record.experiences.finished
        parts = record.protocol.experiences[:done]

        def column(values: Any) -> list[Any]:
            return [*values, *[None] * done][:done]

        return pandas.DataFrame(
            {
                "classes": [", ".join(part.class_names) for part in parts],
                "train_images": [part.train_images for part in parts],
                "test_images": [part.test_images for part in parts],
                "accuracy_on_seen": column(accuracy.accuracy_curve),
                "training_passes": column(record.cost.training_passes),
                "training_seconds": column(record.cost.training_seconds),
                "last_accuracy": column(accuracy.per_task),
                "forgetting": column(accuracy.forgetting_by_experience),
            },
            index=pandas.Index(self.names[:done], name="experience"),
        )

    def plot(self) -> Picture:
        """Return the picture of the accuracy matrix."""
        return Picture(record_picture(self.record))

    def __repr__(self) -> str:
        numbers = ", ".join(f"{name} {value}" for name, value in headlines(self.record))
        return f"<{title(self.record)}: {numbers}; {self.folder}>"

    def _repr_html_(self) -> str:
        numbers = Sheet("", ("number", "value"), tuple(headlines(self.record)))
        drawn = [self.plot().svg] if self.record.experiences.finished else []
        return html_parts(title(self.record), [html_table(numbers), *drawn])


def load_run(folder: str | Path) -> RunResult:
    """Read the run in a folder, complete or not.

    Args:
        folder: The run's output folder.

    Raises:
        RecordError: If there is no run, or its record cannot be read.

    Example:
        >>> load_run("no/such")
        Traceback (most recent call last):
        avalanche_peftcl.errors.RecordError: no/such: metrics.json ...
    """
    folder = Path(folder).expanduser()
    try:
        return RunResult(folder, read_record(folder))
    except RecordError as error:
        raise RecordError(f"{folder}: {error}") from error
