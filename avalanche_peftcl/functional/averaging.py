"""Running means of parameters over experiences."""

from collections.abc import Iterable

import torch
from torch import Tensor


@torch.no_grad()
def running_mean_(target: Iterable[Tensor], source: Iterable[Tensor], *, count: int) -> None:
    r"""Move ``target``, the mean of ``count`` earlier values, on to the mean with ``source``.

    .. math:: \bar p \leftarrow \frac{n}{n+1}\,\bar p + \frac{1}{n+1}\,p

    Args:
        target: Tensors that hold the mean; changed in place.
        source: The new values, of the same shapes, in the same order.
        count: ``n``, how many values the mean holds; 0 copies ``source``.

    Raises:
        ValueError: If ``count`` is negative or the numbers of tensors differ.

    Source:
        Liu et al., arXiv 2407.17120 ("adaptive EMA"); released code 24de712.
        Differs: nothing for one copy from the released code, whose recursion is the plain mean; the
        paper's own, which could not be read, may be another.

    Example:
        >>> mean = torch.zeros(1)
        >>> for n, value in enumerate((3.0, 6.0, 9.0)):
        ...     running_mean_([mean], [torch.tensor([value])], count=n)
        >>> mean
        tensor([6.])
    """
    if count < 0:
        raise ValueError(f"count must be 0 or more, not {count}")
    for kept, new in zip(target, source, strict=True):
        # two steps, not lerp_: when both are one tensor the release scales it by a (1 + b)
        kept.mul_(count / (count + 1)).add_(new, alpha=1 / (count + 1))


def released_copy(t: int, *, n_experiences: int, n_copies: int) -> int:
    """Return the copy that the released NTK-CL code updates after experience ``t``.

    Args:
        t: Experience, from 0.
        n_experiences: ``T``, length of the stream.
        n_copies: ``F``, number of copies.

    Returns:
        ``F - t // (T // F)``: ``F`` is the oldest copy, 1 the newest; 0 means the adapters that
        train, which happens in the release when ``F`` does not divide ``T``.

    Raises:
        ValueError: If there are more copies than experiences.

    Source:
        Released NTK-CL code 24de712. Differs: nothing.

    Example:
        >>> [released_copy(t, n_experiences=10, n_copies=2) for t in (0, 4, 5, 9)]
        [2, 2, 1, 1]
    """
    _check_copies(n_experiences, n_copies)
    return n_copies - t // (n_experiences // n_copies)


def segment(t: int, *, n_experiences: int, n_copies: int) -> tuple[int, int]:
    """Cut a stream in ``n_copies`` segments; return the copy of experience ``t`` and its place.

    Args:
        t: Experience, from 0.
        n_experiences: ``T``, length of the stream.
        n_copies: ``F``, number of segments, at most ``T``; their sizes differ by one at most.

    Returns:
        The copy, from ``F`` (first segment, oldest) down to 1, and how many experiences of that
        segment came before ``t``.

    Raises:
        ValueError: If there are more copies than experiences, or ``t`` is not one of them.

    Example:
        >>> [segment(t, n_experiences=5, n_copies=2) for t in range(5)]
        [(2, 0), (2, 1), (2, 2), (1, 0), (1, 1)]
    """
    _check_copies(n_experiences, n_copies)
    if not 0 <= t < n_experiences:
        raise ValueError(f"t must be from 0 to {n_experiences - 1}, not {t}")
    size, longer = divmod(n_experiences, n_copies)
    starts = [k * size + min(k, longer) for k in range(n_copies)]
    k = max(k for k in range(n_copies) if starts[k] <= t)
    return n_copies - k, t - starts[k]


def _check_copies(n_experiences: int, n_copies: int) -> None:
    if not 1 <= n_copies <= n_experiences:
        raise ValueError(
            f"n_copies must be from 1 to n_experiences, which is {n_experiences}, not {n_copies}"
        )
