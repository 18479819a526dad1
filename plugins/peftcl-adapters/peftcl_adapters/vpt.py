"""Visual prompt tuning as published: prompts pass the first norm, of each block or at the input."""

from typing import Any

import torch
from torch import Tensor, nn

from avalanche_peftcl.models import Backbone, Branch, attend_with_prompts, exportable
from peftcl_adapters.options import Positive, Width


class DeepPromptBranch(Branch):
    """A pass in which each block finds prompts of its own beside its input, and drops them after.

    Args:
        embed_dim: Width ``D`` of a token.
        depth: Number ``L`` of blocks.
        length: ``P``, prompts of a block.
        init_bound: Prompts start uniform within plus and minus this.

    Source:
        Jia et al., VPT, ECCV 2022, arXiv 2203.12119 (deep). Differs: what a block makes of its
        prompts is not computed, since the next one replaces it; no dropout of prompts.
    """

    shares_start = False

    def __init__(self, embed_dim: int, depth: int, *, length: int, init_bound: float) -> None:
        super().__init__()
        prompts = torch.empty(depth, length, embed_dim).uniform_(-init_bound, init_bound)
        self.prompts = nn.Parameter(prompts)

    def attend(
        self,
        backbone: Backbone,
        index: int,
        tokens: Tensor,
        *,
        queries: int | None = None,
        context: Any = None,
    ) -> Tensor:
        """Attend to the block's prompts too, which pass its first norm."""
        prompts = backbone.normed(index, self.prompts[index])
        return attend_with_prompts(backbone, index, tokens, prompts, queries=queries)


class InputPromptBranch(Branch):
    """A pass with prompts beside the tokens that enter the first block, which go on with them.

    Args:
        embed_dim: Width ``D`` of a token.
        length: ``P``.
        init_bound: Prompts start uniform within plus and minus this.

    Source:
        Jia et al., VPT, ECCV 2022, arXiv 2203.12119 (shallow). Differs: prompts stand behind the
        tokens, where attention finds them alike; no dropout of prompts.
    """

    shares_start = False

    def __init__(self, embed_dim: int, *, length: int, init_bound: float) -> None:
        super().__init__()
        prompts = torch.empty(length, embed_dim).uniform_(-init_bound, init_bound)
        self.prompts = nn.Parameter(prompts)

    def attend(
        self,
        backbone: Backbone,
        index: int,
        tokens: Tensor,
        *,
        queries: int | None = None,
        context: Any = None,
    ) -> Tensor:
        """Attend; the prompts join in front of the first block."""
        if index == 0:
            prompts = self.prompts.to(tokens.dtype).expand(len(tokens), -1, -1)
            tokens = torch.cat([tokens, prompts], dim=1)  # (B, N + P, D)
        return backbone.attend(index, tokens, queries=queries)

    def leave(self, backbone: Backbone, tokens: Tensor, *, context: Any = None) -> Tensor:
        """Drop the prompts."""
        return tokens[:, : backbone.num_tokens]


@exportable
def build_vpt(
    *, backbone: Backbone, length: Width = 5, deep: bool = True, init_bound: Positive = 0.1
) -> Branch:
    """Build a :class:`DeepPromptBranch` or an :class:`InputPromptBranch` that fits ``backbone``.

    Args:
        backbone: The frozen network.
        length: Number of prompts; of deep ones, of each block.
        deep: Whether each block has prompts of its own; else the first one alone.
        init_bound: Prompts start uniform within plus and minus this. VPT's own bound depends on
            the size of a patch and is 0.0625 for ViT-B/16 (from memory).

    Raises:
        ConfigError: If there are deep prompts and an attention takes no further keys.
    """
    if not deep:
        return InputPromptBranch(backbone.embed_dim, length=length, init_bound=init_bound)
    for index in range(backbone.depth):
        backbone.attention(index)  # refuses what takes no further keys
    width, depth = backbone.embed_dim, backbone.depth
    return DeepPromptBranch(width, depth, length=length, init_bound=init_bound)
