"""Key and value tokens in front of those of a block's attention: Attn(q, [K; k], [V; v])."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from avalanche_peftcl.models.backbones.attention import (
    in_front,
    split_heads,
)
from avalanche_peftcl.models.backbones.backbone import Backbone
from avalanche_peftcl.models.branch import Branch
from avalanche_peftcl.models.exportable import exportable
from avalanche_peftcl.models.modules.choose_blocks import choose_blocks
from avalanche_peftcl.models.modules.text_prefix import put_prefixes
from avalanche_peftcl.models.modules.tuned_text import Tower, tune_text
from avalanche_peftcl.models.projection.sites import (
    Probe,
    ProjectionSite,
    heads_of_keys,
    heads_of_values,
)
from avalanche_peftcl.registry.ranges import InitBound, Width

Against = Literal["queries", "inputs"]


class Scaled(Protocol):
    """An attention whose affinities have a factor, ``scale``."""

    scale: float


def weights_on_first(
    attention: Scaled, q: Tensor, k: Tensor, *, length: int, mask: Tensor | None = None
) -> Tensor:
    """Return the attention weights that fall on the first keys, in float32.

    Args:
        attention: The block's attention.
        q: ``(B, H, Q, D / H)``.
        k: All keys, ``(B, H, P + N, D / H)``.
        length: ``P``, how many keys.
        mask: Added to affinities, so shaped that it fits ``(B, H, Q, P + N)``.

    Returns:
        ``(B, H, Q, P)``; a row sums to less than 1.
    """
    with torch.autocast(q.device.type, enabled=False):
        affinities = attention.scale * (q.float() @ k.float().transpose(2, 3))
        if mask is not None:
            affinities = affinities + mask.float()
        weights: Tensor = affinities.softmax(dim=3)[..., :length]
    return weights


class PrefixTokens(nn.Module):
    r"""Keys and values that a block's attention finds beside those of its tokens.

    With :math:`a_h` the weights that head :math:`h` puts on the ``P`` key tokens :math:`K_h`, the
    output on old images stays as it is if

    .. math:: q_h\,\Delta K_h^\top = 0 \quad\text{and}\quad a_h\,\Delta V_h = 0

    Args:
        embed_dim: Width ``D`` of a token.
        num_heads: ``H``, heads of the attention.
        length: ``P``, number of prefix tokens.
        init_bound: Keys and values start uniform in [0, ``init_bound``].
        against: What the keys must not move along: ``"queries"``, head by head, as above, which is
            exact; ``"inputs"``, the tokens before the query map, as the paper prints it.
        project_values: Whether the values have a site; ``False`` leaves them free.

    Source:
        Qiao et al., arXiv 2405.13383, eqs. (3), (11) and (12); released code f6515bf.
        Differs: the paper's condition on the keys, :math:`x\,\Delta K^\top = 0`, leaves out the
        query map and is ``against="inputs"``. The published method leaves the values free, so old
        outputs move; ``project_values=False`` does too. The learnt factors of keys and values and
        the rescaling of the prefix's attention that the code takes over from LAE are left out.

    Example:
        >>> prefix = PrefixTokens(8, 2, length=3)
        >>> [site.view(site.parameter).shape for site in prefix.projection_sites()]
        [torch.Size([2, 3, 4]), torch.Size([2, 4, 3])]
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        length: int = 10,
        init_bound: float = 0.01,
        against: Against = "queries",
        project_values: bool = True,
    ) -> None:
        super().__init__()
        self.num_heads, self.against, self.project_values = num_heads, against, project_values
        self.keys = nn.Parameter(torch.empty(length, embed_dim).uniform_(0, init_bound))
        self.values = nn.Parameter(torch.empty(length, embed_dim).uniform_(0, init_bound))
        self.key_probe, self.value_probe = Probe(), Probe()

    @property
    def length(self) -> int:
        """``P``."""
        return len(self.keys)

    def forward(
        self,
        attention: Scaled,
        tokens: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return keys and values with the prefix in front.

        Args:
            attention: The block's attention.
            tokens: Its input, ``(B, N, D)``.
            q: ``(B, H, Q, D / H)``.
            k: ``(B, H, N, D / H)``.
            v: ``(B, H, N, D / H)``.
            mask: Added to affinities, so shaped that it fits ``(B, H, Q, P + N)``.

        Returns:
            Two of ``(B, H, P + N, D / H)``.
        """
        k = in_front(split_heads(self.keys, self.num_heads), k)
        v = in_front(split_heads(self.values, self.num_heads), v)
        if self.key_probe.listening:
            self.key_probe(tokens if self.against == "inputs" else q.transpose(1, 2).flatten(2))
        if self.value_probe.listening:
            weights = weights_on_first(attention, q, k, length=self.length, mask=mask)
            self.value_probe(weights.transpose(1, 2).flatten(2))  # (B, Q, H * P)
        return k, v

    def projection_sites(self) -> Iterator[ProjectionSite]:
        """State what must hold for the output on old images to stay."""
        if self.against == "inputs":
            yield ProjectionSite("keys", self.keys, self.key_probe)
        else:
            view = heads_of_keys(self.num_heads)
            yield ProjectionSite("keys", self.keys, self.key_probe, view=view)
        if self.project_values:
            view = heads_of_values(self.num_heads)
            yield ProjectionSite("values", self.values, self.value_probe, view=view)


class ExtendingBranch(Branch):
    """A pass whose attention finds further keys and values in some blocks.

    Args:
        extensions: For each block, from 0, the module that adds them; it is called as
            :data:`~avalanche_peftcl.models.backbones.attention.Extend` says.
    """

    def __init__(self, extensions: Mapping[int, nn.Module]) -> None:
        super().__init__()
        self.shares_start = 0 not in extensions
        self.extensions = nn.ModuleDict({str(index): m for index, m in extensions.items()})

    def attend(
        self,
        backbone: Backbone,
        index: int,
        tokens: Tensor,
        *,
        queries: int | None = None,
        context: Any = None,
    ) -> Tensor:
        """Return tokens plus their attention, to the further keys too where there are any."""
        name = str(index)
        if name not in self.extensions:
            return backbone.attend(index, tokens, queries=queries)
        return backbone.attend(index, tokens, queries=queries, extend=self.extensions[name])


class PrefixBranch(ExtendingBranch):
    """A pass with :class:`PrefixTokens` in some blocks.

    Args:
        embed_dim: Width ``D`` of a token.
        num_heads: ``H``, heads of the attention.
        blocks: Which blocks, from 0.
        length: ``P``, number of prefix tokens of a block.
        init_bound: Keys and values start uniform in [0, ``init_bound``].
        against: What the keys must not move along, see :class:`PrefixTokens`.
        project_values: Whether the values have a site.

    Source:
        Qiao et al., arXiv 2405.13383, eq. (3); released code f6515bf. Differs: see
        :class:`PrefixTokens`.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        blocks: Sequence[int],
        *,
        length: int = 10,
        init_bound: float = 0.01,
        against: Against = "queries",
        project_values: bool = True,
    ) -> None:
        super().__init__(
            {
                index: PrefixTokens(
                    embed_dim,
                    num_heads,
                    length=length,
                    init_bound=init_bound,
                    against=against,
                    project_values=project_values,
                )
                for index in blocks
            }
        )


@exportable
def build_prefix(
    *,
    backbone: Backbone,
    length: Width = 10,
    init_bound: InitBound = 0.01,
    against: Against = "queries",
    project_values: bool = True,
    blocks: list[int] | None = None,
    tower: Tower = "image",
) -> Branch:
    """Build a :class:`PrefixBranch` that fits ``backbone``, or prefixes in its text tower.

    Args:
        backbone: The frozen network.
        length: Number of prefix tokens of a block.
        init_bound: Keys and values start uniform in [0, ``init_bound``].
        against: What the keys must not move along, see :class:`PrefixTokens`.
        project_values: Whether gradient projection keeps the values too.
        blocks: Which blocks of a tower, from 0; ``None`` takes the first five.
        tower: Where: ``"text"``, in the text tower, see :class:`.TunedText`, or ``"both"``.

    Raises:
        ConfigError: If ``blocks`` does not fit the network, an attention takes no further keys, or
            there is no text tower, or not of a kind that is known.
    """
    options: dict[str, Any] = {
        "length": length,
        "init_bound": init_bound,
        "against": against,
        "project_values": project_values,
    }
    branch = Branch()
    if tower != "text":
        chosen = choose_blocks(blocks, backbone.depth, default=5)
        heads = [backbone.attention(index).num_heads for index in chosen]
        branch = PrefixBranch(backbone.embed_dim, heads[0], chosen, **options)
    if tower == "image":
        return branch

    def make(width: int, heads: int) -> PrefixTokens:
        return PrefixTokens(width, heads, **options)

    return tune_text(branch, backbone, lambda view: put_prefixes(view, make, blocks))
