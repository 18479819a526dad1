"""Bottleneck adapters beside the attention of a block: x + Attn(LN x) + s U gelu(D LN x)."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from avalanche_peftcl.models.backbones.backbone import Backbone
from avalanche_peftcl.models.branch import Branch
from avalanche_peftcl.models.exportable import exportable
from avalanche_peftcl.models.modules.choose_blocks import choose_blocks
from avalanche_peftcl.models.projection.sites import ProjectionSite, column, linear_sites
from avalanche_peftcl.registry.ranges import Scale, Width


class AttentionAdapter(nn.Module):
    r"""Bottleneck without biases, whose output starts at zero.

    .. math:: a(x) = s\,U y, \qquad y = \mathrm{gelu}(D x)

    It stays as it is on old tokens if :math:`\Delta D\,x = 0`, :math:`\Delta U\,y = 0` and
    :math:`\Delta s\,\lVert U y \rVert = 0`.

    Args:
        embed_dim: Width ``D`` of a token.
        r: Width of the bottleneck.
        scale: :math:`s` at the start.
        learn_scale: Whether :math:`s` trains.

    Source:
        Qiao et al., arXiv 2405.13383, eqs. (5) and (14); released code f6515bf
        (``pet/adapter.py``: the adapter of LAE, ICCV 2023, without biases).
        Differs: :math:`s` has a site too, so it stays after the first experience; the released
        code lets it train on, which changes the output on old tokens.

    Example:
        >>> adapter = AttentionAdapter(8, r=2)
        >>> bool((adapter(torch.randn(1, 3, 8)) == 0).all())
        True
        >>> [site.name for site in adapter.projection_sites()]
        ['down.weight', 'up.weight', 'scale']
    """

    scale: nn.Parameter | float

    def __init__(
        self, embed_dim: int, *, r: int = 5, scale: float = 1.0, learn_scale: bool = True
    ) -> None:
        super().__init__()
        self.down = nn.Linear(embed_dim, r, bias=False)
        self.up = nn.Linear(r, embed_dim, bias=False)
        self.scale = nn.Parameter(torch.full((1,), float(scale))) if learn_scale else scale
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))
        nn.init.zeros_(self.up.weight)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return what is added to the attention's output: ``(..., D)`` to ``(..., D)``."""
        out: Tensor = self.up(F.gelu(self.down(tokens))) * self.scale
        return out

    def projection_sites(self) -> Iterator[ProjectionSite]:
        """State what must hold for the output on old tokens to stay."""
        yield from linear_sites("down", self.down)
        yield from linear_sites("up", self.up)
        if isinstance(self.scale, nn.Parameter):
            yield ProjectionSite(
                "scale", self.scale, self.up, view=column, features=self._unscaled_length
            )

    def _unscaled_length(self, hidden: Tensor) -> Tensor:
        """Return how far the output moves with the scale: ``(..., R)`` to ``(..., 1)``."""
        out = F.linear(hidden, self.up.weight)  # not self.up, whose hooks ask for this
        length: Tensor = out.norm(dim=-1, keepdim=True)
        return length


class AttentionAdapterBranch(Branch):
    """A pass with an :class:`AttentionAdapter` beside the attention of some blocks.

    Args:
        embed_dim: Width ``D`` of a token.
        blocks: Which blocks, from 0.
        r: Width of the bottleneck.
        scale: Factor of the adapter's output at the start.
        learn_scale: Whether the factor trains.

    Source:
        Qiao et al., arXiv 2405.13383, eq. (5); released code f6515bf. Differs: in a network with
        layer scale, which the authors' has not, the adapter's output is not scaled by it.
    """

    def __init__(
        self,
        embed_dim: int,
        blocks: Sequence[int],
        *,
        r: int = 5,
        scale: float = 1.0,
        learn_scale: bool = True,
    ) -> None:
        super().__init__()
        self.shares_start = 0 not in blocks
        self.adapters = nn.ModuleDict(
            {
                str(index): AttentionAdapter(embed_dim, r=r, scale=scale, learn_scale=learn_scale)
                for index in blocks
            }
        )

    def attend(
        self,
        backbone: Backbone,
        index: int,
        tokens: Tensor,
        *,
        queries: int | None = None,
        context: Any = None,
    ) -> Tensor:
        """Return tokens plus their attention plus the adapter's output, where there is one."""
        hidden = backbone.attend(index, tokens, queries=queries)
        if str(index) not in self.adapters:
            return hidden
        added: Tensor = self.adapters[str(index)](backbone.normed(index, tokens[:, :queries]))
        return hidden + added


@exportable
def build_attention_adapters(
    *,
    backbone: Backbone,
    r: Width = 5,
    scale: Scale = 1.0,
    learn_scale: bool = True,
    blocks: list[int] | None = None,
) -> AttentionAdapterBranch:
    """Build an :class:`AttentionAdapterBranch` that fits ``backbone``.

    Args:
        backbone: The frozen network.
        r: Width of the bottleneck.
        scale: Factor of the adapter's output at the start.
        learn_scale: Whether the factor trains.
        blocks: Which blocks, from 0; ``None`` takes the first five.

    Raises:
        ConfigError: If ``blocks`` does not fit the network.
    """
    chosen = choose_blocks(blocks, backbone.depth, default=5)
    return AttentionAdapterBranch(
        backbone.embed_dim, chosen, r=r, scale=scale, learn_scale=learn_scale
    )
