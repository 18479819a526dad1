"""Attention of a frozen block to more than its tokens, for modules that bring keys or prompts."""

from torch import Tensor

from avalanche_peftcl.models.backbones.attention import (
    SelfAttention,
    in_front,
    keys_and_values,
    split_heads,
)
from avalanche_peftcl.models.backbones.backbone import Backbone


def attend_with_prefix(
    backbone: Backbone,
    index: int,
    tokens: Tensor,
    *,
    keys: Tensor,
    values: Tensor,
    queries: int | None = None,
) -> Tensor:
    r"""Attend in a block to further keys and values beside the tokens' own.

    .. math:: x + \mathrm{Attn}(q, [K; k], [V; v])

    Args:
        backbone: The frozen network.
        index: Which block, from 0.
        tokens: ``(B, N, D)``.
        keys: ``(P, D)``, or ``(B, P, D)`` where they differ from image to image; heads side by
            side, neither mapped nor normalised.
        values: Of the same shape.
        queries: Return the first so many tokens only.

    Returns:
        ``(B, N, D)``, or ``(B, queries, D)``.

    Raises:
        ConfigError: If the block's attention takes no further keys.

    Example:
        >>> import torch
        >>> from avalanche_peftcl.models import create_backbone
        >>> backbone = create_backbone("vit_tiny_patch16_224", img_size=32, depth=1)
        >>> tokens, prefix = torch.randn(2, 5, 192), torch.randn(2, 3, 192)
        >>> attend_with_prefix(backbone, 0, tokens, keys=prefix, values=prefix).shape
        torch.Size([2, 5, 192])
    """

    def extend(
        attention: SelfAttention, tokens: Tensor, q: Tensor, k: Tensor, v: Tensor
    ) -> tuple[Tensor, Tensor]:
        own = (split_heads(part, attention.num_heads) for part in (keys, values))
        return in_front(next(own), k), in_front(next(own), v)

    return backbone.attend(index, tokens, queries=queries, extend=extend)


def attend_with_prompts(
    backbone: Backbone,
    index: int,
    tokens: Tensor,
    prompts: Tensor,
    *,
    queries: int | None = None,
) -> Tensor:
    r"""Attend in a block to further tokens, which go through its key and value maps.

    .. math:: x + \mathrm{Attn}(q, [p W_k; k], [p W_v; v])

    Args:
        backbone: The frozen network.
        index: Which block, from 0.
        tokens: ``(B, N, D)``.
        prompts: ``(P, D)``, or ``(B, P, D)`` where they differ from image to image; they stand
            behind the block's first norm and ask nothing themselves.
        queries: Return the first so many tokens only.

    Returns:
        ``(B, N, D)``, or ``(B, queries, D)``.

    Raises:
        ConfigError: If the block's attention takes no further keys.
    """

    def extend(
        attention: SelfAttention, tokens: Tensor, q: Tensor, k: Tensor, v: Tensor
    ) -> tuple[Tensor, Tensor]:
        keys, values = keys_and_values(attention, prompts)
        return in_front(keys, k), in_front(values, v)

    return backbone.attend(index, tokens, queries=queries, extend=extend)
