"""The few vectors of an accuracy matrix from which all its numbers follow, row by row.

A matrix of ``T`` experiences has ``T * T`` entries; who follows a run needs its last row, its
diagonal, the entries above that, the best of each column before the last row, and the accuracy
curve. Each of them changes with a row at a cost of ``O(T)``.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class MatrixVectors:
    """Vectors of an accuracy matrix of which ``K`` rows are trained, float64, ``nan`` if missing.

    Args:
        final: Last row, ``R[K - 1, i]``, ``(K,)``.
        diagonal: ``R[i, i]``, ``(K,)``.
        above: ``R[i - 1, i]``, ``(K - 1,)``.
        best: Maximum of ``R[t, i]`` over ``i <= t <= K - 2``, ``(K - 1,)``.

    Example:
        >>> R = torch.tensor([[0.8, torch.nan], [0.6, 0.9]])
        >>> vectors = matrix_vectors(R)
        >>> round(vectors.forgetting(), 4), round(vectors.learning_accuracy(), 4)
        (0.2, 0.85)
    """

    final: Tensor
    diagonal: Tensor
    above: Tensor
    best: Tensor

    def average_accuracy(self) -> float:
        """Return the mean of the final row."""
        return mean(self.final)

    def drops(self) -> Tensor:
        """Return the drop of each experience but the last from its best, ``(K - 1,)``."""
        return self.best - self.final[:-1]

    def forgetting(self) -> float:
        """Return the mean drop from the best earlier accuracy."""
        return mean(self.drops())

    def clipped_forgetting(self) -> float:
        """Return the mean drop from the diagonal, gains counted as zero."""
        return mean((self.diagonal - self.final)[:-1].clamp(min=0))

    def backward_transfer(self) -> float:
        """Return the mean change since the diagonal."""
        return mean((self.final - self.diagonal)[:-1])

    def forward_transfer(self, baseline: Tensor) -> float:
        """Return the mean gain over ``baseline``, ``(T,)``, before an experience is trained."""
        return mean(self.above - baseline.to(self.above)[1 : len(self.above) + 1])

    def learning_accuracy(self) -> float:
        """Return the mean of the diagonal."""
        return mean(self.diagonal)


def matrix_vectors(seen: Tensor) -> MatrixVectors:
    """Return the vectors of a matrix all of whose rows are trained.

    Args:
        seen: The first ``K`` rows and columns, ``(K, K)``.
    """
    seen = seen.double()
    best = torch.full((max(len(seen) - 1, 0),), -math.inf, dtype=torch.float64)
    for t, row in enumerate(seen[:-1]):
        fold_row(best, row, t)
    return MatrixVectors(seen[-1:].flatten(), seen.diagonal(), seen.diagonal(1), best)


def fold_row(best: Tensor, row: Tensor, t: int) -> None:
    """Take a row into the maxima of the columns, in place; ``nan`` stays.

    Args:
        best: Maxima of the rows before, ``-inf`` where there are none, at least ``(t + 1,)``.
        row: The row, at least ``(t + 1,)``.
        t: Its number.
    """
    best[: t + 1] = torch.maximum(best[: t + 1], row[: t + 1])


def seen_accuracy(row: Tensor, counts: Tensor) -> float:
    r"""Return the accuracy over all images of some experiences.

    .. math:: \frac{\sum_i n_i R_i}{\sum_i n_i}

    Args:
        row: Accuracy on each experience, ``(t + 1,)``, float64.
        counts: ``n_i``, test images of each, ``(t + 1,)``; one without images does not count.

    Returns:
        ``nan`` if one that counts was not evaluated, or none counts.

    Example:
        >>> row = torch.tensor([0.5, 0.8, torch.nan], dtype=torch.float64)
        >>> round(seen_accuracy(row, torch.tensor([100, 200, 0])), 4)
        0.7
    """
    weights = counts.to(row)
    total = weights.sum()
    return float((weights * torch.where(weights > 0, row, 0.0)).sum() / total)


def mean(values: Tensor) -> float:
    """Return the mean; ``nan`` of nothing."""
    return float(values.double().mean())
