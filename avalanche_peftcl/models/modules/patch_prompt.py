"""Prompt tokens made from the patches: p = LN((W hᵀ + b)ᵀ), fresh in every block."""

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn

from avalanche_peftcl.models.backbones.backbone import Backbone
from avalanche_peftcl.models.branch import Branch
from avalanche_peftcl.models.exportable import exportable
from avalanche_peftcl.registry.ranges import Share, Width

Init = Literal["kaiming", "zeros"]


class PatchPrompt(nn.Module):
    r"""Mix the ``N`` tokens of a block into ``P`` prompt tokens.

    .. math:: p = \mathrm{LN}_{\gamma,\beta}\bigl((W h^\top + b)^\top\bigr)

    with an epsilon of 1e-6 in the layer norm.

    Args:
        num_tokens: ``N``, tokens of the backbone, prefix included.
        embed_dim: Width ``D`` of a token.
        length: ``P``, number of prompt tokens.
        init: ``"kaiming"``: :math:`W` Kaiming-uniform, :math:`\gamma = 1`. ``"zeros"``: all
            zero, a point where :math:`W`, :math:`b` and :math:`\gamma` never get a gradient.

    Source:
        Liu et al., arXiv 2407.17120; released code 24de712 (``Patch_Prompt``).
        Differs: nothing with ``init="zeros"``; ``"kaiming"`` is the line the release has as a
        comment, with :math:`\gamma = 1`, without which the generator cannot train.

    Example:
        >>> PatchPrompt(5, 8, length=2)(torch.randn(3, 5, 8)).shape
        torch.Size([3, 2, 8])
    """

    def __init__(
        self, num_tokens: int, embed_dim: int, *, length: int = 10, init: Init = "kaiming"
    ) -> None:
        super().__init__()
        self.mix = nn.Linear(num_tokens, length)
        self.norm = nn.LayerNorm(embed_dim, eps=1e-6)
        nn.init.zeros_(self.mix.bias)
        if init == "zeros":
            nn.init.zeros_(self.mix.weight)
            nn.init.zeros_(self.norm.weight)
        else:
            nn.init.kaiming_uniform_(self.mix.weight, a=math.sqrt(5))

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the prompts of ``tokens``: ``(B, N, D)`` to ``(B, P, D)``."""
        prompts: Tensor = self.norm(self.mix(tokens.transpose(1, 2)).transpose(1, 2))
        return prompts


class PatchPromptBranch(Branch):
    """A pass with prompts behind the prefix tokens, refreshed after each block's attention.

    In the first block prompts are made and go through the MLP without a residual; in a later one
    ``carry`` times the attended prompts is added to the fresh ones before the MLP, and the
    residual is that of the attended prompts.

    Args:
        num_tokens: ``N``, tokens of the backbone, prefix included.
        embed_dim: Width ``D`` of a token.
        depth: Number ``L`` of blocks.
        length: ``P``, number of prompt tokens.
        carry: Share of the attended prompts in the refreshed ones.
        num_prefix_tokens: Tokens in front of which no prompt may stand.
        init: Start of the generators, see :class:`PatchPrompt`.

    Source:
        Liu et al., arXiv 2407.17120; released code 24de712. Differs: any number of tokens and of
        prefix tokens. Prompts of the last block cannot reach a pooled CLS token, in the paper's
        method as here: they are not computed then and their parameters get no gradient.
    """

    def __init__(
        self,
        num_tokens: int,
        embed_dim: int,
        depth: int,
        *,
        length: int = 10,
        carry: float = 0.1,
        num_prefix_tokens: int = 1,
        init: Init = "kaiming",
    ) -> None:
        super().__init__()
        self.prompts = nn.ModuleList(
            PatchPrompt(num_tokens, embed_dim, length=length, init=init) for _ in range(depth)
        )
        self.length, self.carry, self.prefix = length, carry, num_prefix_tokens

    def enter(
        self, backbone: Backbone, hidden: Tensor, output: Tensor, *, context: Any = None
    ) -> Tensor:
        """Put the MLP's output of the first prompts behind the prefix tokens."""
        prompts = backbone.feed(0, self.prompts[0](hidden))
        return self._insert(output, prompts)  # (B, N + P, D)

    def step(
        self, backbone: Backbone, index: int, hidden: Tensor, *, context: Any = None
    ) -> Tensor:
        """Refresh the prompts, then run the MLP of block ``index`` on all tokens."""
        if hidden.shape[1] == 1:  # the pooled token of the last block
            return super().step(backbone, index, hidden)
        attended = hidden[:, self.prefix : self.prefix + self.length]
        others = self.leave(backbone, hidden)  # (B, N, D)
        prompts = self.prompts[index](others) + self.carry * attended
        return hidden + backbone.feed(index, self._insert(others, prompts))

    def leave(self, backbone: Backbone, tokens: Tensor, *, context: Any = None) -> Tensor:
        """Drop the prompts: ``(B, N + P, D)`` to ``(B, N, D)``."""
        if tokens.shape[1] == 1:
            return tokens
        return torch.cat([tokens[:, : self.prefix], tokens[:, self.prefix + self.length :]], dim=1)

    def _insert(self, tokens: Tensor, prompts: Tensor) -> Tensor:
        return torch.cat([tokens[:, : self.prefix], prompts, tokens[:, self.prefix :]], dim=1)


@exportable
def build_patch_prompts(
    *,
    backbone: Backbone,
    length: Width = 10,
    carry: Share = 0.1,
    init: Init = "kaiming",
) -> PatchPromptBranch:
    """Build a :class:`PatchPromptBranch` that fits ``backbone``."""
    return PatchPromptBranch(
        backbone.num_tokens,
        backbone.embed_dim,
        backbone.depth,
        length=length,
        carry=carry,
        num_prefix_tokens=backbone.num_prefix_tokens,
        init=init,
    )
