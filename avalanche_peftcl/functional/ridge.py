r"""Ridge regression from summed statistics: :math:`W = (G + \lambda I)^{-1} C` and its penalty.

``G`` is the sum of :math:`h h^\top` over all images and ``C`` that of :math:`h y^\top`, with
one-hot targets ``y``. One eigendecomposition :math:`G = V \operatorname{diag}(w) V^\top` serves
every penalty; below, :math:`P = V^\top C`.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

_DECADES, _STEPS = 8, 4  # of the grid: to each side of the mean squared length, and a decade
_SPARE = 8  # random columns beyond the rank


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
    r"""Decompose ``G``.

    Its rank is at most ``n``. Where that is less than half its width, an orthonormal basis ``Q`` of
    :math:`G\,\Omega`, with ``n`` and a few more fixed random columns, spans its range, and
    :math:`Q^\top G\,Q` is decomposed instead: the same up to rounding, in time of order
    :math:`M^2 n` instead of :math:`M^3`.

    Args:
        gram: ``G``, ``(M, M)``, in float64.
        targets: ``C``, ``(M, R)``.
        n: Number of images that were summed.

    Source:
        Halko, Martinsson and Tropp, SIAM Review 2011, algorithms 4.1 and 5.3.
    """
    width, basis = len(gram), None
    if 2 * (n + _SPARE) < width:
        generator = torch.Generator().manual_seed(0)
        random = torch.randn(width, n + _SPARE, generator=generator, dtype=gram.dtype)
        basis = torch.linalg.qr(gram @ random.to(gram)).Q
        gram = basis.T @ gram @ basis
    values, vectors = torch.linalg.eigh((gram + gram.T) / 2)  # rising
    noise = values[-1] * width * torch.finfo(values.dtype).eps
    rank = min(int((values > noise).sum()), n)
    first = len(values) - rank
    vectors = vectors[:, first:] if basis is None else basis @ vectors[:, first:]
    return Spectrum(values[first:], vectors, vectors.T @ targets, n)


def kernel_spectrum(kernel: Tensor, targets: Tensor) -> Spectrum:
    r"""Decompose a kernel matrix as if it were ``G`` of features that have this kernel.

    All that is said of a :class:`Spectrum` holds; :meth:`Spectrum.solve` returns the coefficients
    of the images, :math:`\alpha = (K + \lambda I)^{-1} Y`.

    Args:
        kernel: ``K`` between all images, ``(n, n)``, in float64.
        targets: ``Y``, one-hot, ``(n, R)``.
    """
    there = spectrum(kernel, targets, n=len(kernel))
    root = there.values.sqrt()  # of K = U w U': V = U / root, and P = root U' Y
    return Spectrum(
        there.values, there.vectors / root, there.projected * root[:, None], len(kernel)
    )


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
    n, (_, squared, freedom) = spectrum.n, _unfitted(spectrum, penalties)
    return n * squared / freedom.square()


def scale_free_cross_validation(spectrum: Spectrum, penalties: Tensor) -> Tensor:
    r"""Return for each penalty how far scores of images that were left out are from the targets.

    .. math:: 1 - \frac{\langle Y, \tilde Y \rangle^2}{n \lVert \tilde Y \rVert^2}, \qquad
        \tilde Y = \frac{H Y - l\,Y}{1 - l}, \quad l = \frac 1 n \sum_k \frac{w_k}{w_k + \lambda}

    :math:`\tilde Y` are the scores without an image's own part if all hat values are their mean, as
    in :func:`generalised_cross_validation`. That one counts scores that are too small as errors;
    their best common factor is free here, as it is in an ``argmax``.

    Args:
        spectrum: Of the statistics.
        penalties: ``(L,)``.

    Returns:
        ``(L,)``, in ``[0, 2]``; over 1 where the scores point away from the targets.

    Source:
        This package.

    Example:
        >>> h, y = torch.randn(9, 2).double(), torch.eye(2).double()[[0, 1, 0, 1, 0, 1, 0, 1, 0]]
        >>> there = spectrum(h.T @ h, h.T @ y, n=9)
        >>> hat = h @ torch.linalg.inv(h.T @ h + 0.5 * torch.eye(2)) @ h.T
        >>> left_out = hat @ y - hat.trace() / 9 * y
        >>> inner = (y * left_out).sum()
        >>> brute_force = 1 - inner * inner.abs() / 9 / left_out.square().sum()
        >>> value = scale_free_cross_validation(there, torch.tensor([0.5]))
        >>> torch.allclose(value, brute_force)
        True
    """
    n, (linear, squared, freedom) = spectrum.n, _unfitted(spectrum, penalties)
    # HY - l Y as it stands where l is small, and as (1 - l) Y - (I - H) Y where 1 - l is: neither
    # cancels
    inverse = 1 / (spectrum.values + penalties[:, None])  # (L, K)
    energy = spectrum.projected.square().sum(dim=1)  # (K,)
    leverage = (spectrum.values * inverse).sum(dim=1) / n
    along, across = inverse @ energy, inverse.square() @ (spectrum.values * energy)
    share, small = freedom / n, leverage < 0.5
    inner = torch.where(small, along - n * leverage, freedom - linear)
    length = torch.where(
        small,
        across - 2 * leverage * along + n * leverage.square(),
        share * freedom - 2 * share * linear + squared,
    )
    cosine = inner * inner.abs() / (n * length)
    return 1 - cosine.nan_to_num(0.0).clamp(-1, 1)


def prior_weight(spectrum: Spectrum, prior: Tensor, penalty: Tensor | None = None) -> Tensor:
    r"""Return the weight with which a prior ``T``, linear in ``h``, leaves least of the targets.

    .. math:: b = \frac{\langle (I - H_\lambda) Y, (I - H_\lambda) H T \rangle}
        {\lVert (I - H_\lambda) H T \rVert^2}

    with the rows of ``H`` the features and :math:`H_\lambda` the hat matrix of the ridge regression
    of what is left, :math:`Y - b H T`; without a penalty there is none, and it is the least-squares
    weight of the prior alone. A negative one is 0.

    Args:
        spectrum: Of the statistics; nothing of one-hot targets is used.
        prior: :math:`V^\top T`, ``(K, R)``.
        penalty: :math:`\lambda`, ``()``.

    Returns:
        ``()``.

    Source:
        This package.

    Example:
        >>> h, y = torch.randn(9, 2).double(), torch.eye(2).double()[[0, 1, 0, 1, 0, 1, 0, 1, 0]]
        >>> there = spectrum(h.T @ h, h.T @ y, n=9)
        >>> best = there.solve(torch.tensor(0.0))
        >>> round(float(prior_weight(there, there.vectors.T @ best / 3)), 6)
        3.0
    """
    left = torch.ones_like(spectrum.values)
    if penalty is not None:
        left = penalty / (spectrum.values + penalty)
    inner = left.square() @ (prior * spectrum.projected).sum(dim=1)
    length = left.square() @ (spectrum.values * prior.square().sum(dim=1))
    return (inner / length).nan_to_num(0.0, 0.0, 0.0).clamp_min(0)


def _unfitted(spectrum: Spectrum, penalties: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return <Y, (I - H) Y>, the squared length of (I - H) Y and the trace of I - H, each (L,)."""
    w, n = spectrum.values, spectrum.n
    fitted = spectrum.projected.square().sum(dim=1) / w  # (K,) squared targets along each direction
    left = penalties[:, None] / (w + penalties[:, None])  # (L, K) share of them that is not fitted
    rest = (n - fitted.sum()).clamp_min(0)
    linear = rest + (fitted * left).sum(dim=1)
    squared = rest + (fitted * left.square()).sum(dim=1)
    return linear, squared, (n - len(w)) + left.sum(dim=1)
