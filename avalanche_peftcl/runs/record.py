"""The folder of a run record: all that a run was and gave, rewritten as it goes; no torch."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from avalanche_peftcl.config.settings import dump_settings
from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.files import replace_file
from avalanche_peftcl.runs.matrix_file import MatrixFile
from avalanche_peftcl.runs.picture import record_picture
from avalanche_peftcl.runs.report import PICTURE, markdown_report
from avalanche_peftcl.runs.schema import RECORD, Record


@dataclass(frozen=True)
class RunRecord:
    """A run's folder and what is recorded there.

    Args:
        folder: Where the files are.
        record: Everything there is to know.
    """

    folder: Path
    record: Record

    @property
    def metrics(self) -> dict[str, Any]:
        """The record as plain values, as in ``metrics.json``, and ``accuracy_matrix``.

        Rows of the matrix are fractions, ``None`` where not evaluated.
        """
        rows = [list(row) for row in self.record.accuracy_matrix]
        return self.record.model_dump(mode="json") | {"accuracy_matrix": rows}

    def claim(self) -> None:
        """Write ``metrics.json`` alone: from then on the folder is this run's, as it lists it.

        Raises:
            ConfigError: If the folder cannot be written to.
        """
        self._replace({RECORD: metrics_json(self.record)})

    def write(self, matrix_file: MatrixFile | None = None) -> None:
        """Write every file, the picture once an experience is finished.

        Each file is replaced in one step, so that a stop leaves no half file, and to the accuracy
        matrix the rows that it lacks are added; ``metrics.json`` comes last, so that what it says
        is there.

        Args:
            matrix_file: What this run has written of the matrix; ``None`` writes all of it.

        Raises:
            ConfigError: If the folder cannot be written to.
        """
        record, finished = self.record, self.record.experiences.finished
        contents = {
            "config.yaml": dump_settings(record.config.model_dump(mode="json")),
            "summary.md": markdown_report(record),
        }
        if finished:
            contents[PICTURE] = record_picture(record)
        matrix_file = matrix_file or MatrixFile(self.folder, len(record.accuracy_matrix))
        with self._writing():
            matrix_file.write(record.accuracy_matrix, finished)
        self._replace(contents | {RECORD: metrics_json(record)})

    def _replace(self, contents: Mapping[str, str]) -> None:
        with self._writing():
            for name, content in contents.items():
                replace_file(self.folder / name, content.encode())

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            yield
        except OSError as error:
            raise ConfigError(f"cannot write the run record to {self.folder}: {error}") from error


def metrics_json(record: Record) -> str:
    """Return the content of ``metrics.json``: a line a key, without the accuracy matrix."""
    kept = record.model_dump(mode="json")
    lines = [f"{json.dumps(k)}: {json.dumps(v, allow_nan=False)}" for k, v in kept.items()]
    return "{\n" + ",\n".join(lines) + "\n}\n"
