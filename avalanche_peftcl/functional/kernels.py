r"""The Gaussian kernel :math:`k(a, b) = \exp(-\lVert a - b \rVert^2 / 2 \sigma^2)`."""

import math

import torch
from torch import Tensor


def gaussian_kernel(a: Tensor, b: Tensor, bandwidth: float | Tensor) -> Tensor:
    r"""Return the kernel between rows.

    Args:
        a: ``(n, D)``.
        b: ``(m, D)``.
        bandwidth: :math:`\sigma`.

    Returns:
        ``(n, m)``, in the dtype of ``a``.

    Example:
        >>> gaussian_kernel(torch.zeros(1, 2), torch.tensor([[3.0, 4.0]]), 5.0)
        tensor([[0.6065]])
    """
    squared = torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist").square()
    return torch.exp(-squared / (2 * bandwidth**2))


def fourier_features(
    features: Tensor, directions: Tensor, phases: Tensor, bandwidth: float | Tensor
) -> Tensor:
    r"""Return random features whose inner products approach the Gaussian kernel.

    .. math:: h(z) = \sqrt{2 / M}\,\cos(z\,\Omega / \sigma + b)

    Args:
        features: ``(B, D)``.
        directions: :math:`\Omega`, standard normal, ``(D, M)``.
        phases: ``b``, uniform in :math:`[0, 2\pi)`, ``(M,)``.
        bandwidth: :math:`\sigma`.

    Returns:
        ``(B, M)``.

    Source:
        Rahimi and Recht, NeurIPS 2007. Differs: nothing.

    Example:
        >>> fourier_features(torch.ones(1, 1), torch.zeros(1, 2), torch.zeros(2), 1.0)
        tensor([[1., 1.]])
    """
    angles = features @ (directions / bandwidth) + phases
    return math.sqrt(2 / directions.shape[1]) * angles.cos()


def median_distance(features: Tensor, *, at_most: int = 1_000) -> float:
    """Return the median distance between rows, the usual bandwidth; it minds no order of them.

    Of more rows than ``at_most``, those are taken that lie evenly along a fixed random direction.

    Args:
        features: ``(n, D)``, ``n >= 1``.
        at_most: How many rows are compared.

    Returns:
        A positive number; the length of the mean row where no two differ, 1 if that is 0.

    Example:
        >>> median_distance(torch.tensor([[0.0], [1.0], [3.0]]))
        2.0
    """
    rows = features.double().cpu()
    if len(rows) > at_most:
        generator = torch.Generator().manual_seed(0)
        along = rows @ torch.randn(rows.shape[1], generator=generator, dtype=rows.dtype)
        places = torch.linspace(0, len(rows) - 1, at_most).round().long()
        rows = rows[along.argsort(stable=True)[places]]
    median = float(torch.pdist(rows).median()) if len(rows) > 1 else 0.0
    return median or float(rows.mean(dim=0).norm()) or 1.0
