"""Subspaces spanned by feature vectors, and how to keep an update out of them.

With the rows of X the features of the old tasks and M an orthonormal basis of their span

    R = X^T X                    streamed with :func:`gram`
    M <- orth [M, U]             U the leading eigenvectors of (I - M M^T) R (I - M M^T)
    g <- g - a (g M) M^T         a = 1: X g^T = 0, old features do not notice the update g
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from avalanche_peftcl.functional.precision import in_double


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
    left, values, _ = torch.linalg.svd(in_double(vectors), full_matrices=False)
    basis: Tensor = left[:, values > tolerance * values[0]].to(vectors.dtype)
    return basis


def gram(features: Tensor, *, groups: int = 1) -> Tensor:
    r"""Return the uncentred Gram matrix :math:`X^\top X` of feature rows, in float64.

    The Gram of a set is the sum over its batches, so it can be streamed with
    ``total += gram(batch)`` in whatever batches come. It is invariant to the order of the rows,
    and no gradient passes through it.

    Args:
        features: ``(..., G * D)`` of any dtype; every leading axis counts rows, which may be
            none. Group ``g`` owns the columns from ``g * D`` on.
        groups: ``G``, the blocks of columns that have a Gram each, such as attention heads.

    Returns:
        ``(G, D, D)`` in float64, on the device of ``features`` if it has float64; zeros where there
        are no rows.

    Raises:
        ValueError: If the last axis does not divide into ``groups``.

    Source:
        The representation matrix of Saha et al., "Gradient Projection Memory for Continual
        Learning", ICLR 2021, here as its Gram. Differs: all rows are used, none are stored; no
        centring, because an update moves the output of the mean feature as well.

    Example:
        >>> gram(torch.tensor([[1.0, 2.0], [3.0, 0.0]]))
        tensor([[[10.,  2.],
                 [ 2.,  4.]]], dtype=torch.float64)
    """
    if features.ndim == 0 or groups < 1 or features.shape[-1] % groups:
        raise ValueError(
            f"features of shape {tuple(features.shape)} do not divide into {groups} groups: "
            "their last axis must be a multiple of a positive number of groups"
        )
    width = features.shape[-1]
    rows = features.detach().reshape(features.shape[:-1].numel(), groups, width // groups)
    rows = in_double(rows).transpose(0, 1)  # (G, N, D)
    return rows.mT @ rows


def extend_basis(
    basis: Tensor, gram: Tensor, *, threshold: float, tolerance: float = 1e-10
) -> tuple[Tensor, float]:
    r"""Extend a basis until it holds a share of the energy of new features.

    With :math:`R` the Gram and :math:`\lambda_0 \ge \lambda_1 \ge \dots` the eigenvalues of
    :math:`(I - MM^\top) R (I - MM^\top)`, eigenvector :math:`i` is added while

    .. math:: \sum_{j \ge i} \lambda_j > (1 - \epsilon) \operatorname{tr} R
              \quad\text{and}\quad \lambda_i > \tau \operatorname{tr} R

    so that :math:`\epsilon = 1` takes every direction of the numerical rank and
    :math:`\epsilon = 0` none. The old span stays inside the new one.

    Args:
        basis: :math:`M`, orthonormal columns ``(D, K)`` in float32 or float64; ``K`` may be 0.
        gram: :math:`R`, ``(D, D)``, one group of what :func:`gram` returns.
        threshold: :math:`\epsilon` in ``[0, 1]``.
        tolerance: :math:`\tau`, the share of the energy that counts as rounding.

    Returns:
        The new basis ``(D, K')`` with ``K <= K' <= D``, in the dtype and on the device of
        ``basis`` (computed in float64, ``basis`` itself where nothing is added); and the share of
        the energy that it holds, in ``[0, 1]``, at least ``threshold`` up to ``tolerance`` for
        each direction left out. A Gram of zeros is held wholly: 1.0.

    Raises:
        ValueError: If the shapes do not match, the threshold is outside ``[0, 1]``, the Gram is
            not finite, or the basis is of half precision or not orthonormal.

    Source:
        Saha et al., "Gradient Projection Memory for Continual Learning", ICLR 2021; Qiao et al.,
        arXiv 2405.13383, its projection. Differs: the share is always reached (the first-task
        rule of the released GPM stops one direction short of it); energy is the squared singular
        value of the features (the released PEGP squares that of their Gram, see
        :mod:`avalanche_peftcl.functional.released_projection`); directions of rounding are never
        added and the basis is made orthonormal again, so it never has more than D columns nor
        one direction twice.

    Example:
        >>> features = torch.tensor([[3.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
        >>> basis, held = extend_basis(torch.zeros(3, 0), gram(features)[0], threshold=0.9)
        >>> basis.abs(), round(held, 6)
        (tensor([[1.],
                [0.],
                [0.]]), 0.9)
    """
    _check_extension(basis, gram, threshold)
    gram = in_double(gram)
    gram = (gram + gram.mT) / 2
    total = gram.trace()
    if total <= 0:
        return basis, 1.0
    size, count = basis.shape
    old = basis.to(gram)
    if count:
        old = torch.linalg.qr(old).Q  # orthonormal in float64, which a float32 basis is not
    rest = remove_component(remove_component(gram, old).mT, old)
    values, vectors = torch.linalg.eigh((rest + rest.mT) / 2)
    values = values.clamp(min=0)  # ascending: cumsum adds the small ones first
    # the tolerance here keeps rounding from adding a direction where the share is just reached
    missing = values.cumsum(0) > (1 - threshold + tolerance) * total
    added = int((missing & (values > tolerance * total)).sum())
    new = old
    if added:  # QR never returns more than D columns, whatever rounding may have added
        new = torch.linalg.qr(torch.cat([old, vectors[:, size - added :].flip(1)], dim=1)).Q
    held = float(((gram @ new) * new).sum() / total)
    return new.to(basis) if added else basis, min(max(held, 0.0), 1.0)


def extend_centred_basis(
    basis: Tensor,
    gram: Tensor,
    total: Tensor,
    count: int,
    *,
    threshold: float,
    tolerance: float = 1e-10,
) -> tuple[Tensor, float]:
    r"""Extend a basis by the mean of new features, then by the energy of what varies about it.

    With :math:`\mu = s / n` the mean direction comes first, whatever the threshold; directions of

    .. math:: R_c = R - s s^\top / n

    are added to it by the rule of :func:`extend_basis`, which counts the energy of
    :math:`R_c`: a mean that holds nearly all energy then leaves no direction of the rest out.

    Args:
        basis: :math:`M`, as of :func:`extend_basis`.
        gram: :math:`R`, uncentred, ``(D, D)``.
        total: :math:`s`, the sum of the same rows, ``(D,)``.
        count: :math:`n`, how many rows they are.
        threshold: :math:`\epsilon` in ``[0, 1]``; 0 adds the mean alone.
        tolerance: The share of the *uncentred* energy that counts as rounding, which is that of
            the difference above.

    Returns:
        The new basis and the share of the centred energy that it holds, as of
        :func:`extend_basis`.

    Raises:
        ValueError: As of :func:`extend_basis`, and if ``total`` is not ``(D,)``.

    Source:
        The threshold of Saha et al., ICLR 2021, counted on the covariance. Differs: they count
        on the uncentred features, see :func:`extend_basis`.

    Example:
        >>> rows = torch.tensor([[9.0, 1.0, 0.0], [9.0, -1.0, 0.0], [9.0, 0.0, 0.1]])
        >>> sums = gram(rows)[0], rows.sum(0), 3
        >>> basis, _ = extend_centred_basis(torch.zeros(3, 0), *sums, threshold=0.9)
        >>> basis.shape, extend_basis(torch.zeros(3, 0), sums[0], threshold=0.9)[0].shape
        (torch.Size([3, 2]), torch.Size([3, 1]))
    """
    _check_extension(basis, gram, threshold)
    if total.shape != gram.shape[:1]:
        raise ValueError(f"the sum of rows must be ({len(gram)},), not {tuple(total.shape)}")
    gram, total = in_double(gram), in_double(total)
    energy = gram.trace()
    if count < 1 or energy <= 0:
        return basis, 1.0
    new = basis.to(gram)
    away = remove_component(remove_component(total[None], new), new)[0]
    if away.square().sum() > tolerance * count * energy:
        new = torch.linalg.qr(torch.cat([new, away[:, None]], dim=1)).Q
    centred = gram - torch.outer(total, total) / count
    rounding = float(tolerance * energy)
    if (varies := float(centred.trace())) <= rounding:  # the rows are all alike
        return new.to(basis), 1.0
    new, held = extend_basis(new, centred, threshold=threshold, tolerance=rounding / varies)
    return new.to(basis), held


def _check_extension(basis: Tensor, gram: Tensor, threshold: float) -> None:
    """Refuse what :func:`extend_basis` cannot extend."""
    if basis.ndim != 2 or gram.shape != (basis.shape[0], basis.shape[0]):
        raise ValueError(
            f"the basis must be (D, K) and the Gram (D, D), not {tuple(basis.shape)} and "
            f"{tuple(gram.shape)}; extend the groups of a Gram one at a time"
        )
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold must lie in [0, 1], not be {threshold}")
    if not torch.isfinite(gram).all():
        raise ValueError("the Gram has entries that are not finite; look at the features")
    if basis.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"a basis must be float32 or float64, not {basis.dtype}: rounded further it is not "
            "orthonormal; remove_component casts it where it is used"
        )
    overlap = in_double(basis).mT @ in_double(basis)
    if not torch.allclose(overlap, torch.eye(*overlap.shape).to(overlap), rtol=0, atol=1e-4):
        raise ValueError(
            "the columns of the basis are not orthonormal; see orthonormal_basis, and extend a "
            "basis before stack_bases pads it"
        )


def remove_component(x: Tensor, basis: Tensor, *, strength: float = 1.0) -> Tensor:
    r"""Remove from the rows of ``x`` their part inside the span of ``basis``, or a share of it.

    .. math:: x' = x - \alpha\, (x V) V^\top

    Args:
        x: Rows, ``(..., R, D)``.
        basis: Orthonormal or zero columns, ``(..., D, K)``; its leading axes broadcast with
            those of ``x``.
        strength: :math:`\alpha` in ``[0, 1]``; 1 leaves nothing of it.

    Returns:
        A tensor of the dtype and device of ``x``, which is not changed; ``x`` itself if
        ``K = 0`` or the strength is 0. Computed in the dtype of ``x``, half precision in float32.
        Rounding is that of the matrix product: neither TF32 nor autocast should be on.

    Raises:
        ValueError: If the last axis of ``x`` is not ``D``, or the strength is outside ``[0, 1]``.

    Source:
        Saha et al., ICLR 2021; Qiao et al., arXiv 2405.13383, eqs. (10), (12) and (14) by way of
        their projection; a strength below 1 is the soft projection of DGS, CVPR 2026, there 0.5.
        Differs: the product with the ``(D, D)`` projector is never formed.

    Example:
        >>> remove_component(torch.tensor([[3.0, 4.0]]), torch.tensor([[1.0], [0.0]]))
        tensor([[0., 4.]])
    """
    if basis.ndim < 2 or x.ndim == 0 or x.shape[-1] != basis.shape[-2]:
        raise ValueError(
            f"x must be (..., R, D) and the basis (..., D, K), not {tuple(x.shape)} and "
            f"{tuple(basis.shape)}"
        )
    if not 0 <= strength <= 1:
        raise ValueError(f"strength must lie in [0, 1], not be {strength}")
    if basis.shape[-1] == 0 or strength == 0:
        return x
    rows = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    columns = basis.to(rows.dtype)
    inside = rows @ columns @ columns.mT
    return (rows - (inside if strength == 1 else strength * inside)).to(x.dtype)


def stack_bases(bases: Sequence[Tensor]) -> Tensor:
    """Stack bases of different sizes for one batched :func:`remove_component`.

    Args:
        bases: ``S >= 1`` matrices ``(D, K_s)`` of one ``D``.

    Returns:
        ``(S, D, max K_s)``; the columns behind a smaller basis are zero and remove nothing.

    Raises:
        ValueError: If there is no basis, or they are not matrices of one ``D``.

    Example:
        >>> stack_bases([torch.eye(2), torch.zeros(2, 0)]).shape
        torch.Size([2, 2, 2])
    """
    shapes = [tuple(basis.shape) for basis in bases]
    if not bases or any(basis.ndim != 2 for basis in bases) or len({s[0] for s in shapes}) > 1:
        raise ValueError(f"bases must be at least one (D, K) matrix of one D, not {shapes}")
    width = max(basis.shape[1] for basis in bases)
    return torch.stack([F.pad(basis, (0, width - basis.shape[1])) for basis in bases])
