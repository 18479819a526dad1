r"""Gaussians from summed statistics: scatter within classes, shrunk covariances, samples.

Sums over images suffice: the counts ``n``, :math:`s_c = \sum h` of each class and
:math:`G = \sum h h^\top`. A shrunk covariance is
:math:`(1 - \rho)\,\Sigma + \rho\,\tfrac{\operatorname{tr} \Sigma}{D}\,I`.
"""

import torch
from torch import Tensor


def within_scatter(gram: Tensor, sums: Tensor, counts: Tensor) -> Tensor:
    r"""Return the scatter of images about their class means, :math:`G - \sum_c s_c s_c^\top / n_c`.

    Args:
        gram: ``G`` of all classes, ``(D, D)``, in float64.
        sums: ``s``, ``(R, D)``, in float64.
        counts: Images of each class, ``(R,)``; 0 is allowed.

    Example:
        >>> h = torch.tensor([[1.0], [3.0], [7.0]], dtype=torch.float64)
        >>> sums = torch.tensor([[4.0], [7.0]], dtype=torch.float64)
        >>> within_scatter(h.T @ h, sums, torch.tensor([2, 1]))
        tensor([[2.]], dtype=torch.float64)
    """
    return gram - sums.T @ (sums / counts.clamp_min(1)[:, None])


def shrink(covariance: Tensor, shrinkage: float | Tensor) -> Tensor:
    """Return a covariance moved towards a multiple of the identity with the same trace.

    Args:
        covariance: ``(D, D)``.
        shrinkage: In ``[0, 1]``.

    Example:
        >>> shrink(torch.tensor([[3.0, 1.0], [1.0, 1.0]]), 0.5)
        tensor([[2.5000, 0.5000],
                [0.5000, 1.5000]])
    """
    shrunk = (1 - shrinkage) * covariance
    shrunk.diagonal().add_(shrinkage * covariance.trace() / len(covariance))
    return shrunk


def oas_shrinkage(covariance: Tensor, n: int) -> Tensor:
    r"""Return how far to shrink, by the oracle that approximates a Gaussian's.

    .. math:: \rho = \min\Bigl(1, \frac{\alpha + \mu^2}{(n + 1)(\alpha - \mu^2 / D)}\Bigr)

    with :math:`\alpha` the mean squared entry and :math:`\mu` the mean of the diagonal.

    Args:
        covariance: Empirical, ``(D, D)``.
        n: Images that it is of.

    Returns:
        ``()``.

    Source:
        Chen et al., IEEE Transactions on Signal Processing 2010, arXiv 0907.4698, eq. (23), without
        its term ``2 / D`` as scikit-learn has it (``sklearn.covariance.oas``). Differs: nothing.

    Example:
        >>> oas_shrinkage(torch.diag(torch.tensor([3.0, 1.0])), n=99)
        tensor(0.1300)
    """
    width = len(covariance)
    alpha, mu = covariance.square().mean(), covariance.diagonal().mean()
    below = (n + 1) * (alpha - mu**2 / width)
    share = (alpha + mu**2) / below
    return torch.where(below > 0, share, torch.ones_like(share)).clamp(max=1)


def ledoit_wolf_shrinkage(covariance: Tensor, n: int, fourth: Tensor) -> Tensor:
    r"""Return how far to shrink, for the least expected squared error.

    .. math:: \rho = \min\Bigl(1, \frac{\tfrac 1 n \bigl(\tfrac 1 n \sum \lVert x \rVert^4
        - \lVert \Sigma \rVert_F^2\bigr)}{\lVert \Sigma - \mu I \rVert_F^2}\Bigr)

    Args:
        covariance: Empirical, of centred rows ``x``, ``(D, D)``.
        n: Images that it is of.
        fourth: :math:`\sum \lVert x \rVert^4`, ``()``, see :func:`centred_fourth_moment`.

    Returns:
        ``()``.

    Source:
        Ledoit and Wolf, Journal of Multivariate Analysis 2004, as in
        ``sklearn.covariance.ledoit_wolf``. Differs: nothing.

    Example:
        >>> x = torch.tensor([[2.0, 0.0], [-2.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
        >>> ledoit_wolf_shrinkage(x.T @ x / 4, 4, x.square().sum(dim=1).square().sum())
        tensor(0.9444)
    """
    squared = covariance.square().sum()
    below = squared - covariance.trace().square() / len(covariance)
    above = ((fourth / n - squared) / n).clamp_min(0)
    share = above / below
    return torch.where(below > above, share, (above > 0).to(share))


def centred_fourth_moment(
    fourth: Tensor, cubed: Tensor, grams: Tensor, sums: Tensor, counts: Tensor
) -> Tensor:
    r"""Return :math:`\sum \lVert h - m_c \rVert^4` of all images, from sums over each class.

    Args:
        fourth: :math:`\sum \lVert h \rVert^4` of each class, ``(R,)``, in float64.
        cubed: :math:`\sum \lVert h \rVert^2 h`, ``(R, D)``.
        grams: :math:`\sum h h^\top`, ``(R, D, D)``.
        sums: :math:`\sum h`, ``(R, D)``.
        counts: Images of each class, ``(R,)``; 0 is allowed.

    Returns:
        ``()``.

    Example:
        >>> h = torch.tensor([[1.0, 0.0], [3.0, 2.0]], dtype=torch.float64)
        >>> square = h.square().sum(dim=1, keepdim=True)
        >>> sums = h.sum(0)[None], torch.tensor([2])
        >>> cubed = (square * h).sum(0)[None]
        >>> centred_fourth_moment(square.square().sum()[None], cubed, (h.T @ h)[None], *sums)
        tensor(8., dtype=torch.float64)
    """
    means = sums / counts.clamp_min(1)[:, None]
    square = means.square().sum(dim=1)
    along = torch.einsum("ri,rij,rj->r", means, grams, means)
    trace = grams.diagonal(dim1=1, dim2=2).sum(dim=1)
    mixed = (cubed * means).sum(dim=1)
    each = fourth + 4 * along - 4 * mixed + 2 * square * trace - 3 * counts * square.square()
    return each.sum().clamp_min(0)
