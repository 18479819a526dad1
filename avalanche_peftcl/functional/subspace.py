"""Subspaces spanned by feature vectors."""

import torch
from torch import Tensor


def orthonormal_basis(vectors: Tensor, *, tolerance: float = 1e-6) -> Tensor:
    """Return an orthonormal basis of the span of ``vectors``, as many columns as its rank.

    Args:
        vectors: Columns, ``(D, C)``; zero columns and ``C = 0`` are allowed.
        tolerance: Singular values up to this share of the largest count as zero.

    Returns:
        ``(D, K)`` with ``K`` the rank, in the dtype of ``vectors`` (computed in float64).

    Raises:
        ValueError: If ``vectors`` is not a matrix.

    Example:
        >>> orthonormal_basis(torch.tensor([[2.0, 4.0], [0.0, 0.0], [0.0, 0.0]])).abs()
        tensor([[1.],
                [0.],
                [0.]])
    """
    if vectors.ndim != 2:
        raise ValueError(f"vectors must be a (D, C) matrix, not of shape {tuple(vectors.shape)}")
    if vectors.shape[1] == 0:
        return vectors.new_zeros(vectors.shape[0], 0)
    left, values, _ = torch.linalg.svd(vectors.double(), full_matrices=False)
    basis: Tensor = left[:, values > tolerance * values[0]].to(vectors.dtype)
    return basis
