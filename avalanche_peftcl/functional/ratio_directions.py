"""Directions that new features need most and old ones least: a generalised eigenproblem."""

import torch
from torch import Tensor

from avalanche_peftcl.functional.precision import in_double


def ratio_directions(new: Tensor, old: Tensor, *, n_directions: int, ridge: float = 1e-3) -> Tensor:
    r"""Return the directions with the most energy of new features for that of old ones.

    They span the first ``K`` solutions :math:`u` of

    .. math:: S_{new}\, u = \lambda\, (S_{old} + \rho I)\, u, \qquad
              \rho = r \operatorname{tr}(S_{old}) / D

    by descending :math:`\lambda`. Of all :math:`U` with
    :math:`U^\top (S_{old} + \rho I)\, U = I` these have the largest
    :math:`\operatorname{tr}(U^\top S_{new}\, U)`. Neither Gram's scale matters, and neither the
    number of rows that it sums.

    Args:
        new: :math:`S_{new}`, the Gram of the features at hand, ``(D, D)``.
        old: :math:`S_{old}`, the sum of those before, ``(D, D)``.
        n_directions: ``K`` in ``[0, D]``.
        ridge: :math:`r > 0`, how much energy a direction is thought to have that no old feature
            has, relative to the mean over directions.

    Returns:
        Orthonormal columns ``(D, K)`` in float64.

    Raises:
        ValueError: If the shapes do not match, the Grams are not finite, ``n_directions`` is
            outside ``[0, D]``, or ``ridge`` is not positive.

    Source:
        The ratio of LoDA, arXiv 2603.00191. Differs: the energies' ratio of each direction is
        maximised in turn, not the ratio of the two traces, which no eigenproblem gives;
        :math:`\rho` is ours.

    Example:
        >>> new, old = torch.tensor([4.0, 3.0, 0.0]).diag(), torch.tensor([9.0, 1.0, 0.0]).diag()
        >>> ratio_directions(new, old, n_directions=1).abs().round(decimals=6)
        tensor([[0.],
                [1.],
                [0.]], dtype=torch.float64)
    """
    size = len(new)
    if new.ndim != 2 or new.shape != (size, size) or old.shape != new.shape:
        raise ValueError(
            f"both Grams must be (D, D), not {tuple(new.shape)} and {tuple(old.shape)}"
        )
    if not 0 <= n_directions <= size:
        raise ValueError(f"n_directions must lie in [0, {size}], not be {n_directions}")
    if not 0 < ridge < float("inf"):
        raise ValueError(f"ridge must be positive, not {ridge}")
    new, old = in_double(new), in_double(old)
    if not (torch.isfinite(new).all() and torch.isfinite(old).all()):
        raise ValueError("the Grams have entries that are not finite; look at the features")
    level = old.trace() / size
    scaled = (old + old.mT) / (2 * level) if level > 0 else torch.zeros_like(old)
    factor = torch.linalg.cholesky(scaled + ridge * torch.eye(size).to(old))
    # with B = L Lᵀ: (L⁻¹ S L⁻ᵀ) y = λ y and u = L⁻ᵀ y
    half = torch.linalg.solve_triangular(factor, (new + new.mT) / 2, upper=False)
    whitened = torch.linalg.solve_triangular(factor, half.mT, upper=False)
    vectors = torch.linalg.eigh((whitened + whitened.mT) / 2)[1].flip(1)[:, :n_directions]
    directions = torch.linalg.solve_triangular(factor.mT, vectors, upper=True)
    basis: Tensor = torch.linalg.qr(directions).Q
    return basis


def complement(basis: Tensor) -> Tensor:
    """Return an orthonormal basis of all that is orthogonal to ``basis``.

    Args:
        basis: Orthonormal columns, ``(D, K)``.

    Returns:
        ``(D, D - K)``, in its dtype.

    Example:
        >>> complement(torch.tensor([[1.0], [0.0]])).abs()
        tensor([[0.],
                [1.]])
    """
    rest: Tensor = torch.linalg.qr(basis, mode="complete").Q[:, basis.shape[1] :]
    return rest
