"""Self-attention of a block with some of its queries only, or with further keys and values."""

from collections.abc import Callable
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from avalanche_peftcl.models.backbones.timm_api import Attention


class SelfAttention(Protocol):
    """What those who bring further keys and values find on a block's attention.

    Attributes:
        num_heads: ``H``.
        attn_dim: Width of all heads together.
        scale: Factor of the affinities.
        qkv: The map to queries, keys and values, one above the other.
        k_norm: The norm of keys, each head by itself; an identity where there is none.
    """

    num_heads: int
    attn_dim: int
    scale: float
    qkv: nn.Linear
    k_norm: nn.Module


Extend = Callable[[SelfAttention, Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""From attention, tokens ``(B, N, D)``, q ``(B, H, Q, D / H)``, k and v ``(B, H, N, D / H)`` to the
keys and values that are attended to."""


def is_plain(attention: nn.Module) -> bool:
    """Whether :func:`attend` computes what the module's own forward does."""
    if type(attention) is not Attention or type(attention.qkv) is not nn.Linear:
        return False
    return "gate" not in dict(attention.named_children())


def attend(
    attention: Any, queries: Tensor, tokens: Tensor, *, extend: Extend | None = None
) -> Tensor:
    """Attend from ``queries`` to ``tokens`` with a block's weights.

    Args:
        attention: A plain attention, see :func:`is_plain`.
        queries: ``(B, Q, D)``.
        tokens: ``(B, N, D)``.
        extend: Returns the keys and values to attend to instead of the tokens' own.

    Returns:
        ``(B, Q, D)``.
    """
    dim = attention.attn_dim
    weight, bias = attention.qkv.weight, attention.qkv.bias
    q = F.linear(queries, weight[:dim], None if bias is None else bias[:dim])
    kv = F.linear(tokens, weight[dim:], None if bias is None else bias[dim:])
    q = attention.q_norm(split_heads(q, attention.num_heads))  # (B, H, Q, D / H)
    k, v = (split_heads(half, attention.num_heads) for half in kv.chunk(2, dim=-1))
    k = attention.k_norm(k)  # (B, H, N, D / H)
    if extend is not None:
        k, v = extend(attention, tokens, q, k, v)
    out = F.scaled_dot_product_attention(q, k, v, scale=attention.scale)
    out = out.transpose(1, 2).flatten(2)  # (B, Q, D)
    return cast(Tensor, attention.proj_drop(attention.proj(attention.norm(out))))


def in_front(heads: Tensor, tokens: Tensor) -> Tensor:
    """Put further keys or values in front of the tokens' own.

    Args:
        heads: ``(H, P, D / H)``, the same for each image, or ``(B, H, P, D / H)``.
        tokens: ``(B, H, N, D / H)``.

    Returns:
        ``(B, H, P + N, D / H)``, in the dtype of ``tokens``.
    """
    heads = heads.to(tokens.dtype).expand(tokens.shape[0], -1, -1, -1)
    return torch.cat([heads, tokens], dim=2)


def keys_and_values(attention: SelfAttention, prompts: Tensor) -> tuple[Tensor, Tensor]:
    """Return the keys, normalised, and values that an attention makes of further tokens.

    Args:
        attention: A plain attention.
        prompts: ``(P, D)`` or ``(B, P, D)``.

    Returns:
        Two of ``(H, P, D / H)`` or ``(B, H, P, D / H)``.
    """
    dim = attention.attn_dim
    weight, bias = attention.qkv.weight, attention.qkv.bias
    kv = F.linear(prompts, weight[dim:], None if bias is None else bias[dim:])  # (..., P, 2 D)
    keys, values = (split_heads(half, attention.num_heads) for half in kv.chunk(2, dim=-1))
    normed: Tensor = attention.k_norm(keys)
    return normed, values


def split_heads(tokens: Tensor, num_heads: int) -> Tensor:
    """Return ``(..., N, D)`` as ``(..., H, N, D / H)``."""
    return tokens.reshape(*tokens.shape[:-1], num_heads, -1).transpose(-2, -3)
