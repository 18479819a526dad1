"""Numbers of a continual run, each computed from one accuracy matrix.

``R[t, i]`` is the accuracy on test experience ``i`` after training experience ``t``; ``nan`` means
not evaluated. Indices start at 0; ``counts[i]`` (``n_i``) is the number of test images of ``i``.

Only ``K`` experiences may have been trained so far: row ``K - 1`` is the last one in which any
experience ``i <= t`` was evaluated. Every number is computed on the first ``K`` rows and columns,
so it describes an unfinished run up to now. It is ``nan`` where a value that it needs is missing;
nothing is averaged over what happens to be there.
"""

import torch
from torch import Tensor

from avalanche_peftcl.functional.matrix_vectors import (
    MatrixVectors,
    matrix_vectors,
    mean,
    seen_accuracy,
)


def accuracy_curve(matrix: Tensor, counts: Tensor) -> Tensor:
    r"""Return the accuracy over all test images seen so far, after each training experience.

    .. math:: A_t = \frac{\sum_{i \le t} n_i R_{t,i}}{\sum_{i \le t} n_i}

    Every image weighs the same. An experience without test images (``n_i = 0``) does not count, so
    a stream with a single test experience has a curve too.

    Args:
        matrix: Accuracy matrix, ``(T, T)``, in [0, 1].
        counts: Test images of each experience, ``(T,)``.

    Returns:
        ``(T,)``, float64; ``nan`` after an experience that was not evaluated on all seen images.

    Raises:
        ValueError: If ``matrix`` is not square and floating, or ``counts`` is not ``(T,)`` or
            negative.

    Source:
        Rebuffi et al., iCaRL, CVPR 2017 (accuracy on the classes seen so far).
        Differs: nothing.

    Example:
        >>> R = torch.tensor([[0.9, torch.nan], [0.5, 0.8]])
        >>> accuracy_curve(R, torch.tensor([100, 200]))
        tensor([0.9000, 0.7000], dtype=torch.float64)
    """
    matrix = _checked(matrix)
    if counts.shape != matrix.shape[:1] or bool((counts < 0).any()):
        raise ValueError(
            f"counts must be {len(matrix)} numbers of test images, one a column of the accuracy "
            f"matrix and none negative, not {counts.tolist()}"
        )
    points = [seen_accuracy(row[: t + 1], counts[: t + 1]) for t, row in enumerate(matrix)]
    return torch.tensor(points, dtype=torch.float64)


def average_incremental_accuracy(matrix: Tensor, counts: Tensor) -> float:
    r"""Return the mean of the accuracy curve over the experiences trained so far.

    .. math:: \bar A = \frac{1}{K} \sum_{t < K} A_t

    Args:
        matrix: Accuracy matrix, ``(T, T)``, in [0, 1].
        counts: Test images of each experience, ``(T,)``.

    Returns:
        A fraction; ``nan`` if a point of the curve is missing.

    Raises:
        ValueError: As :func:`accuracy_curve`.

    Source:
        Rebuffi et al., iCaRL, CVPR 2017. Differs: nothing.

    Example:
        >>> R = torch.tensor([[0.9, torch.nan], [0.5, 0.8]])
        >>> round(average_incremental_accuracy(R, torch.tensor([100, 200])), 4)
        0.8
    """
    return mean(accuracy_curve(matrix, counts)[: _trained(matrix)])


def last_accuracy(matrix: Tensor, counts: Tensor) -> float:
    r"""Return the last point of the accuracy curve, ``A_{K-1}``; every image weighs the same.

    Args:
        matrix: Accuracy matrix, ``(T, T)``, in [0, 1].
        counts: Test images of each experience, ``(T,)``.

    Returns:
        A fraction; ``nan`` if the last row is incomplete.

    Raises:
        ValueError: As :func:`accuracy_curve`.

    Source:
        Rebuffi et al., iCaRL, CVPR 2017 ("last"). Differs: nothing.

    Example:
        >>> R = torch.tensor([[0.9, torch.nan], [0.5, 0.8]])
        >>> round(last_accuracy(R, torch.tensor([100, 200])), 4)
        0.7
    """
    return mean(accuracy_curve(matrix, counts)[: _trained(matrix)][-1:])


def average_accuracy(matrix: Tensor) -> float:
    r"""Return the mean of the final row; every experience weighs the same.

    .. math:: \frac{1}{K} \sum_{i < K} R_{K-1,i}

    Equal to :func:`last_accuracy` if all experiences have equally many test images.

    Args:
        matrix: Accuracy matrix, ``(T, T)``, in [0, 1].

    Returns:
        A fraction; ``nan`` if the last row is incomplete.

    Raises:
        ValueError: If ``matrix`` is not square and floating.

    Source:
        Lopez-Paz and Ranzato, Gradient Episodic Memory, NeurIPS 2017 (ACC). Differs: nothing.

    Example:
        >>> round(average_accuracy(torch.tensor([[0.9, torch.nan], [0.5, 0.8]])), 4)
        0.65
    """
    return _vectors(matrix).average_accuracy()


def forgetting(matrix: Tensor) -> float:
    r"""Return how far the old experiences are below their best earlier accuracy.

    .. math:: F = \frac{1}{K-1} \sum_{i < K-1} (\max_{i \le t \le K-2} R_{t,i} - R_{K-1,i})

    Negative if the last experience improved the old ones.

    Args:
        matrix: Accuracy matrix, ``(T, T)``, in [0, 1].

    Returns:
        A fraction in [-1, 1]; ``nan`` before the second experience, or if an entry on or below the
        diagonal is missing.

    Raises:
        ValueError: If ``matrix`` is not square and floating.

    Source:
        Chaudhry et al., Riemannian Walk, ECCV 2018, eq. (3).
        Differs: nothing. Some code lets the maximum include the last row, which clips at 0.

    Example:
        >>> R = torch.tensor([[0.8, torch.nan, torch.nan], [0.9, 0.7, torch.nan], [0.6, 0.6, 0.9]])
        >>> round(forgetting(R), 4)
        0.2
    """
    return _vectors(matrix).forgetting()


def forgetting_by_experience(matrix: Tensor) -> Tensor:
    r"""Return how far each old experience is below its best earlier accuracy.

    .. math:: F_i = \max_{i \le t \le K-2} R_{t,i} - R_{K-1,i}

    :func:`forgetting` is the mean.

    Args:
        matrix: Accuracy matrix, ``(T, T)``, in [0, 1].

    Returns:
        ``(K - 1,)``, float64, in [-1, 1]; ``nan`` where an entry on or below the diagonal is
        missing.

    Raises:
        ValueError: If ``matrix`` is not square and floating.

    Source:
        Chaudhry et al., Riemannian Walk, ECCV 2018, eq. (2). Differs: nothing.

    Example:
        >>> R = torch.tensor([[0.75, torch.nan], [0.5, 1.0]])
        >>> forgetting_by_experience(R)
        tensor([0.2500], dtype=torch.float64)
    """
    return _vectors(matrix).drops()


def clipped_forgetting(matrix: Tensor) -> float:
    r"""Return the mean drop since an experience was learned, gains counted as zero.

    .. math:: \frac{1}{K-1} \sum_{i < K-1} \max(0,\; R_{i,i} - R_{K-1,i})

    Args:
        matrix: Accuracy matrix, ``(T, T)``, in [0, 1].

    Returns:
        A fraction in [0, 1]; ``nan`` before the second experience, or if the diagonal or the last
        row is incomplete.

    Raises:
        ValueError: If ``matrix`` is not square and floating.

    Source:
        The forgetting that the tables of the PEGP release (CLIP) report.
        Differs: nothing; its logs give 5.72 % and 2.60 % here too.

    Example:
        >>> R = torch.tensor([[0.8, torch.nan, torch.nan], [0.9, 0.7, torch.nan], [0.6, 0.8, 0.9]])
        >>> round(clipped_forgetting(R), 4)
        0.1
    """
    return _vectors(matrix).clipped_forgetting()


def backward_transfer(matrix: Tensor) -> float:
    r"""Return the mean change of the old experiences since each was learned.

    .. math:: \mathrm{BWT} = \frac{1}{K-1} \sum_{i < K-1} (R_{K-1,i} - R_{i,i})

    Args:
        matrix: Accuracy matrix, ``(T, T)``, in [0, 1].

    Returns:
        A fraction in [-1, 1], negative for forgetting; ``nan`` before the second experience, or if
        the diagonal or the last row is incomplete.

    Raises:
        ValueError: If ``matrix`` is not square and floating.

    Source:
        Lopez-Paz and Ranzato, Gradient Episodic Memory, NeurIPS 2017, eq. (3). Differs: nothing.

    Example:
        >>> round(backward_transfer(torch.tensor([[0.9, torch.nan], [0.5, 0.8]])), 4)
        -0.4
    """
    return _vectors(matrix).backward_transfer()


def forward_transfer(matrix: Tensor, baseline: Tensor) -> float:
    r"""Return what the earlier experiences gave to those not yet trained.

    .. math:: \mathrm{FWT} = \frac{1}{K-1} \sum_{1 \le i < K} (R_{i-1,i} - b_i)

    Args:
        matrix: Accuracy matrix, ``(T, T)``, in [0, 1], evaluated above the diagonal.
        baseline: ``b``, accuracy of the model before any training, ``(T,)``.

    Returns:
        A fraction in [-1, 1]; ``nan`` before the second experience, or if an experience was not
        evaluated before its training.

    Raises:
        ValueError: If ``matrix`` is not square and floating, or ``baseline`` is not ``(T,)``.

    Source:
        Lopez-Paz and Ranzato, Gradient Episodic Memory, NeurIPS 2017, eq. (4). Differs: nothing.

    Example:
        >>> R = torch.tensor([[0.9, 0.3], [0.5, 0.8]])
        >>> round(forward_transfer(R, torch.tensor([0.1, 0.1])), 4)
        0.2
    """
    vectors = _vectors(matrix)
    if baseline.shape != matrix.shape[:1]:
        raise ValueError(
            f"baseline must hold {len(matrix)} accuracies, one a column of the accuracy matrix, "
            f"not shape {tuple(baseline.shape)}"
        )
    return vectors.forward_transfer(baseline)


def learning_accuracy(matrix: Tensor) -> float:
    r"""Return the mean accuracy on each experience right after its training (plasticity).

    .. math:: \mathrm{LA} = \frac{1}{K} \sum_{i < K} R_{i,i}

    Args:
        matrix: Accuracy matrix, ``(T, T)``, in [0, 1].

    Returns:
        A fraction; ``nan`` if the diagonal is incomplete.

    Raises:
        ValueError: If ``matrix`` is not square and floating.

    Source:
        Riemer et al., Learning to Learn without Forgetting, ICLR 2019 (LA). Differs: nothing.

    Example:
        >>> round(learning_accuracy(torch.tensor([[0.9, torch.nan], [0.5, 0.8]])), 4)
        0.85
    """
    return _vectors(matrix).learning_accuracy()


def final_row(matrix: Tensor) -> Tensor:
    """Return the accuracy on each experience trained so far, after the last of them.

    Args:
        matrix: Accuracy matrix, ``(T, T)``, in [0, 1].

    Returns:
        ``(K,)``, float64: one value a task, or a domain, of the stream.

    Raises:
        ValueError: If ``matrix`` is not square and floating.

    Example:
        >>> final_row(torch.tensor([[0.9, torch.nan], [0.5, 0.8]]))
        tensor([0.5000, 0.8000], dtype=torch.float64)
    """
    return _vectors(matrix).final


def _checked(matrix: Tensor) -> Tensor:
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not matrix.is_floating_point():
        raise ValueError(
            "an accuracy matrix is square, (T, T), and floating (nan = not evaluated), not "
            f"{tuple(matrix.shape)} of {matrix.dtype}"
        )
    return matrix.double()


def _trained(matrix: Tensor) -> int:
    """Return ``K``."""
    rows = _checked(matrix).isnan().logical_not().tril().any(1).nonzero()
    return int(rows[-1]) + 1 if len(rows) else 0


def _vectors(matrix: Tensor) -> MatrixVectors:
    """Return the vectors of the first ``K`` rows and columns."""
    trained = _trained(matrix)
    return matrix_vectors(matrix[:trained, :trained])
