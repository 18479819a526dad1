"""Learnt tokens in front of a block's attention, dropped behind it: Attn(x, [p; x])."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.models.backbones.attention import SelfAttention, in_front, keys_and_values
from avalanche_peftcl.models.backbones.backbone import Backbone
from avalanche_peftcl.models.exportable import exportable
from avalanche_peftcl.models.modules.choose_blocks import choose_blocks
from avalanche_peftcl.models.modules.prefix import (
    Against,
    ExtendingBranch,
    weights_on_first,
)
from avalanche_peftcl.models.projection.sites import Probe, ProjectionSite
from avalanche_peftcl.registry.ranges import InitBound, Width


class PromptTokens(nn.Module):
    r"""Tokens that a block's attention finds in front of its input, behind the first norm.

    They go through the block's own key and value maps and ask nothing themselves: what they would
    attend to is dropped behind the attention anyway. With :math:`x` the attention's input on old
    images and :math:`q_h` its queries, the updates are kept to

    .. math:: x\,\Delta p^\top = 0,\; p\,\Delta p^\top = 0
              \quad\text{or}\quad q_h W_{k,h}\,\Delta p^\top = 0 \text{ for each head } h

    and, if the values are kept too, to :math:`a_h\,\Delta p = 0` for the weights :math:`a_h` that
    head :math:`h` puts on the ``P`` prompts.

    Args:
        embed_dim: Width ``D`` of a token.
        length: ``P``, number of prompt tokens.
        init_bound: Prompts start uniform in [0, ``init_bound``].
        against: What the prompts must not move along: ``"inputs"``, the first pair of conditions,
            as the paper prints it; ``"queries"``, the other one, which keeps the attention weights
            exactly where keys are not normalised.
        project_values: Whether the attention weights are a further site. With ``"queries"`` old
            outputs then stay exactly.

    Source:
        Qiao et al., arXiv 2405.13383, eqs. (1), (9) and (10); released code f6515bf has hooks for
        prompts only.
        Differs: the released CLIP code (4662b80) takes the basis of the sum of inputs and prompts
        and the paper pairs their bases by similarity, neither of which implies both conditions;
        here their rows are stacked. ``"inputs"`` leaves out the query and key maps and the values,
        as published, so old outputs move.

    Example:
        >>> [site.name for site in PromptTokens(8, project_values=True).projection_sites()]
        ['tokens', 'tokens:values']
    """

    def __init__(
        self,
        embed_dim: int,
        *,
        length: int = 10,
        init_bound: float = 0.01,
        against: Against = "inputs",
        project_values: bool = False,
    ) -> None:
        super().__init__()
        self.against, self.project_values = against, project_values
        self.tokens = nn.Parameter(torch.empty(length, embed_dim).uniform_(0, init_bound))
        self.key_probe, self.value_probe = Probe(), Probe()

    def forward(
        self, attention: SelfAttention, tokens: Tensor, q: Tensor, k: Tensor, v: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return keys and values with those of the prompts in front.

        Args:
            attention: The block's attention.
            tokens: Its input, ``(B, N, D)``.
            q: ``(B, H, Q, D / H)``.
            k: ``(B, H, N, D / H)``.
            v: ``(B, H, N, D / H)``.

        Returns:
            Two of ``(B, H, P + N, D / H)``.
        """
        keys, values = keys_and_values(attention, self.tokens)
        k, v = in_front(keys, k), in_front(values, v)
        if self.key_probe.listening:
            dim = attention.attn_dim
            self.key_probe(self._key_rows(tokens, q, attention.qkv.weight[dim : 2 * dim]))
        if self.value_probe.listening:
            self.value_probe(weights_on_first(attention, q, k, length=len(self.tokens)))
        return k, v

    def projection_sites(self) -> Iterator[ProjectionSite]:
        """State what must hold for the attention to the prompts, and its output, to stay."""
        yield ProjectionSite("tokens", self.tokens, self.key_probe)
        if self.project_values:
            yield ProjectionSite("tokens:values", self.tokens, self.value_probe, view=_transposed)

    def _key_rows(self, tokens: Tensor, q: Tensor, key_map: Tensor) -> Tensor:
        """Return ``(B, P + N, D)`` against inputs, ``(B, Q, H, D)`` against queries."""
        if self.against == "inputs":
            prompts = self.tokens.to(tokens.dtype).expand(len(tokens), -1, -1)
            return torch.cat([prompts, tokens], dim=1)
        dim = key_map.shape[1]
        by_head = key_map.view(q.shape[1], -1, dim)  # (H, D / H, D)
        with torch.autocast(q.device.type, enabled=False):
            return torch.einsum("bhqc,hcd->bqhd", q.float(), by_head.float())


def _transposed(prompts: Tensor) -> Tensor:
    """Return ``(P, D)`` prompts as rows in the space of attention weights, ``(1, D, P)``."""
    return prompts.T[None]


class PromptBranch(ExtendingBranch):
    """A pass with :class:`PromptTokens` in some blocks, each its own.

    Args:
        embed_dim: Width ``D`` of a token.
        blocks: Which blocks, from 0.
        length: ``P``, number of prompt tokens of a block.
        init_bound: Prompts start uniform in [0, ``init_bound``].
        against: What the prompts must not move along, see :class:`PromptTokens`.
        project_values: Whether the attention weights are a further site.

    Source:
        Qiao et al., arXiv 2405.13383, eq. (1). Differs: see :class:`PromptTokens`.
    """

    def __init__(
        self,
        embed_dim: int,
        blocks: Sequence[int],
        *,
        length: int = 10,
        init_bound: float = 0.01,
        against: Against = "inputs",
        project_values: bool = False,
    ) -> None:
        super().__init__(
            {
                index: PromptTokens(
                    embed_dim,
                    length=length,
                    init_bound=init_bound,
                    against=against,
                    project_values=project_values,
                )
                for index in blocks
            }
        )


@exportable
def build_prompt(
    *,
    backbone: Backbone,
    length: Width = 10,
    init_bound: InitBound = 0.01,
    against: Against = "inputs",
    project_values: bool = False,
    blocks: list[int] | None = None,
) -> PromptBranch:
    """Build a :class:`PromptBranch` that fits ``backbone``.

    Args:
        backbone: The frozen network.
        length: Number of prompt tokens of a block.
        init_bound: Prompts start uniform in [0, ``init_bound``].
        against: What the prompts must not move along, see :class:`PromptTokens`.
        project_values: Whether gradient projection keeps the prompts' values too.
        blocks: Which blocks, from 0; ``None`` takes the first one, ``[0, 1, 2, 3, 4]`` gives each
            of the first five its own prompts.

    Raises:
        ConfigError: If ``blocks`` does not fit the network, an attention takes no further keys, or
            ``against="queries"`` and an attention normalises its keys.
    """
    chosen = choose_blocks(blocks, backbone.depth, default=1)
    attentions = [backbone.attention(index) for index in chosen]
    for index, attention in zip(chosen, attentions, strict=True):
        norm = attention.k_norm
        if against == "queries" and not isinstance(norm, nn.Identity):
            raise ConfigError(
                f"against='queries' needs keys that are linear in the prompts, but block {index} "
                f"normalises them ({type(norm).__name__}); use against='inputs', or prefix tokens"
            )
    return PromptBranch(
        backbone.embed_dim,
        chosen,
        length=length,
        init_bound=init_bound,
        against=against,
        project_values=project_values,
    )
