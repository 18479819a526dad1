"""DualGPM: the directions that old inputs take up, or those that they leave: the fewer ones.

With the Gram R of a layer's inputs and an orthonormal basis M, where M spans what is taken

    R' = R - M M^T R,   M <- [M, U]              U: leading left singular vectors of R'

until the energy (squared singular values) of what M holds is a share of R's; where it spans what
is left, R' = M M^T R and its leading directions are taken out of M.
"""

import torch
from torch import Tensor

from avalanche_peftcl.functional import complement, in_double

_ROUNDING = 1e-10  # share of the energy


def free_part(gram: Tensor, basis: Tensor, *, spans_free: bool) -> Tensor:
    """Return the part of a Gram whose columns lie where old inputs are not.

    Args:
        gram: ``(D, D)``.
        basis: Orthonormal columns, ``(D, K)``.
        spans_free: Whether these span what old inputs leave, else what they take.

    Returns:
        ``(D, D)`` in float64.
    """
    gram, basis = in_double(gram), in_double(basis)
    inside = basis @ (basis.mT @ gram)
    return inside if spans_free else gram - inside


def free_directions(gram: Tensor, basis: Tensor, count: int, *, spans_free: bool) -> Tensor:
    """Return where new inputs have most of their energy, out of what old inputs leave.

    Args:
        gram: Of the new inputs, ``(D, D)``.
        basis: As of :func:`free_part`, like the last.
        count: How many directions, at most ``D``.
        spans_free: As there.

    Returns:
        Orthonormal rows, ``(count, D)``, in float64; those for which there is no energy are zero.

    Source:
        Liang and Li, InfLoRA, CVPR 2024, released code e08b00e.
        Differs: a direction without energy is zero, where any vector would do to the release and
        need not be orthogonal to old inputs.

    Example:
        >>> taken = torch.tensor([[1.0], [0.0], [0.0]])
        >>> gram = torch.diag(torch.tensor([9.0, 1.0, 0.0]))
        >>> free_directions(gram, taken, 2, spans_free=False).abs().tolist()
        [[0.0, 1.0, 0.0], [0.0, 0.0, 0.0]]
    """
    rest = free_part(gram, basis, spans_free=spans_free)
    left, values, _ = torch.linalg.svd(rest)
    there = values[:count].square() > _ROUNDING * in_double(gram).square().sum()
    rows: Tensor = left[:, :count].mT * there[:, None]
    return rows


def extend_memory(
    gram: Tensor, basis: Tensor, *, spans_free: bool, threshold: float
) -> tuple[Tensor, bool]:
    r"""Let a memory hold a share of the energy of inputs that become old.

    Args:
        gram: Of these, ``(D, D)``.
        basis: As of :func:`free_part`, like the next.
        spans_free: As there.
        threshold: The share :math:`\epsilon`, in [0, 1], of the summed squares of R's singular
            values.

    Returns:
        The basis in float64 and what it spans. Once more than half of the directions are taken it
        spans what is left, for ever.

    Source:
        Liang and Li, Adaptive plasticity improvement, CVPR 2023, and InfLoRA, CVPR 2024, released
        code e08b00e. Differs: the rule by which a basis of what is left shrinks is the mirror image
        of that by which the other grows; ours is from its description, not from the code.

    Example:
        >>> gram = torch.diag(torch.tensor([9.0, 1.0, 0.1, 0.0]))
        >>> basis, spans_free = extend_memory(
        ...     gram, torch.zeros(4, 0), spans_free=False, threshold=0.9
        ... )
        >>> basis.abs().flatten().tolist(), spans_free
        ([1.0, 0.0, 0.0, 0.0], False)
    """
    gram, basis = in_double(gram), in_double(basis)
    total = gram.square().sum()
    if total <= 0:
        return basis, spans_free
    left, values, _ = torch.linalg.svd(free_part(gram, basis, spans_free=spans_free))
    energies = values.square()
    # before direction i is taken, those from i on are what is not held
    missing = energies.flip(0).cumsum(0).flip(0) > (1 - threshold + _ROUNDING) * total
    taken = left[:, : int((missing & (energies > _ROUNDING * total)).sum())]
    if spans_free:
        inside = basis.mT @ taken  # coordinates in the basis, orthonormal as taken lies in it
        return basis @ complement(torch.linalg.qr(inside).Q), True
    basis = torch.linalg.qr(torch.cat([basis, taken], dim=1)).Q
    if basis.shape[1] > len(basis) / 2:
        return complement(basis), True
    return basis, False
