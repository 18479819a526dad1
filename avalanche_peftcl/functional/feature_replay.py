"""Features of classes drawn from Gaussians, and the loss by which a head is aligned to them."""

import torch
from torch import Tensor


def covariance_factor(covariance: Tensor, *, shrinkage: float, jitter: float = 0.0) -> Tensor:
    r"""Return a factor of a shrunk covariance: standard normal rows times it have that covariance.

    .. math:: F F^\top = (1 - \rho)\,\Sigma + \rho\,\tfrac{\operatorname{tr} \Sigma}{D}\,I
              + \varepsilon I

    Args:
        covariance: :math:`\Sigma`, symmetric and positive up to rounding, ``(..., D, D)``; that of
            a class of one image is 0.
        shrinkage: :math:`\rho` in ``[0, 1]``.
        jitter: :math:`\varepsilon \ge 0`.

    Returns:
        ``F``, ``(..., D, D)``: rows are ``noise @ F.mT``.

    Raises:
        ValueError: If the shrinkage or the jitter is out of range.

    Example:
        >>> covariance_factor(torch.diag(torch.tensor([4.0, 0.0])), shrinkage=0.0)
        tensor([[2., 0.],
                [0., 0.]])
    """
    if not 0 <= shrinkage <= 1:
        raise ValueError(f"shrinkage must be in [0, 1], not {shrinkage}")
    if jitter < 0:
        raise ValueError(f"jitter must not be negative, not {jitter}")
    width = covariance.shape[-1]
    shrunk = (1 - shrinkage) * (covariance + covariance.mT) / 2
    mean = covariance.diagonal(dim1=-2, dim2=-1).mean(dim=-1).clamp_min(0)  # (...)
    shrunk.diagonal(dim1=-2, dim2=-1).add_(shrinkage * mean[..., None] + jitter)
    flat = shrunk.reshape(-1, width, width)
    factors, failed = torch.linalg.cholesky_ex(flat)
    for i in failed.nonzero()[:, 0].tolist():  # of less than full rank
        values, vectors = torch.linalg.eigh(flat[i])
        factors[i] = vectors * values.clamp_min(0).sqrt() @ vectors.T
    whole: Tensor = factors.reshape(shrunk.shape)
    return whole


def aged_means(means: Tensor, born: Tensor, *, share: float) -> Tensor:
    r"""Draw class means towards 0, those of older classes further.

    .. math:: m_c' = \Bigl(1 - a + a\,\frac{b_c + 1}{1 + \max_{c'} b_{c'}}\Bigr)\, m_c

    Args:
        means: ``m``, ``(R, D)``.
        born: ``b``, number of the experience that each class came with, from 0, ``(R,)``.
        share: ``a`` in ``[0, 1]``.

    Returns:
        ``(R, D)``; the newest classes stay where they are.

    Raises:
        ValueError: If shapes do not match or the share is out of range.

    Source:
        Zhang et al., SLCA, ICCV 2023; released code GengDavid/SLCA 169d4e6, with a share of 0.1.
        Differs: nothing.

    Example:
        >>> aged_means(torch.ones(2, 1), torch.tensor([0, 1]), share=0.1).flatten()
        tensor([0.9500, 1.0000])
    """
    if means.ndim != 2 or born.shape != means.shape[:1]:
        raise ValueError(
            f"means must be (R, D) and born (R,), not {tuple(means.shape)} and {tuple(born.shape)}"
        )
    if not 0 <= share <= 1:
        raise ValueError(f"share must be in [0, 1], not {share}")
    if not len(means) or share == 0:
        return means
    age = (born + 1).to(means) / (born.max() + 1).to(means)  # (R,)
    return means * (1 - share + share * age)[:, None]


def normalised_logits(logits: Tensor, groups: Tensor, *, temperature: float = 0.1) -> Tensor:
    r"""Scale the logits of each image by their length, that of each group of rows alike.

    .. math:: \frac{z}{\tau\,\tfrac 1 G \sum_g \|z_g\|}

    so that a head cannot lower its loss by longer logits, only by better ones.

    Args:
        logits: ``z``, ``(B, R)``.
        groups: Group of each row, such as the experience that its class came with, ``(R,)``.
        temperature: :math:`\tau > 0`.

    Returns:
        ``(B, R)``.

    Raises:
        ValueError: If shapes do not match or the temperature is not positive.

    Source:
        Zhang et al., SLCA, ICCV 2023, and SLCA++, arXiv 2408.08295; released code GengDavid/SLCA
        169d4e6, whose rows are grouped by task. Differs: nothing.

    Example:
        >>> normalised_logits(torch.tensor([[3.0, 4.0, 15.0]]), torch.tensor([0, 0, 1]))
        tensor([[ 3.,  4., 15.]])
    """
    if logits.ndim != 2 or groups.shape != logits.shape[1:]:
        raise ValueError(
            f"logits must be (B, R) and groups (R,), not {tuple(logits.shape)} and "
            f"{tuple(groups.shape)}"
        )
    if temperature <= 0:
        raise ValueError(f"temperature must be positive, not {temperature}")
    each = sorted(set(groups.tolist()))
    lengths = [torch.linalg.vector_norm(logits[:, groups == g], dim=1, keepdim=True) for g in each]
    return logits / (temperature * (torch.stack(lengths).mean(dim=0) + 1e-7))
