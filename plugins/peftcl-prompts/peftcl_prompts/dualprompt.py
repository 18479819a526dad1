"""DualPrompt: keys and values for all experiences, and for each its own, found by a key."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from avalanche_peftcl import takes
from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.models import (
    Backbone,
    Branch,
    Embedded,
    ExperienceParts,
    HeadBuilder,
    PrefixTokens,
    Probe,
    ProjectionSite,
    attend_with_prefix,
    exportable,
)
from avalanche_peftcl.training import PEFTTemplate
from peftcl_prompts.blocks import Block, chosen_blocks
from peftcl_prompts.ranges import Epochs, LearningRate, MinibatchSize, Weight, Width
from peftcl_prompts.selection import most_similar, similarities
from peftcl_prompts.tuning import PromptOptions, prompt_model, prompt_strategy


class DualPromptBranch(Branch):
    r"""A pass with general keys and values in some blocks, those of one experience in others.

    In train mode an image gets those of the experience that trains, whose key :math:`k_t` is pulled
    to the frozen features :math:`q`,

    .. math:: \ell_\text{pull} = -\lambda\, \frac{1}{B} \sum_b \cos(q_b, k_t)

    In eval mode it gets those whose key is most similar to its own frozen feature. Keys and values
    stand in front of the block's own, behind its maps.

    Args:
        embed_dim: Width ``D`` of a token.
        query_dim: Width ``E`` of a frozen feature.
        num_heads: Of the attention.
        g_blocks: Blocks with general keys and values.
        e_blocks: The ``L`` blocks with those of an experience.
        g_length: ``P``, general keys of a block.
        e_length: ``P``, keys of a block and an experience.
        pull: :math:`\lambda`.
        batchwise: Let a minibatch vote in eval mode, see :func:`.most_similar`.

    Attributes:
        general: For each block of ``g_blocks`` its :class:`.PrefixTokens`, from U(-1, 1).
        parts: Of each experience ``prompts``, ``(L, 2, P, D)``, keys before values, which start as
            those of the experience before, the first from U(-1, 1); and ``key``, ``(E,)``, from
            U(-1, 1).

    Source:
        See :func:`build_dualprompt`.
    """

    forward_passes = 2

    def __init__(
        self,
        embed_dim: int,
        query_dim: int,
        num_heads: int,
        g_blocks: Sequence[int],
        e_blocks: Sequence[int],
        *,
        g_length: int = 5,
        e_length: int = 5,
        pull: float = 1.0,
        batchwise: bool = False,
    ) -> None:
        super().__init__()
        self.shares_start = 0 not in (*g_blocks, *e_blocks)
        self.e_blocks, self.pull, self.batchwise = list(e_blocks), pull, batchwise
        self.general = nn.ModuleDict(
            {str(i): PrefixTokens(embed_dim, num_heads, length=g_length) for i in g_blocks}
        )
        for parameter in self.general.parameters():
            nn.init.uniform_(parameter, -1, 1)
        prompts = torch.empty(len(e_blocks), 2, e_length, embed_dim).uniform_(-1, 1)
        self.parts = ExperienceParts({"prompts": prompts, "key": _drawn_key(query_dim)})
        self.query_probe = Probe()

    def start_experience(self, number: int) -> None:
        """Give the experience prompts, a copy of the last ones, and a new key."""
        if self.parts.start(number):
            key = self.parts.get_parameter("key")
            with torch.no_grad():
                key.copy_(_drawn_key(len(key)))

    def begin(self, backbone: Backbone, embedded: Embedded) -> Tensor:
        """Return each image's keys and values, ``(B, L, 2, P, D)``."""
        query = self.query_probe(embedded.query())
        if self.training:
            own = similarities(query, self.parts.get_parameter("key")[None])
            self.terms["pull"] = -self.pull * own.mean()
            return self.parts.get_parameter("prompts").expand(len(query), -1, -1, -1, -1)
        scores = similarities(query, self.parts.every("key"))
        chosen = most_similar(scores, 1, batchwise=self.batchwise)[:, 0]
        return self.parts.every("prompts")[chosen]

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
        if (name := str(index)) in self.general:
            return backbone.attend(index, tokens, queries=queries, extend=self.general[name])
        if index not in self.e_blocks:
            return backbone.attend(index, tokens, queries=queries)
        keys, values = context[:, self.e_blocks.index(index)].unbind(dim=1)  # (B, P, D)
        return attend_with_prefix(
            backbone, index, tokens, keys=keys, values=values, queries=queries
        )

    def projection_sites(self) -> Iterator[ProjectionSite]:
        """State what PGP keeps beside the general prompts: the key that trains, against queries."""
        key = self.parts.get_parameter("key")
        yield ProjectionSite("parts.key", key, self.query_probe, view=_one_row)


def _drawn_key(width: int) -> Tensor:
    return torch.empty(width).uniform_(-1, 1)


def _one_row(key: Tensor) -> Tensor:
    return key.view(1, 1, -1)


@exportable
def build_dual_prompts(
    *,
    backbone: Backbone,
    g_blocks: list[Block] | None = None,
    e_blocks: list[Block] | None = None,
    g_length: Width = 5,
    e_length: Width = 5,
    pull: Weight = 1.0,
    batchwise: bool = False,
) -> DualPromptBranch:
    """Build a :class:`DualPromptBranch` that fits ``backbone``.

    Raises:
        ConfigError: If the network has not the blocks, or one is to have both kinds.
    """
    general = chosen_blocks(backbone, g_blocks, default=range(2), what="g_blocks")
    own = chosen_blocks(backbone, e_blocks, default=range(2, 5), what="e_blocks")
    if both := sorted(set(general) & set(own)):
        raise ConfigError(f"blocks {both} are in g_blocks and e_blocks; leave them out of one")
    return DualPromptBranch(
        backbone.embed_dim,
        Branch().out_features(backbone),
        backbone.attention(own[0]).num_heads,
        general,
        own,
        g_length=g_length,
        e_length=e_length,
        pull=pull,
        batchwise=batchwise,
    )


@dataclass(frozen=True, kw_only=True)
class DualPromptOptions(PromptOptions):
    """Options of DualPrompt's training; the defaults are those published for CIFAR-100."""

    lr: LearningRate = 2.8125e-3
    train_mb_size: MinibatchSize = 24
    train_epochs: Epochs = 5


@takes(DualPromptOptions)
def build_dualprompt(
    *,
    backbone: Backbone,
    head: HeadBuilder | None = None,
    g_blocks: list[Block] | None = None,
    e_blocks: list[Block] | None = None,
    g_length: Width = 5,
    e_length: Width = 5,
    pull: Weight = 1.0,
    batchwise: bool = False,
    anneal: bool | None = False,
    options: DualPromptOptions,
) -> PEFTTemplate:
    """Build DualPrompt: keys and values that all experiences share, and some of each one's own.

    Serves all scenarios. Grows on demand: an experience adds its key and its keys and values, and
    nobody has to know how many will come; online without boundaries all are one. Two passes an
    image, in training and in prediction, of which one without gradient. A class stores its row of
    the head.

    Args:
        backbone: The frozen network.
        head: What classifies; ``None``: a linear one.
        g_blocks: Blocks with shared keys and values, from 0; ``None``: the first two.
        e_blocks: Blocks with those of the experience; ``None``: the third to the fifth.
        g_length: Shared keys of a block.
        e_length: Keys of a block and an experience.
        pull: Weight of the term that pulls the experience's key to the queries of its images.
        batchwise: Give all images of a test minibatch the prompts that most of them choose, as the
            release does on CIFAR-100. Predictions then depend on the minibatch; it warns.
        anneal: Whether the learning rate falls to 0 as a cosine in each experience.
        options: The defaults are those of the PyTorch release for CIFAR-100: Adam with rate
            0.03 * 24 / 256, 5 epochs of minibatches of 24, gradients clipped at norm 1, and a loss
            over the classes of the experience. For ImageNet-R rate 0.005 * 24 / 256, 50 epochs and
            ``e_length=20`` are published.

    Source:
        Wang et al., ECCV 2022, arXiv 2204.04799; released code JH-LEE-KR/dualprompt-pytorch
        7eb457d.
        Differs: the release reshapes ``(L, 2, B, ...)`` to ``(L, B, 2, ...)`` where axes had to be
        exchanged, so that images get each other's prompts and keys in the place of values; here
        each has its own. Image by image (``batchwise=True`` is the release's vote). The pool grows,
        where the release draws all keys at the start. The head's rows start at zero. The query is
        of the same network, not of a second copy.
    """
    branch = build_dual_prompts(
        backbone=backbone,
        g_blocks=g_blocks,
        e_blocks=e_blocks,
        g_length=g_length,
        e_length=e_length,
        pull=pull,
        batchwise=batchwise,
    )
    model = prompt_model(backbone, branch, head)
    return prompt_strategy(model, anneal=anneal, options=options, batchwise=batchwise)
