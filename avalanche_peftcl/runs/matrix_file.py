"""The accuracy matrix on disk: a CSV that grows by a line an experience.

The matrix of ``T`` experiences has ``T * T`` entries; to write all of them again after each would
take ``T`` times as long as to write the new ones. ``metrics.json``, which is written after it, says
how many lines count: what a process left behind them when it was killed is cut off by the next.
"""

import csv
import hashlib
import io
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from avalanche_peftcl.files import append_to_file, replace_file

MATRIX_FILE = "accuracy_matrix.csv"
Row = Sequence[float | None]


class MatrixFile:
    """The file of a run while it is written.

    Args:
        folder: The run's folder.
        size: ``T``, experiences of the run.

    Attributes:
        rows: How many are in the file; 0 until it is written by this process.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = MatrixFile(Path(folder), 2)
        ...     file.write([[0.5, None]], 1)
        ...     file.write([[0.5, None], [0.25, 1.0]], 2)
        ...     print((Path(folder) / MATRIX_FILE).read_text(), end="")
        ...     read_matrix(Path(folder), 2)
        trained_up_to,tested_on_1,tested_on_2
        1,0.5,
        2,0.25,1.0
        [[0.5, None], [0.25, 1.0]]
    """

    def __init__(self, folder: Path, size: int) -> None:
        self._path, self._size = folder / MATRIX_FILE, size
        self._hash = hashlib.sha256()
        self._end = 0  # bytes of what was written
        self.rows = 0

    @property
    def sha256(self) -> str:
        """Hash of the file as far as it is written."""
        return self._hash.hexdigest()

    def write(self, matrix: Sequence[Row], finished: int) -> None:
        """Write the rows that are not in the file yet; the first time, the whole file.

        Args:
            matrix: At least the first ``finished`` rows, ``None`` where not evaluated.
            finished: How many shall be in the file.

        Raises:
            OSError: If it cannot be written; the rows that were in it are.
        """
        if self._end:
            new = _lines(matrix, self.rows, finished)
            if not new:
                return
            with suppress(OSError):  # it is gone, or no longer ours: then it is written anew
                append_to_file(self._path, new, at=self._end)
                self._note(new, finished)
                return
        names = ["trained_up_to", *(f"tested_on_{i + 1}" for i in range(self._size))]
        whole = ",".join(names).encode() + b"\n" + _lines(matrix, 0, finished)
        replace_file(self._path, whole, durable=True)
        self._hash, self._end = hashlib.sha256(), 0
        self._note(whole, finished)

    def _note(self, content: bytes, rows: int) -> None:
        self._hash.update(content)
        self._end += len(content)
        self.rows = rows


def read_matrix(folder: Path, count: int, *, sha256: str | None = None) -> list[list[float | None]]:
    """Read the first rows of the accuracy matrix in a run's folder.

    Args:
        folder: The run's folder.
        count: How many rows; more may be in the file.
        sha256: What header and rows must have as hash.

    Returns:
        Rows of fractions, one value a column, ``None`` where not evaluated.

    Raises:
        OSError: If the file cannot be read.
        ValueError: If it has fewer rows, or is not what was written.
    """
    with (folder / MATRIX_FILE).open("rb") as file:
        lines = [line for _, line in zip(range(count + 1), file, strict=False)]
    if len(lines) <= count or not all(line.endswith(b"\n") for line in lines):
        raise ValueError(f"{MATRIX_FILE} has fewer than {count} rows, it was cut off")
    if sha256 is not None and hashlib.sha256(b"".join(lines)).hexdigest() != sha256:
        raise ValueError(f"{MATRIX_FILE} is not what was written, it has been changed since")
    try:
        table = list(csv.reader(line.decode() for line in lines))
    except csv.Error as error:
        raise ValueError(f"{MATRIX_FILE} is no CSV: {error}") from error
    if len(table) != count + 1 or table[0][:1] != ["trained_up_to"]:
        raise ValueError(f"{MATRIX_FILE} is none of an accuracy matrix")
    size = len(table[0]) - 1
    for t, row in enumerate(table[1:], start=1):
        if len(row) != size + 1 or row[0] != str(t):
            raise ValueError(f"row {t} of {MATRIX_FILE} is none of {size} experiences")
    return [[float(cell) if cell else None for cell in row[1:]] for row in table[1:]]


def _lines(matrix: Sequence[Row], first: int, end: int) -> bytes:
    text = io.StringIO()
    rows: Iterable[int] = range(first, end)
    csv.writer(text, lineterminator="\n").writerows([t + 1, *matrix[t]] for t in rows)
    return text.getvalue().encode()
