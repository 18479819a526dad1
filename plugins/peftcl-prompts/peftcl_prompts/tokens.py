"""Further tokens behind those in front of the patches, image by image."""

import torch
from torch import Tensor


def insert(tokens: Tensor, prompts: Tensor, prefix: int) -> Tensor:
    """Put prompts behind the prefix tokens.

    Args:
        tokens: ``(B, N, D)``.
        prompts: ``(B, P, D)``.
        prefix: Tokens in front of the patches.

    Returns:
        ``(B, N + P, D)``.

    Example:
        >>> insert(torch.zeros(1, 3, 1), torch.ones(1, 2, 1), 1)[0, :, 0]
        tensor([0., 1., 1., 0., 0.])
    """
    return torch.cat([tokens[:, :prefix], prompts.to(tokens.dtype), tokens[:, prefix:]], dim=1)
