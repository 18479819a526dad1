"""Numbers of a run that was evaluated while it trained, on all that had been seen.

At point ``p``, after ``x[p]`` training iterations, ``A[p, i]`` is the accuracy on test experience
``i``; ``nan`` where the stream had not come to ``i``. Experience ``i`` is learned once its training
has ended, at iteration ``l[i]``. Evaluated at the ends of experiences alone, a run does not show
how far the accuracy on old classes falls when a new experience begins: the stability gap.
"""

import torch
from torch import Tensor


def any_time_area(iterations: Tensor, accuracy: Tensor) -> float:
    r"""Return the area under the curve of accuracy over iterations, divided by its length.

    .. math:: \frac{1}{x_P} \sum_{p=1}^{P} (x_p - x_{p-1})\, a_p, \qquad x_0 = 0

    Each point stands for the iterations since the point before. With points at equal distances it
    is their mean.

    Args:
        iterations: :math:`x`, training iterations at each point, rising from above 0, ``(P,)``.
        accuracy: :math:`a`, accuracy on what was seen, ``(P,)``.

    Returns:
        A fraction; ``nan`` without points, or if one of the accuracies is.

    Raises:
        ValueError: If the two do not belong together.

    Source:
        Koh et al., Online Continual Learning on Class Incremental Blurry Task Configuration with
        Anytime Inference, ICLR 2022 (area under the accuracy curve).
        Differs: points need not be at equal distances; divided by the length.

    Example:
        >>> any_time_area(torch.tensor([10, 20, 40]), torch.tensor([0.5, 0.25, 1.0]))
        0.6875
    """
    x, a = _points(iterations), accuracy.double()
    if a.shape != x.shape:
        raise ValueError(f"{len(x)} points have accuracies of shape {tuple(a.shape)}")
    if not len(x):
        return float("nan")
    return float((a * x.diff(prepend=x.new_zeros(1))).sum() / x[-1])


def minimum_since_learned(iterations: Tensor, accuracies: Tensor, learned: Tensor) -> Tensor:
    r"""Return the lowest accuracy on each experience after its training had ended.

    .. math:: m_i = \min_{p:\; x_p > l_i} A_{p,i}

    Args:
        iterations: :math:`x`, training iterations done at each point, rising, ``(P,)``.
        accuracies: :math:`A`, ``(P, T)``; ``nan`` where an experience had not been seen.
        learned: :math:`l`, iterations done when the training of each experience had ended,
            ``(T,)``; infinite where it has not.

    Returns:
        ``(T,)``, float64; ``nan`` where there is no later point, or one without an accuracy.

    Raises:
        ValueError: If their shapes do not belong together.

    Source:
        De Lange et al., Continual evaluation for lifelong learning: identifying the stability gap,
        ICLR 2023 (the minimum that their average is of).
        Differs: nothing.

    Example:
        >>> A = torch.tensor([[0.9, torch.nan], [0.2, 0.6], [0.7, 0.8]])
        >>> minimum_since_learned(torch.tensor([10, 15, 20]), A, torch.tensor([10.0, 20.0]))
        tensor([0.2000,    nan], dtype=torch.float64)
    """
    x, a, end = _table(iterations, accuracies, learned)
    later = x[:, None] > end
    lowest = torch.where(later, a, torch.inf).amin(0) if len(x) else torch.full_like(end, torch.inf)
    return torch.where(later.any(0), lowest, torch.nan)


def average_minimum_accuracy(iterations: Tensor, accuracies: Tensor, learned: Tensor) -> float:
    r"""Return the mean of the lowest accuracies of all experiences learned before the last point.

    .. math:: \text{min-ACC} = \frac{1}{|O|} \sum_{i \in O} m_i,
        \qquad O = \{i : l_i < x_P\}

    While, and right after, experience :math:`k` trains these are the :math:`k - 1` before it.

    Args:
        iterations: As of :func:`minimum_since_learned`, which says what :math:`m_i` is.
        accuracies: As there.
        learned: As there.

    Returns:
        A fraction; ``nan`` if there is no such experience, or the accuracy on one is missing.

    Raises:
        ValueError: As there.

    Source:
        De Lange et al., ICLR 2023 (average minimum accuracy). Differs: nothing.

    Example:
        >>> A = torch.tensor([[0.9, torch.nan], [0.25, 0.6], [0.7, 0.8]])
        >>> average_minimum_accuracy(torch.tensor([10, 15, 20]), A, torch.tensor([10.0, 20.0]))
        0.25
    """
    x, _, end = _table(iterations, accuracies, learned)
    lowest = minimum_since_learned(iterations, accuracies, learned)
    return float(lowest[end < x[-1]].mean()) if len(x) else float("nan")


def worst_case_accuracy(iterations: Tensor, accuracies: Tensor, learned: Tensor) -> float:
    r"""Return the lowest accuracies of old experiences and the last ones of others, averaged.

    .. math:: \text{WC-ACC} = \frac{1}{k} \Bigl(\sum_{i \in S \setminus O} A_{P,i}
        + \sum_{i \in O} m_i\Bigr), \qquad k = |S|

    :math:`S` are the experiences seen at the last point, :math:`O` those learned before it. Where
    one of them is the last one trained, which is so unless all train together, this is
    :math:`\frac{1}{k} A_{P,k} + (1 - \frac{1}{k})\,\text{min-ACC}`.

    Args:
        iterations: As of :func:`average_minimum_accuracy`, which says what :math:`O` is.
        accuracies: As there.
        learned: As there.

    Returns:
        A fraction, at most the average accuracy at the last point; ``nan`` without points, or if
        the accuracy on one of them is missing.

    Raises:
        ValueError: As there.

    Source:
        De Lange et al., ICLR 2023 (worst-case accuracy).
        Differs: several experiences may be the last ones, as in joint training.

    Example:
        >>> A = torch.tensor([[0.9, torch.nan], [0.25, 0.6], [0.7, 0.75]])
        >>> worst_case_accuracy(torch.tensor([10, 15, 20]), A, torch.tensor([10.0, 20.0]))
        0.5
    """
    x, a, end = _table(iterations, accuracies, learned)
    if not len(x):
        return float("nan")
    old = end < x[-1]
    lowest = minimum_since_learned(iterations, accuracies, learned)
    values = torch.where(old, lowest, a[-1])
    return float(values[old | ~a[-1].isnan()].mean())


def _points(iterations: Tensor) -> Tensor:
    x = iterations.double()
    if x.ndim != 1 or bool((x.diff(prepend=x.new_zeros(1)) <= 0).any()):
        raise ValueError(f"iterations must rise from above 0, not {iterations.tolist()}")
    return x


def _table(
    iterations: Tensor, accuracies: Tensor, learned: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    x, a, end = _points(iterations), accuracies.double(), learned.double()
    if end.ndim != 1 or a.shape != (len(x), len(end)):
        raise ValueError(
            f"accuracies at {len(x)} points on {tuple(end.shape)} experiences must be a table of "
            f"these, not of shape {tuple(a.shape)}"
        )
    return x, a, end
