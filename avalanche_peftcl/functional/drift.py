r"""Where old features are now, told from the images at hand alone.

``a`` are features of the images at hand before training and ``b`` after it, rows ``(N, D)``. Linear
maps ``T`` act on rows, ``h -> h T``: a Gram of old rows becomes ``Tᵀ G T``. Sums are in float64,
and where ``N < D`` the system that is solved has ``N`` rows instead of ``D``.
"""

import torch
from torch import Tensor

from avalanche_peftcl.functional.precision import in_double


def linear_drift(before: Tensor, after: Tensor, *, ridge: float) -> Tensor:
    r"""Return the linear map that moves old features as those at hand have moved.

    .. math:: T = I + M, \qquad M = \arg\min_M \|(b - a) - a M\|^2 + \mu \|M\|^2, \qquad
              \mu = \rho\, \operatorname{tr}(a^\top a) / D

    so that :math:`\rho` is relative to the mean eigenvalue of :math:`a^\top a`. Features that did
    not move give the identity, to the bit, and directions that no image has stay where they are.

    Args:
        before: ``a``, ``(N, D)``; there may be no rows.
        after: ``b``, ``(N, D)``.
        ridge: :math:`\rho \ge 0`; with 0 the ``M`` of least norm.

    Returns:
        ``T``, ``(D, D)``, in float64.

    Raises:
        ValueError: If the shapes differ or ``ridge`` is negative.

    Source:
        Ridge regression of the drift. Differs from the drift operator of SLDC, arXiv 2511.09926
        (:func:`smoothed_ridge_drift`): the penalty draws the map to the identity, not to 0.

    Example:
        >>> a = torch.tensor([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]])
        >>> turn = torch.tensor([[0.0, 1.0], [-1.0, 0.0]])
        >>> linear_drift(a, a @ turn, ridge=0.0).round(decimals=6) + 0.0
        tensor([[ 0.,  1.],
                [-1.,  0.]], dtype=torch.float64)
    """
    a, b = _pair(before, after)
    identity = torch.eye(a.shape[1], dtype=a.dtype, device=a.device)
    return identity + _regress(a, b - a, ridge)


def smoothed_ridge_drift(before: Tensor, after: Tensor, *, ridge: float, tau: float) -> Tensor:
    r"""Return the ridge regression of new features on old ones, mixed with the identity.

    With :math:`w = \exp(-N / (\tau D))`

    .. math:: T = (1 - w)\, (a^\top a + \gamma I)^{-1} a^\top b + w I, \qquad
              \gamma = \rho\, \operatorname{tr}(a^\top a) / D

    The penalty shrinks: features that did not move become smaller, by the share that
    :math:`\gamma` has in each direction.

    Args:
        before: ``a``, ``(N, D)``; there may be no rows, then nothing moves.
        after: ``b``, ``(N, D)``.
        ridge: :math:`\rho \ge 0`.
        tau: :math:`\tau > 0`; the larger, the more images are wanted.

    Returns:
        ``T``, ``(D, D)``, in float64.

    Raises:
        ValueError: If the shapes differ, ``ridge`` is negative or ``tau`` not positive.

    Source:
        SLDC, arXiv 2511.09926, written there for columns:
        :math:`A = F_t F_{t-1}^\top (F_{t-1} F_{t-1}^\top + \gamma I)^{-1}`, of which this is the
        transpose. Differs: :math:`\gamma` is relative to the mean eigenvalue.

    Example:
        >>> a = torch.eye(2)
        >>> smoothed_ridge_drift(a, 3 * a, ridge=0.0, tau=1e-3).round(decimals=6)
        tensor([[3., 0.],
                [0., 3.]], dtype=torch.float64)
    """
    if tau <= 0:
        raise ValueError(f"tau must be positive, not {tau}")
    a, b = _pair(before, after)
    n, width = a.shape
    share = torch.exp(torch.tensor(-n / (tau * max(1, width)), dtype=a.dtype))
    identity = torch.eye(width, dtype=a.dtype, device=a.device)
    return (1 - share) * _regress(a, b, ridge) + share * identity


def nearest_neighbour_drift(
    before: Tensor, after: Tensor, means: Tensor, *, temperature: float = 0.1
) -> Tensor:
    r"""Move means by what the images that look most like them have moved.

    .. math:: m' = m + \sum_i w_i (b_i - a_i), \qquad
              w = \operatorname{softmax}_i \bigl(\cos(m, a_i) / \theta\bigr)

    Args:
        before: ``a``, ``(N, D)``; where there are no rows nothing moves.
        after: ``b``, ``(N, D)``.
        means: ``m``, ``(R, D)``.
        temperature: :math:`\theta > 0`.

    Returns:
        ``(R, D)``, in float64.

    Raises:
        ValueError: If shapes do not match or the temperature is not positive.

    Source:
        HopDC, arXiv 2602.00144. Differs: written from the formula alone; the rest of the method,
        and any code of it, is not followed.

    Example:
        >>> a = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> b = torch.tensor([[1.0, 5.0], [0.0, 1.0]])
        >>> nearest_neighbour_drift(a, b, torch.tensor([[2.0, 0.0]]), temperature=0.01)
        tensor([[2., 5.]], dtype=torch.float64)
    """
    if temperature <= 0:
        raise ValueError(f"temperature must be positive, not {temperature}")
    a, b, m = _triple(before, after, means)
    cosines = torch.nn.functional.normalize(m, dim=1) @ torch.nn.functional.normalize(a, dim=1).T
    return _weighted(cosines / temperature, a, b, m)


def gaussian_kernel_drift(before: Tensor, after: Tensor, means: Tensor, *, sigma: float) -> Tensor:
    r"""Move means by what the images near them have moved.

    .. math:: m' = m + \frac{\sum_i w_i (b_i - a_i)}{\sum_i w_i}, \qquad
              w_i = \exp\bigl(-\|a_i - m\|^2 / (2 \sigma^2)\bigr)

    Args:
        before: ``a``, ``(N, D)``; where there are no rows nothing moves.
        after: ``b``, ``(N, D)``.
        means: ``m``, ``(R, D)``.
        sigma: :math:`\sigma > 0`, in the units of the features.

    Returns:
        ``(R, D)``, in float64.

    Raises:
        ValueError: If shapes do not match or ``sigma`` is not positive.

    Source:
        SDC, Yu et al., CVPR 2020; with :math:`\sigma = 4` in SSIAT. Differs: weights are normalised
        before they underflow, so a mean far from all images moves with the nearest.

    Example:
        >>> a = torch.tensor([[0.0, 0.0], [9.0, 0.0]])
        >>> b = torch.tensor([[0.0, 1.0], [9.0, 3.0]])
        >>> gaussian_kernel_drift(a, b, torch.tensor([[4.5, 0.0], [90.0, 0.0]]), sigma=1.0)
        tensor([[ 4.5000,  2.0000],
                [90.0000,  3.0000]], dtype=torch.float64)
    """
    if sigma <= 0:
        raise ValueError(f"sigma must be positive, not {sigma}")
    a, b, m = _triple(before, after, means)
    distances = m.square().sum(1)[:, None] + a.square().sum(1) - 2 * (m @ a.T)  # (R, N)
    return _weighted(-distances / (2 * sigma**2), a, b, m)


def _weighted(scores: Tensor, a: Tensor, b: Tensor, means: Tensor) -> Tensor:
    return means + scores.softmax(dim=1) @ (b - a) if len(a) else means.clone()


def _regress(a: Tensor, targets: Tensor, ridge: float) -> Tensor:
    """Return the ridge regression of targets on rows, by the smaller of the two systems."""
    if ridge < 0:
        raise ValueError(f"ridge must not be negative, but is {ridge}")
    n, width = a.shape
    energy = a.square().sum()
    if not n or energy == 0:
        return a.new_zeros(width, targets.shape[1])
    if ridge == 0:
        least: Tensor = torch.linalg.pinv(a) @ targets  # a pseudo-inverse: rank may be missing
        return least
    dual = n < width
    system = a @ a.T if dual else a.T @ a
    system.diagonal().add_(ridge * energy / width)
    factor = torch.linalg.cholesky(system)
    if dual:
        return a.T @ torch.cholesky_solve(targets, factor)
    return torch.cholesky_solve(a.T @ targets, factor)


def _pair(before: Tensor, after: Tensor) -> tuple[Tensor, Tensor]:
    if before.ndim != 2 or before.shape != after.shape:
        raise ValueError(
            "features before and after are those of the same images, (N, D), not "
            f"{tuple(before.shape)} and {tuple(after.shape)}"
        )
    return in_double(before), in_double(after)


def _triple(before: Tensor, after: Tensor, means: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    a, b = _pair(before, after)
    if means.ndim != 2 or means.shape[1] != a.shape[1]:
        raise ValueError(
            f"means must be (R, D) of the features' width {a.shape[1]}, not {tuple(means.shape)}"
        )
    return a, b, in_double(means).to(a.device)
