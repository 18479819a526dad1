"""The projection that the released code of PEGP applies to a ViT, to compare with.

It reduces whole images to decorrelated PCA scores, whose Gram is diagonal; the singular vectors
of a diagonal matrix are unit vectors. What it protects are therefore the first coordinates:

    s = squared singular values of the centred (images, tokens * dimensions) matrix
    r <- update of r by the energies s^2 (:func:`released_mask`)
    g[:, :r] <- 0

For the projection that the paper states see :mod:`avalanche_peftcl.functional.subspace`.
"""

import torch
from torch import Tensor


def released_spectrum(features: Tensor, *, components: int) -> Tensor:
    """Return the diagonal of the Gram that the released code builds from PCA scores.

    Every image is one row, all its tokens side by side. Its PCA scores are decorrelated, so
    their Gram is diagonal: entry ``i`` is the squared ``i``-th singular value of the centred rows,
    and says nothing about dimension ``i`` of the features.

    Args:
        features: Tokens of whole images, ``(B, N, D)``.
        components: The scores kept; the release takes ``D``.

    Returns:
        ``(components,)`` in float64, descending, on the device of ``features``; zeros behind the
        ``min(components, B, N * D)`` scores that there are.

    Raises:
        ValueError: If ``features`` has not three axes or is not finite, or ``components`` is
            less than one.

    Source:
        Qiao et al., arXiv 2405.13383; released code JingyangQiao/PEGP f6515bf (PEGP-ViT).
        Differs: exact, where scikit-learn may choose a randomised solver; more components than
        scores are filled with zeros, where scikit-learn raises.

    Example:
        >>> released_spectrum(torch.tensor([[[1.0, 0.0]], [[-1.0, 0.0]]]), components=2)
        tensor([2., 0.], dtype=torch.float64)
    """
    if features.ndim != 3 or components < 1:
        raise ValueError(
            "features must be (B, N, D) and components positive, not "
            f"{tuple(features.shape)} and {components}"
        )
    if not torch.isfinite(features).all():
        raise ValueError("the features have entries that are not finite")
    images = len(features)
    inner = features.new_zeros(images, images, dtype=torch.float64)
    for token in features.detach().unbind(1):  # column means are apart, so tokens can be, too
        centred = token.double()
        centred = centred - centred.mean(dim=0)
        inner += centred @ centred.mT
    values = torch.linalg.eigvalsh(inner).clamp(min=0).flip(0)
    values = values[: min(components, features[0].numel() if images else 0)]
    return torch.cat([values, values.new_zeros(components - len(values))])


def released_mask(mask_size: int | None, spectrum: Tensor, *, threshold: float) -> int:
    r"""Return how many leading coordinates the released code protects after one more task.

    It zeroes the gradient of the first r coordinates; it has nothing to do with old features.
    The update is that of GPM on a diagonal Gram: its singular values are the entries of the
    spectrum, so the energies are :math:`\sigma^4`; and since they descend, the largest directions
    of what the mask leaves are simply the next coordinates. With :math:`c_i` the share of the
    energy in the first :math:`i` coordinates, the first task protects as many as there are
    :math:`i \ge 1` with :math:`c_i < \epsilon`; a later task adds coordinate :math:`i + 1`, in
    order, while :math:`c_i < \epsilon`. Where the first coordinate alone holds
    :math:`\epsilon`, the first task protects nothing, and the next one protects it.

    Args:
        mask_size: The coordinates protected so far, which may be 0; ``None`` is the first task.
        spectrum: ``(C,)``, descending, of :func:`released_spectrum`.
        threshold: :math:`\epsilon` in ``[0, 1]``; released: 0.999 for adapters, 0.99 for LoRA.

    Returns:
        The new size, from ``mask_size`` (or 0) to ``C``; as it was where the spectrum is zero.

    Raises:
        ValueError: If the spectrum is not one axis, or the size or threshold out of its range.

    Source:
        Saha et al., "Gradient Projection Memory for Continual Learning", ICLR 2021, as in the
        released code of Qiao et al., arXiv 2405.13383: JingyangQiao/PEGP f6515bf (PEGP-ViT).
        Differs: never more than ``C`` coordinates, where the release has no cap.

    Example:
        >>> spectrum = torch.tensor([8.0, 4.0, 2.0, 1.0])
        >>> first = released_mask(None, spectrum, threshold=0.98)
        >>> first, released_mask(first, spectrum, threshold=0.98)
        (2, 3)
    """
    held = mask_size or 0
    if spectrum.ndim != 1 or not 0 <= held <= len(spectrum):
        raise ValueError(
            f"mask_size must lie between 0 and the length of a spectrum (C,), not be {held} "
            f"for a spectrum of shape {tuple(spectrum.shape)}"
        )
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold must lie in [0, 1], not be {threshold}")
    energy = spectrum.double().square()
    if not energy.any():
        return held
    share = energy.cumsum(0)
    share = share / share[-1]
    if mask_size is None:
        return int((share < threshold).sum())
    before = torch.cat([share.new_zeros(1), share])[held:-1]  # held before each further coordinate
    return held + int((before < threshold).sum())


def coordinate_basis(dim: int, size: int) -> Tensor:
    """Return the first ``size`` unit vectors as columns.

    Args:
        dim: ``D``.
        size: ``K``, from 0 to ``D``.

    Returns:
        ``(D, K)``; removing the component along it zeroes the first ``K`` coordinates.

    Raises:
        ValueError: If ``size`` is not between 0 and ``dim``.

    Example:
        >>> coordinate_basis(3, 1).T
        tensor([[1., 0., 0.]])
    """
    if not 0 <= size <= dim:
        raise ValueError(f"size must lie between 0 and {dim}, not be {size}")
    return torch.eye(dim, size)
