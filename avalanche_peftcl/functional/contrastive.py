"""The contrastive loss of images and their texts."""

import torch
from torch import Tensor
from torch.nn import functional as F


def contrastive_loss(
    images: Tensor, texts: Tensor, scale: float, *, same: Tensor | None = None
) -> Tensor:
    r"""Let each image find its text among those of the minibatch, and each text its image.

    With :math:`s_{ij} = \tau \cos(z_i, w_j)` and :math:`N_i` all pairs but those that are said to
    be the same,

    .. math::
        -\frac 1 {2B} \sum_i \Bigl[ \ln \frac{e^{s_{ii}}}{\sum_{j \in N_i} e^{s_{ij}}}
        + \ln \frac{e^{s_{ii}}}{\sum_{j \in N_i} e^{s_{ji}}} \Bigr]

    Args:
        images: :math:`z`, ``(B, E)``, of any length; normalised here.
        texts: :math:`w`, the text of each image, ``(B, E)``; likewise.
        scale: :math:`\tau > 0`, of a backbone its ``logit_scale``.
        same: ``(B, B)``, bool: pairs, in either order, that fit the text of each other and are left
            out of both sums; the diagonal does not count. ``None``: there are none.

    Returns:
        A scalar in float32; 0 with zero gradient where nothing is left to compare with.

    Raises:
        ValueError: If the shapes do not match or ``scale`` is not positive.

    Source:
        Radford et al., CLIP, arXiv 2103.00020, figure 3. Differs: ``same``; there, a text that
        stands twice in a minibatch is a negative of itself.

    Example:
        >>> z = torch.eye(3)
        >>> contrastive_loss(z, z, 1.0)
        tensor(0.5514)
        >>> contrastive_loss(z, z, 1.0, same=torch.ones(3, 3, dtype=torch.bool))
        tensor(0.)
    """
    if images.ndim != 2 or images.shape != texts.shape or not len(images):
        raise ValueError(
            "images and texts must both be (B, E), one at least, not "
            f"{tuple(images.shape)} and {tuple(texts.shape)}"
        )
    if scale <= 0:
        raise ValueError(f"scale must be positive, not {scale}")
    n = len(images)
    logits = scale * F.normalize(images.float(), dim=1) @ F.normalize(texts.float(), dim=1).T
    if same is not None:
        if same.shape != logits.shape:
            raise ValueError(f"same must be ({n}, {n}), not {tuple(same.shape)}")
        itself = torch.eye(n, dtype=torch.bool, device=same.device)
        logits = logits.masked_fill((same | same.T) & ~itself, -torch.inf)
    own = torch.arange(n, device=logits.device)
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
