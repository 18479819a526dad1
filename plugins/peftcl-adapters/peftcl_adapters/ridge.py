r"""Ridge regression from summed statistics: :math:`W = (G + \lambda I)^{-1} C` and its penalty.

``G`` is the sum of :math:`h h^\top` over all images and ``C`` that of :math:`h y^\top`, with
one-hot targets ``y``. One eigendecomposition :math:`G = V \operatorname{diag}(w) V^\top` serves
every penalty; below, :math:`P = V^\top C`.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

_DECADES, _STEPS = 8, 4  # of the grid: to each side of the mean squared length, and a decade


@dataclass(frozen=True, slots=True)
class Spectrum:
    """What is needed of ``G`` and ``C``.

    Attributes:
        values: Eigenvalues ``w`` that are no rounding, ``(K,)``.
        vectors: Their eigenvectors, ``(M, K)``.
        projected: ``P``, ``(K, R)``.
        n: Number of images.
    """

    values: Tensor
    vectors: Tensor
    projected: Tensor
    n: int

    def solve(self, penalty: Tensor) -> Tensor:
        """Return ``W``, ``(M, R)``."""
        return self.vectors @ (self.projected / (self.values + penalty)[:, None])


def spectrum(gram: Tensor, targets: Tensor, *, n: int) -> Spectrum:
    """Decompose ``G``.

    Args:
        gram: ``G``, ``(M, M)``, in float64.
        targets: ``C``, ``(M, R)``.
        n: Number of images that were summed.
    """
    values, vectors = torch.linalg.eigh(gram)  # rising
    noise = values[-1] * len(values) * torch.finfo(values.dtype).eps
    rank = min(int((values > noise).sum()), n)
    first = len(values) - rank
    vectors = vectors[:, first:]
    return Spectrum(values[first:], vectors, vectors.T @ targets, n)


def penalties(spectrum: Spectrum) -> Tensor:
    """Return the grid: quarters of decades around the mean squared length of a row."""
    steps = torch.arange(-_DECADES * _STEPS, _DECADES * _STEPS + 1, dtype=torch.float64)
    return 10 ** (steps.to(spectrum.values) / _STEPS) * spectrum.values.sum() / spectrum.n


def generalised_cross_validation(spectrum: Spectrum, penalties: Tensor) -> Tensor:
    r"""Return for each penalty the error to expect of images that were left out.

    .. math:: \mathrm{GCV}(\lambda) = \frac{\lVert Y - \hat Y_\lambda \rVert^2 / n}
        {\bigl(1 - \sum_k \frac{w_k}{w_k + \lambda} / n\bigr)^2}

    The squared targets of ``n`` images with one class each sum to ``n``. The parts of numerator and
    denominator that no penalty fits stand apart from those that vanish with :math:`\lambda`, so
    that nothing cancels where the features fit every target.

    Args:
        spectrum: Of the statistics.
        penalties: ``(L,)``.

    Returns:
        ``(L,)``.

    Source:
        Golub, Heath and Wahba, Technometrics 1979. Differs: nothing; the errors of all targets are
        summed.

    Example:
        >>> h, y = torch.randn(9, 2).double(), torch.eye(2).double()[[0, 1, 0, 1, 0, 1, 0, 1, 0]]
        >>> there = spectrum(h.T @ h, h.T @ y, n=9)
        >>> hat = h @ torch.linalg.inv(h.T @ h + 0.5 * torch.eye(2)) @ h.T
        >>> brute_force = (y - hat @ y).square().sum() / 9 / (1 - hat.trace() / 9) ** 2
        >>> gcv = generalised_cross_validation(there, torch.tensor([0.5]))
        >>> torch.allclose(gcv, brute_force)
        True
    """
    w, n = spectrum.values, spectrum.n
    fitted = spectrum.projected.square().sum(dim=1) / w  # (K,) squared targets along each direction
    left = penalties[:, None] / (w + penalties[:, None])  # (L, K) share of them that is not fitted
    residual = (n - fitted.sum()).clamp_min(0) + (fitted * left.square()).sum(dim=1)
    freedom = (n - len(w)) + left.sum(dim=1)
    return n * residual / freedom.square()
