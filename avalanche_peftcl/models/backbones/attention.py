"""Self-attention of a block with some of its queries only, or with further keys and values."""

from collections.abc import Callable
from typing import cast

from timm.layers import Attention
from torch import Tensor, nn
from torch.nn import functional as F

Extend = Callable[[Attention, Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""From attention, tokens ``(B, N, D)``, q ``(B, H, Q, D / H)``, k and v ``(B, H, N, D / H)`` to the
keys and values that are attended to."""


def is_plain(attention: nn.Module) -> bool:
    """Whether :func:`attend` computes what the module's own forward does."""
    plain = type(attention) is Attention and type(attention.qkv) is nn.Linear
    return plain and getattr(attention, "gate", None) is None


def attend(
    attention: Attention, queries: Tensor, tokens: Tensor, *, extend: Extend | None = None
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


def split_heads(tokens: Tensor, num_heads: int) -> Tensor:
    """Return ``(..., N, D)`` as ``(..., H, N, D / H)``."""
    return tokens.reshape(*tokens.shape[:-1], num_heads, -1).transpose(-2, -3)
