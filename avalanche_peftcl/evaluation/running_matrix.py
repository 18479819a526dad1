"""An accuracy matrix that is filled entry by entry; what follows from it is kept up to date."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from avalanche_peftcl.functional.matrix_vectors import MatrixVectors, fold_row, seen_accuracy


class RunningMatrix:
    """An accuracy matrix, its test images and its baseline, while a run goes on.

    An entry costs the same however large the matrix is, and the numbers of one more row cost
    ``O(T)``. Rows may be filled in any order and again; then more is computed anew.

    Attributes:
        counts: Test images of each experience, ``(T,)``, int64; 0 where there are none.
        baseline: Accuracies before any training, ``(T,)``, float64; ``nan`` where not evaluated.
        recorded: One more than the last row with an entry.
        trained: ``K``, one more than the last row with an entry on or before the diagonal.

    Example:
        >>> running = RunningMatrix()
        >>> running.record(0, 0, correct=9, total=10)
        >>> running.record(1, 0, correct=5, total=10)
        >>> running.record(1, 1, correct=8, total=10)
        >>> running.curve(), round(running.vectors().forgetting(), 4)
        ([0.9, 0.65], 0.4)
    """

    def __init__(self) -> None:
        self._room = torch.empty(0, 0, dtype=torch.float64)  # larger than the matrix, or as large
        self.counts = torch.empty(0, dtype=torch.int64)
        self.baseline = torch.empty(0, dtype=torch.float64)
        self.recorded = self.trained = 0
        self._curve: list[float] = []
        self._best = torch.empty(0, dtype=torch.float64)
        self._folded = 0  # rows that the best of each column is of

    def __len__(self) -> int:
        return len(self.counts)

    @property
    def matrix(self) -> Tensor:
        """The matrix, ``(T, T)``, float64, fractions; ``nan`` where not evaluated."""
        return self._room[: len(self), : len(self)]

    def grow(self, size: int) -> None:
        """Make the matrix at least ``(size, size)``."""
        more = size - len(self)
        if more <= 0:
            return
        if size > len(self._room):  # a stream of unknown length makes room for as much again
            room = max(size, 2 * len(self)) - len(self._room)
            self._room = pad(self._room, (0, room, 0, room), value=math.nan)
        self.baseline = pad(self.baseline, (0, more), value=math.nan)
        self.counts = pad(self.counts, (0, more))
        self._best = pad(self._best, (0, more), value=-math.inf)

    def count(self, column: int, total: int) -> None:
        """Say how many images a test experience has."""
        if int(self.counts[column]) != total:
            self.counts[column] = total
            del self._curve[column:]

    def record(self, row: int | None, column: int, *, correct: int, total: int) -> None:
        """Enter the result on one test experience; ``row`` is ``None`` before any training."""
        self.grow(max(column, -1 if row is None else row) + 1)
        self.count(column, total)
        accuracy = correct / total if total else math.nan
        if row is None:
            self.baseline[column] = accuracy
            return
        self._room[row, column] = accuracy
        self.recorded = max(self.recorded, row + 1)
        self._changed(row)
        if column > row:
            return
        if total:
            self.trained = max(self.trained, row + 1)
        elif row + 1 == self.trained:
            self._count_trained()

    def fill(self, first: int, rows: Tensor) -> None:
        """Enter rows as they were.

        Args:
            first: Number of the first of them.
            rows: ``(N, T)``, fractions.
        """
        self.grow(max(first + len(rows), rows.shape[1]))
        self._room[first : first + len(rows), : rows.shape[1]] = rows
        self.recorded = max(self.recorded, first + len(rows))
        self._changed(first)
        self._count_trained()

    def curve(self) -> list[float]:
        """Return the accuracy on all images seen so far after each row, ``nan`` if missing."""
        for t in range(len(self._curve), self.trained):
            self._curve.append(seen_accuracy(self._room[t, : t + 1], self.counts[: t + 1]))
        return list(self._curve)

    def vectors(self) -> MatrixVectors:
        """Return the vectors from which the other numbers follow."""
        seen = self._room[: self.trained, : self.trained]
        last = max(self.trained - 1, 0)
        for t in range(self._folded, last):
            fold_row(self._best, seen[t], t)
        self._folded = last
        return MatrixVectors(
            seen[-1:].flatten(), seen.diagonal(), seen.diagonal(1), self._best[:last].clone()
        )

    def _changed(self, row: int) -> None:
        del self._curve[row:]
        if row < self._folded:
            self._folded = 0
            self._best.fill_(-math.inf)

    def _count_trained(self) -> None:
        rows = self.matrix.isnan().logical_not().tril().any(1).nonzero()
        self.trained = int(rows[-1]) + 1 if len(rows) else 0
        del self._curve[self.trained :]
        if self._folded > max(self.trained - 1, 0):
            self._folded = 0
            self._best.fill_(-math.inf)


class MatrixRows(Sequence[list[float | None]]):
    """A matrix as rows of fractions, ``None`` for nan; a row is made when it is asked for.

    Args:
        matrix: ``(T, T)``.

    Example:
        >>> rows = MatrixRows(torch.tensor([[0.5, torch.nan], [0.25, 1.0]]))
        >>> rows[0], len(rows), rows == [[0.5, None], [0.25, 1.0]]
        ([0.5, None], 2, True)
    """

    def __init__(self, matrix: Tensor) -> None:
        self._matrix = matrix

    def __len__(self) -> int:
        return len(self._matrix)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        row: list[float] = self._matrix[index].tolist()
        return [None if math.isnan(value) else value for value in row]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]  # compares by what is in it, as a list does
