"""Bottleneck adapters beside the MLP of each block: h + MLP(LN h) + s U drop(relu(D h))."""

import math
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from avalanche_peftcl.models.backbones.backbone import Backbone
from avalanche_peftcl.models.branch import Branch
from avalanche_peftcl.models.exportable import exportable
from avalanche_peftcl.models.modules.text_blocks import put_adapters
from avalanche_peftcl.models.modules.tuned_text import Tower, tune_text
from avalanche_peftcl.models.projection.sites import ProjectionSite, linear_sites
from avalanche_peftcl.registry.ranges import Dropout, Scale, Width


class Adapter(nn.Module):
    r"""Bottleneck whose output starts at zero.

    .. math:: a(h) = s\,\bigl(U\,\mathrm{drop}(\mathrm{relu}(D h + b_D)) + b_U\bigr)

    Args:
        embed_dim: Width ``D`` of a token.
        r: Width of the bottleneck.
        scale: :math:`s`.
        dropout: Probability of the dropout, in training.

    Source:
        Chen et al., AdaptFormer, NeurIPS 2022, as in the released NTK-CL code 24de712.
        Differs: nothing.

    Example:
        >>> import torch
        >>> bool((Adapter(8, r=2)(torch.randn(1, 3, 8)) == 0).all())
        True
    """

    def __init__(
        self, embed_dim: int, *, r: int = 16, scale: float = 0.1, dropout: float = 0.1
    ) -> None:
        super().__init__()
        self.down = nn.Linear(embed_dim, r)
        self.up = nn.Linear(r, embed_dim)
        self.dropout = nn.Dropout(dropout)
        self.scale = scale
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))
        for zero in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(zero)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return what is added to ``tokens``: ``(..., D)`` to ``(..., D)``."""
        out: Tensor = self.up(self.dropout(self.down(tokens).relu())) * self.scale
        return out

    def projection_sites(self) -> Iterator[ProjectionSite]:
        """State what must hold for the output on old tokens to stay."""
        yield from linear_sites("down", self.down)
        yield from linear_sites("up", self.up)


class AdapterBranch(Branch):
    """A pass with an :class:`Adapter` beside the MLP of every block ("channel" branch of NTK-CL).

    Args:
        embed_dim: Width ``D`` of a token.
        depth: Number ``L`` of blocks.
        r: Width of the bottleneck.
        scale: Factor of the adapter's output.
        dropout: Probability of the dropout, in training.

    Source:
        Liu et al., arXiv 2407.17120; released code 24de712 (``Channel_Prompt``). Differs: nothing.
    """

    def __init__(
        self,
        embed_dim: int,
        depth: int,
        *,
        r: int = 16,
        scale: float = 0.1,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.adapters = nn.ModuleList(
            Adapter(embed_dim, r=r, scale=scale, dropout=dropout) for _ in range(depth)
        )

    def enter(
        self, backbone: Backbone, hidden: Tensor, output: Tensor, *, context: Any = None
    ) -> Tensor:
        """Add the first adapter to the frozen output of the first block."""
        added: Tensor = self.adapters[0](hidden)
        return output + added

    def step(
        self, backbone: Backbone, index: int, hidden: Tensor, *, context: Any = None
    ) -> Tensor:
        """Run the MLP of block ``index`` with its adapter beside it."""
        added: Tensor = self.adapters[index](hidden)
        return hidden + backbone.feed(index, hidden) + added


@exportable
def build_adapters(
    *,
    backbone: Backbone,
    r: Width = 16,
    scale: Scale = 0.1,
    dropout: Dropout = 0.1,
    tower: Tower = "image",
) -> Branch:
    """Build an :class:`AdapterBranch` that fits ``backbone``, or adapters in its text tower.

    Args:
        backbone: The frozen network.
        r: Width of the bottleneck.
        scale: Factor of the adapter's output.
        dropout: Probability of the dropout, in training.
        tower: Where: ``"text"``, beside the MLP of every block of the text tower, see
            :class:`.TunedText`, or ``"both"``.

    Raises:
        ConfigError: If there is no text tower, or not of a kind that is known.
    """
    branch = Branch()
    if tower != "text":
        branch = AdapterBranch(
            backbone.embed_dim, backbone.depth, r=r, scale=scale, dropout=dropout
        )
    if tower == "image":
        return branch

    def make(width: int) -> Adapter:
        return Adapter(width, r=r, scale=scale, dropout=dropout)

    return tune_text(branch, backbone, lambda view: put_adapters(view, make))
