"""HiDe-Prompt's pass: what tells the experience of an image, and the prompts of each."""

from collections.abc import Sequence
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from avalanche_peftcl.models import (
    Backbone,
    Branch,
    Embedded,
    ExperienceParts,
    LinearHead,
    Probe,
    attend_with_prefix,
    exportable,
)
from peftcl_prompts.blocks import Block, chosen_blocks
from peftcl_prompts.ranges import Width

Share = Annotated[float, Field(ge=0, le=1)]


class OwnedRows(LinearHead):
    """A linear head that knows with which experience each of its classes came last.

    Args:
        in_features: ``D``.

    Attributes:
        owners: Number of the experience of each row, from 0, ``(R,)``.
    """

    free_tensors = ("owners",)
    owners: Tensor

    def __init__(self, in_features: int) -> None:
        super().__init__(in_features)
        self.register_buffer("owners", torch.zeros(0, dtype=torch.long))
        self._begins: list[int] = []

    def grow(self, n_rows: int) -> None:
        """Lengthen to ``n_rows``."""
        super().grow(n_rows)
        self.owners = F.pad(self.owners, (0, n_rows - len(self.owners)))

    def learn_rows(self, rows: Sequence[int]) -> None:
        """Hear the rows of the classes of the experience that begins."""
        self._begins = list(rows)

    def own(self, number: int) -> None:
        """Give these rows to an experience."""
        self.owners[self._begins] = number


class Identity(nn.Module):
    """Tells the experience of an image by its class, of its frozen feature.

    Args:
        width: ``E``, of a frozen feature.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )
        self.norm = nn.LayerNorm(width)
        self.head = OwnedRows(width)

    def read(self, query: Tensor) -> Tensor:
        """Return what its head reads: ``(B, E)`` to ``(B, E)``."""
        read: Tensor = self.norm(query + self.mlp(query))
        return read

    def forward(self, query: Tensor) -> Tensor:
        """Return a logit a row: ``(B, E)`` to ``(B, R)``."""
        logits: Tensor = self.head(self.read(query))
        return logits


class HiDePromptBranch(Branch):
    r"""A pass with the keys and values of one experience in some blocks.

    In train mode they are those of the experience that trains, drawn to the mean of the earlier
    ones: :math:`(1 - m)\,P_t + m\,\bar P_{<t}`. In eval mode they are those of the experience of
    the class that the frozen feature looks like.

    Args:
        embed_dim: Width ``D`` of a token.
        query_dim: Width ``E`` of a frozen feature.
        blocks: The ``L`` blocks, from 0.
        length: ``P``, keys of a block.
        mix: :math:`m`.

    Attributes:
        parts: Of each experience ``prompts``, ``(L, 2, P, D)``, keys before values; they start as
            those before, the first from U(-1, 1).
        identity: Tells the experience.
        mixed: Whether the latest prompts are drawn to the earlier ones for good.
        identity_logits: Of the last pass in train mode, ``(B, R)``.
        forced: The experience whose prompts all images get; ``None``: as said above.

    Source:
        See :func:`.build_hide_prompt`.
    """

    forward_passes = 2
    mixed: Tensor

    def __init__(
        self,
        embed_dim: int,
        query_dim: int,
        blocks: Sequence[int],
        *,
        length: int = 5,
        mix: float = 0.01,
    ) -> None:
        super().__init__()
        self.shares_start = 0 not in blocks
        self.blocks, self.mix = list(blocks), mix
        prompts = torch.empty(len(blocks), 2, length, embed_dim).uniform_(-1, 1)
        self.parts = ExperienceParts({"prompts": prompts})
        self.identity = Identity(query_dim)
        self.register_buffer("mixed", torch.zeros((), dtype=torch.bool))
        self.query_probe = Probe()
        self.identity_logits: Tensor | None = None
        self.forced: int | None = None

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"identity_logits": None}  # a graph cannot be copied

    def start_experience(self, number: int) -> None:
        """Give the experience prompts, a copy of the last ones."""
        if self.parts.start(number):
            self.mixed.fill_(False)

    def prompts(self) -> Tensor:
        """Return the prompts of all experiences as they are used, ``(T, L, 2, P, D)``."""
        past, last = self.parts.past("prompts"), self.parts.every("prompts")[-1]
        if len(past) and not bool(self.mixed):
            last = (1 - self.mix) * last + self.mix * past.mean(dim=0)
        return torch.cat([past, last[None]])

    @torch.no_grad()
    def write_back(self) -> None:
        """Set the latest prompts to what they are used as."""
        self.parts.get_parameter("prompts").copy_(self.prompts()[-1])
        self.mixed.fill_(True)

    def begin(self, backbone: Backbone, embedded: Embedded) -> Tensor:
        """Return each image's keys and values, ``(B, L, 2, P, D)``."""
        query = self.query_probe(embedded.query())
        last = len(self.parts) - 1
        if self.training:
            self.identity_logits = self.identity(query)
            owner = torch.full((len(query),), last, device=query.device)
        elif self.forced is not None:
            owner = torch.full((len(query),), self.forced, device=query.device)
        elif len(self.identity.head.owners):
            owner = self.identity.head.owners[self.identity(query).argmax(dim=1)]
        else:
            owner = torch.full((len(query),), last, device=query.device)
        return self.prompts()[owner]

    def attend(
        self,
        backbone: Backbone,
        index: int,
        tokens: Tensor,
        *,
        queries: int | None = None,
        context: Any = None,
    ) -> Tensor:
        """Return tokens plus their attention, to the block's further keys too."""
        if index not in self.blocks:
            return backbone.attend(index, tokens, queries=queries)
        keys, values = context[:, self.blocks.index(index)].unbind(dim=1)  # (B, P, D)
        return attend_with_prefix(
            backbone, index, tokens, keys=keys, values=values, queries=queries
        )


@exportable
def build_hide_prompts(
    *,
    backbone: Backbone,
    blocks: list[Block] | None = None,
    length: Width = 5,
    mix: Share = 0.01,
) -> HiDePromptBranch:
    """Build a :class:`HiDePromptBranch` that fits ``backbone``."""
    chosen = chosen_blocks(backbone, blocks, default=range(5), what="blocks")
    query_dim = Branch().out_features(backbone)
    return HiDePromptBranch(backbone.embed_dim, query_dim, chosen, length=length, mix=mix)
