"""How features moved: what a head that was fitted to old ones is told."""

from collections.abc import Callable

from torch import Tensor

from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.functional.precision import in_double


class Drift:
    """From features of old images to what they are now; a subclass says how.

    A head moves its first moments by a call. What becomes of second moments follows from the kind:
    see :class:`LinearDrift`; of any other the class means move, and the scatter about them stays.
    """

    def __call__(self, features: Tensor) -> Tensor:
        """Return present features of old ones: ``(n, D)`` to ``(n, D)``, of the same dtype."""
        raise NotImplementedError


class LinearDrift(Drift):
    r"""Features that moved by a matrix, :math:`h \to h T`, all of them or a section.

    Args:
        matrix: ``T`` of the columns that moved, ``(K, K)``; a row of features stands left of it.
        columns: Which columns those are; ``None``: all. The others stay.

    Raises:
        ConfigError: If the matrix is not square.

    Example:
        >>> import torch
        >>> drift = LinearDrift(torch.tensor([[2.0]]), slice(1, 2))
        >>> drift(torch.tensor([[1.0, 3.0]]))
        tensor([[1., 6.]])
    """

    def __init__(self, matrix: Tensor, columns: slice | None = None) -> None:
        if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
            raise ConfigError(
                f"a drift of shape {tuple(matrix.shape)} is not square; give a matrix from the "
                "columns that moved to the same columns"
            )
        self.matrix = matrix
        self.columns = slice(None) if columns is None else columns

    def __call__(self, features: Tensor) -> Tensor:
        """Return present features of old ones: ``(n, D)`` to ``(n, D)``, of the same dtype."""
        rows = in_double(features)
        moved = features.clone()
        moved[:, self.columns] = (rows[:, self.columns] @ self.matrix.to(rows)).to(features)
        return moved

    def congruence(self, gram: Tensor) -> Tensor:
        r"""Return the second moments of present features, :math:`T^\top G\,T`.

        Only rows and columns that moved are computed: :math:`2 D^2 K` operations.

        Args:
            gram: :math:`\sum h^\top h` of old features, symmetric, ``(..., D, D)``.

        Example:
            >>> import torch
            >>> LinearDrift(torch.tensor([[2.0]]), slice(1, 2)).congruence(torch.ones(2, 2))
            tensor([[1., 2.],
                    [2., 4.]])
        """
        matrix, columns = self.matrix.to(gram), self.columns
        moved = gram.clone()
        moved[..., columns] = gram[..., columns] @ matrix
        moved[..., columns, :] = matrix.mT @ moved[..., columns, :]
        return (moved + moved.mT) / 2  # rounding is not symmetric


class ShiftDrift(Drift):
    """Class means that moved by a rule; the scatter of a class about its mean stays.

    Args:
        rule: From old means ``(n, D)`` to present ones.

    Example:
        >>> import torch
        >>> ShiftDrift(lambda means: means + 1)(torch.zeros(1, 2))
        tensor([[1., 1.]])
    """

    def __init__(self, rule: Callable[[Tensor], Tensor]) -> None:
        self.rule = rule

    def __call__(self, features: Tensor) -> Tensor:
        """Return present means of old ones: ``(n, D)`` to ``(n, D)``, of the same dtype."""
        return self.rule(features).to(features)


def move_moments(drift: Drift, gram: Tensor, sums: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    r"""Return the summed moments of present features.

    Of a linear drift :math:`T^\top G\,T` and :math:`s_c T`, exactly. Of any other the class means
    :math:`m_c` move to :math:`m_c'` and the scatter about them stays:
    :math:`G + \sum_c n_c (m_c' m_c'^\top - m_c m_c^\top)`.

    Args:
        drift: How features moved.
        gram: ``G``: of all classes, ``(D, D)``, or of each, ``(R, D, D)``.
        sums: ``s``, ``(R, D)``.
        counts: Images of each class, ``(R,)``; classes without one stay.
    """
    if isinstance(drift, LinearDrift):
        return drift.congruence(gram), drift(sums)
    known = counts > 0
    n = counts[known, None].to(sums)
    old = sums[known] / n
    new = drift(old)
    sums = sums.clone()
    sums[known] = n * new
    if gram.ndim == 2:
        return gram + new.T @ (n * new) - old.T @ (n * old), sums
    gram = gram.clone()
    gram[known] += n[..., None] * (new[:, :, None] * new[:, None] - old[:, :, None] * old[:, None])
    return gram, sums
