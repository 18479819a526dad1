"""Losses, and what goes into them; each is a pure function."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def pooled_nce(features: Tensor, labels: Tensor, *, temperature: float = 0.1) -> Tensor:
    r"""Contrast all pairs of one label with all pairs, pooled under one logarithm.

    With :math:`s_{ij} = \hat z_i \cdot \hat z_j / \tau` and :math:`N` rows

    .. math::
        \mathrm{NCE} = -\ln \sum_{i \ne j,\; y_i = y_j} e^{s_{ij}}
                       + \frac1N \sum_i \ln \sum_{j \ne i} e^{s_{ij}}

    Minimising it draws features of one label nearer than others on average only: the one logarithm
    over all pairs of a label pulls those that are closest, and the other term pushes every pair
    apart, so that distant features of one label part further.

    Args:
        features: ``(N, D)``, of any length; normalised here.
        labels: ``(N,)`` integers.
        temperature: :math:`\tau > 0`.

    Returns:
        A scalar; 0 with zero gradient where no two rows share a label.

    Raises:
        ValueError: If the shapes do not match or the temperature is not positive.

    Source:
        Liu et al., arXiv 2407.17120; released code 24de712 (``nce_loss``). Differs: nothing; the
        release adds it with a minus sign, see :class:`avalanche_peftcl.training.NTKCL`.

    Example:
        >>> z = torch.eye(2).repeat(2, 1)
        >>> same, other = torch.tensor([0, 1, 0, 1]), torch.tensor([0, 0, 1, 1])
        >>> bool(pooled_nce(z, same) < pooled_nce(z, other))
        True
    """
    if features.ndim != 2 or labels.shape != features.shape[:1]:
        raise ValueError(
            "features must be (N, D) and labels (N,), not "
            f"{tuple(features.shape)} and {tuple(labels.shape)}"
        )
    if temperature <= 0:
        raise ValueError(f"temperature must be positive, not {temperature}")
    n = len(features)
    if n < 2:
        return features.sum() * 0.0
    normed = F.normalize(features.float(), dim=1)
    similarity = normed @ normed.T / temperature  # (N, N)
    itself = torch.eye(n, dtype=torch.bool, device=features.device)
    positive = (labels[:, None] == labels[None, :]) & ~itself
    any_positive = positive.any()
    # torch.where twice keeps the gradient finite without asking the device for a decision
    pairs = similarity.masked_fill(~positive, -torch.inf)
    pairs = torch.where(any_positive, pairs, torch.zeros_like(pairs))
    others = similarity.masked_fill(itself, -torch.inf)
    loss = others.logsumexp(dim=1).mean() - pairs.flatten().logsumexp(dim=0)
    return torch.where(any_positive, loss, torch.zeros_like(loss))


def span_energy(features: Tensor, basis: Tensor) -> Tensor:
    r"""Return how much of each feature's direction lies in the span of ``basis``.

    .. math:: \sum_b \lVert B^\top \hat z_b \rVert^2

    Args:
        features: ``(B, D)``, of any length; normalised here.
        basis: Orthonormal columns, ``(D, K)``; ``K = 0`` gives 0.

    Returns:
        A scalar in ``[0, B]``; 0 exactly when every feature is orthogonal to the span.

    Raises:
        ValueError: If the last axes do not match.

    Source:
        The orthogonality that arXiv 2407.17120 states; the release has another term, see
        :func:`released_orthogonality`. Differs: the paper's own formula could not be read.

    Example:
        >>> span_energy(torch.tensor([[3.0, 4.0]]), torch.tensor([[1.0], [0.0]]))
        tensor(0.3600)
    """
    if features.shape[-1] != basis.shape[0]:
        raise ValueError(
            f"features have {features.shape[-1]} dimensions, the basis {basis.shape[0]}"
        )
    return (F.normalize(features.float(), dim=-1) @ basis).square().sum()


def released_direction(prototypes: Tensor, *, columns: int = 40) -> Tensor:
    r"""Return the constant vector along which the released orthogonality term pushes.

    .. math:: v = (I - B B^\top)\, \mathbf 1

    with :math:`B` the first ``columns`` left singular vectors of the normalised prototypes, from
    a full SVD: beyond the rank they are whatever the linear algebra library returns, and for
    zero prototypes they are the first coordinates.

    Args:
        prototypes: Rows of all classes, ``(C, D)``; rows of classes to come are zero.
        columns: How many singular vectors, at most ``D`` are used.

    Returns:
        ``(D,)``.

    Source:
        Released NTK-CL code 24de712. Differs: the SVD of one experience is made once, not in
        each step; the numbers are the same.

    Example:
        >>> released_direction(torch.zeros(2, 4), columns=3)
        tensor([0., 0., 0., 1.])
    """
    matrix = F.normalize(prototypes.float(), dim=1).T  # (D, C)
    left = torch.linalg.svd(matrix, full_matrices=True)[0][:, :columns]  # (D, k)
    ones = matrix.new_ones(len(matrix))
    direction: Tensor = ones - left @ (left.T @ ones)
    return direction


def released_orthogonality(features: Tensor, direction: Tensor) -> Tensor:
    r"""Return the released orthogonality term, a signed sum over entries.

    .. math:: \sum_b \sum_d \left[(I - B B^\top)\, \hat z_b\right]_d = \sum_b \hat z_b \cdot v

    It is no penalty: its gradient is one constant direction outside the prototypes' span.

    Args:
        features: ``(B, D)``; normalised here.
        direction: :math:`v` of :func:`released_direction`, ``(D,)``.

    Returns:
        A scalar of either sign.

    Source:
        Released NTK-CL code 24de712. Differs: nothing.

    Example:
        >>> released_orthogonality(torch.tensor([[3.0, 4.0]]), torch.tensor([0.0, 1.0]))
        tensor(0.8000)
    """
    return (F.normalize(features.float(), dim=-1) @ direction).sum()


def less_margin(logits: Tensor, targets: Tensor, *, margin: Tensor | float) -> Tensor:
    r"""Take a margin off the logit of each row's own class, which the others then must stay below.

    With logits :math:`s \cos\theta_{bc}` and a margin :math:`s\,m`, cross-entropy of what comes
    back is

    .. math::
        -\ln \frac{e^{s (\cos\theta_{by} - m)}}
                  {e^{s (\cos\theta_{by} - m)} + \sum_{c \ne y} e^{s \cos\theta_{bc}}}

    Args:
        logits: ``(B, C)``.
        targets: Own class of each row, ``(B,)`` integers.
        margin: In units of the logits, a number or a scalar with gradient.

    Returns:
        ``(B, C)``, in the dtype of ``logits``, which is not changed.

    Raises:
        ValueError: If the shapes do not match.

    Source:
        Wang et al., "CosFace: Large Margin Cosine Loss", CVPR 2018, eq. (4). Differs: nothing.

    Example:
        >>> less_margin(torch.tensor([[2.0, 1.0]]), torch.tensor([0]), margin=0.5)
        tensor([[1.5000, 1.0000]])
    """
    if logits.ndim != 2 or targets.shape != logits.shape[:1]:
        raise ValueError(
            "logits must be (B, C) and targets (B,), not "
            f"{tuple(logits.shape)} and {tuple(targets.shape)}"
        )
    own = F.one_hot(targets, logits.shape[1]).to(logits)
    return logits - own * margin


def symmetric_cross_entropy(
    logits: Tensor,
    targets: Tensor,
    *,
    weight: float = 1.0,
    reverse_weight: float = 0.1,
    floor: float = 1e-4,
) -> Tensor:
    r"""Return cross-entropy plus that of the label under the prediction, which wrong labels bound.

    With :math:`p = \operatorname{softmax}(z)` and a label's zeros raised to :math:`\epsilon`,

    .. math:: -\frac 1 B \sum_b \Bigl[ a \ln p_{b y_b} + b \sum_c p_{bc} \ln
              \max([c = y_b], \epsilon) \Bigr]

    Args:
        logits: ``z``, ``(B, C)``.
        targets: ``y``, ``(B,)`` integers.
        weight: :math:`a \ge 0`.
        reverse_weight: :math:`b \ge 0`.
        floor: :math:`\epsilon` in ``(0, 1)``.

    Returns:
        A scalar, in float32.

    Raises:
        ValueError: If the shapes do not match or a number is out of range.

    Source:
        Wang et al., "Symmetric Cross Entropy for Robust Learning with Noisy Labels", ICCV 2019; in
        SLCA++, arXiv 2408.08295, with 1 and 0.1 on CIFAR-100 and 0.5 and 0.5 on ImageNet-R.
        Differs: nothing; the floor is from memory of the released code of the former.

    Example:
        >>> logits, targets = torch.tensor([[2.0, 0.0]]), torch.tensor([0])
        >>> symmetric_cross_entropy(logits, targets, reverse_weight=0.0)
        tensor(0.1269)
        >>> symmetric_cross_entropy(logits, targets, weight=0.0, reverse_weight=1.0)
        tensor(1.0979)
    """
    if logits.ndim != 2 or targets.shape != logits.shape[:1]:
        raise ValueError(
            "logits must be (B, C) and targets (B,), not "
            f"{tuple(logits.shape)} and {tuple(targets.shape)}"
        )
    if min(weight, reverse_weight) < 0 or not 0 < floor < 1:
        raise ValueError(
            f"weight={weight} and reverse_weight={reverse_weight} must not be negative, and "
            f"floor={floor} must be between 0 and 1"
        )
    logs = F.log_softmax(logits.float(), dim=1)
    own = logs.gather(1, targets[:, None])[:, 0]
    reverse = -math.log(floor) * (1 - own.exp())  # all but the own class have the floor
    return (reverse_weight * reverse - weight * own).mean()


def centroid_contrast(features: Tensor, centroids: Tensor, *, temperature: float = 0.8) -> Tensor:
    r"""Ask that each feature, and each class centroid, be most like itself among all of them.

    With the rows of :math:`M` centroids first, features then,

    .. math:: -\frac 1 n \sum_{i=1}^n \ln
              \frac{e^{M_i \cdot M_i / \tau}}{\sum_j e^{M_i \cdot M_j / \tau}}

    Args:
        features: ``(B, D)``; they are not normalised.
        centroids: Means of other classes, without gradient, ``(K, D)``; there may be none.
        temperature: :math:`\tau > 0`.

    Returns:
        A scalar, in float32.

    Raises:
        ValueError: If the widths differ or the temperature is not positive.

    Source:
        Wang et al., HiDe-Prompt, NeurIPS 2023, released code 0ed4333; in MOS, AAAI 2025, too.
        Differs: nothing.

    Example:
        >>> centroid_contrast(torch.zeros(1, 2), torch.zeros(1, 2))
        tensor(0.6931)
    """
    if features.ndim != 2 or centroids.ndim != 2 or centroids.shape[1] != features.shape[1]:
        raise ValueError(
            "features must be (B, D) and centroids (K, D), not "
            f"{tuple(features.shape)} and {tuple(centroids.shape)}"
        )
    if temperature <= 0:
        raise ValueError(f"temperature must be positive, not {temperature}")
    rows = torch.cat([centroids.to(features).float(), features.float()])
    return F.cross_entropy(rows @ rows.T / temperature, torch.arange(len(rows)).to(rows.device))
