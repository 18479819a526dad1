"""Keys and values in front of those of a text tower's attention."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.models.backbones.attention import split_heads
from avalanche_peftcl.models.modules.choose_blocks import choose_blocks
from avalanche_peftcl.models.modules.text_blocks import PutIn, text_blocks

_ATTENTIONS = ("attn", "attention.self")  # of open_clip's blocks, of BERT's
_MAPS = ("query", "key", "value")  # of the latter


class PrefixedAttention(PutIn):
    """The self-attention of a text tower's block, whose tokens find a prefix before their own keys.

    Every token sees the whole prefix, whatever the tower's mask hides from it.

    Args:
        inner: What it takes the place of.
        part: From attention, tokens, ``q``, ``k``, ``v`` and mask to the keys and values that are
            attended to, see :meth:`.PrefixTokens.forward`.
    """

    scale: float

    def attend(self, tokens: Tensor, qkv: Sequence[Tensor], mask: Tensor | None) -> Tensor:
        """Return ``(B, N, D)`` of tokens and of their queries, keys and values, all ``(B, N, D)``.

        Args:
            tokens: What the attention reads.
            qkv: Three.
            mask: Added to affinities, so shaped that it fits ``(B, H, N, N)``, or whether a query
                sees a key.
        """
        heads = self.num_heads
        q, k, v = (split_heads(part, heads) for part in qkv)
        if mask is not None and mask.dtype is torch.bool:
            mask = torch.zeros_like(mask, dtype=q.dtype).masked_fill(~mask, float("-inf"))
        if mask is not None:
            mask = F.pad(mask, (self.part.length, 0))
        k, v = self.part(self, tokens, q, k, v, mask=mask)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=self.scale)
        return out.transpose(1, 2).flatten(2)

    @property
    def num_heads(self) -> int:
        """``H``."""
        raise NotImplementedError


class _OfTorch(PrefixedAttention):
    """With the weights of :class:`torch.nn.MultiheadAttention`, as open_clip's blocks call it."""

    def __init__(self, inner: nn.MultiheadAttention, part: nn.Module) -> None:
        super().__init__(inner, part)
        self.scale = inner.head_dim**-0.5

    @property
    def num_heads(self) -> int:
        """``H``."""
        return int(self.inner.num_heads)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        attn_mask: Tensor | None = None,
        need_weights: bool = False,
    ) -> tuple[Tensor, None]:
        """Attend from tokens to themselves; no weights are returned.

        Args:
            query: ``(B, N, D)``, or ``(N, B, D)`` where the module has it so.
            key: The same.
            value: The same.
            attn_mask: Added to affinities, ``(N, N)`` or ``(B * H, N, N)``.
            need_weights: Not heard.
        """
        inner = self.inner
        tokens = query if inner.batch_first else query.transpose(0, 1)
        if attn_mask is not None and attn_mask.ndim == 3:
            attn_mask = attn_mask.view(len(tokens), self.num_heads, *attn_mask.shape[1:])
        qkv = F.linear(tokens, inner.in_proj_weight, inner.in_proj_bias).chunk(3, dim=-1)
        out: Tensor = inner.out_proj(self.attend(tokens, qkv, attn_mask))
        return (out if inner.batch_first else out.transpose(0, 1)), None


class _OfBERT(PrefixedAttention):
    """With the query, key and value maps of BERT and its kin, before their output map."""

    def __init__(self, inner: nn.Module, part: nn.Module) -> None:
        super().__init__(inner, part)
        self.scale = int(self.attention_head_size) ** -0.5

    @property
    def num_heads(self) -> int:
        """``H``."""
        return int(self.num_attention_heads)

    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor | None = None, **named: Any
    ) -> tuple[Tensor, None]:
        """Attend from tokens to themselves; no weights are returned.

        Args:
            hidden_states: ``(B, N, D)``.
            attention_mask: As transformers make it, to fit ``(B, H, N, N)``.
            named: Of transformers' blocks; nothing that is read here.
        """
        qkv = [getattr(self.inner, name)(hidden_states) for name in _MAPS]
        return self.attend(hidden_states, qkv, attention_mask), None


def put_prefixes(
    tower: nn.Module, make: Callable[[int, int], nn.Module], blocks: Sequence[int] | None
) -> None:
    """Put a prefix before the keys and values of some blocks.

    Args:
        tower: A text tower; it is changed.
        make: From the width ``D`` of a token and the number ``H`` of heads to a prefix.
        blocks: Which blocks, from 0; ``None`` takes the first five.

    Raises:
        ConfigError: If a block has no attention of a kind that is known, or there is no such block.
    """
    there = text_blocks(tower)
    for index in choose_blocks(blocks, len(there), default=5):
        block = list(there.values())[index]
        modules = dict(block.named_modules())
        name = next((n for n in _ATTENTIONS if n in modules), "")
        inner: Any = modules[name]
        if isinstance(inner, nn.MultiheadAttention) and inner.in_proj_weight is not None:
            put: nn.Module = _OfTorch(inner, make(inner.embed_dim, inner.num_heads))
        elif name and all(type(getattr(inner, n, None)) is nn.Linear for n in _MAPS):
            put = _OfBERT(inner, make(inner.query.out_features, inner.num_attention_heads))
        else:
            raise ConfigError(
                f"block {index} of the text tower, a {type(block).__name__}, has no attention as "
                "those of open_clip or BERT, before whose keys a prefix can stand; take module "
                "'adapter', or tower: image"
            )
        place, _, last = name.rpartition(".")
        setattr(block.get_submodule(place), last, put)
