"""OnePrompt: the same keys and values for all experiences; no pool, no query, nothing chosen."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from avalanche_peftcl import takes
from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.models import Backbone, Branch, HeadBuilder, PrefixTokens, exportable
from avalanche_peftcl.training import PEFTTemplate
from peftcl_prompts.blocks import Block, chosen_blocks
from peftcl_prompts.ranges import Epochs, GradNorm, LearningRate, MinibatchSize, Width
from peftcl_prompts.tuning import PromptOptions, prompt_model, prompt_strategy


class OnePromptBranch(Branch):
    """A pass with further keys and values in some blocks, as many in each as is said.

    Args:
        embed_dim: Width ``D`` of a token.
        num_heads: Of the attention.
        lengths: ``P``, keys of each block, by its number from 0.

    Attributes:
        prefixes: :class:`.PrefixTokens` of each block, from U(-1, 1); they state what gradient
            projection keeps.

    Source:
        See :func:`build_one_prompt`.
    """

    def __init__(self, embed_dim: int, num_heads: int, lengths: Mapping[int, int]) -> None:
        super().__init__()
        self.shares_start = 0 not in lengths
        self.prefixes = nn.ModuleDict(
            {str(i): PrefixTokens(embed_dim, num_heads, length=p) for i, p in lengths.items()}
        )
        for parameter in self.prefixes.parameters():
            nn.init.uniform_(parameter, -1, 1)

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
        if (name := str(index)) not in self.prefixes:
            return backbone.attend(index, tokens, queries=queries)
        return backbone.attend(index, tokens, queries=queries, extend=self.prefixes[name])


@exportable
def build_one_prompts(
    *,
    backbone: Backbone,
    short_blocks: list[Block] | None = None,
    long_blocks: list[Block] | None = None,
    short_length: Width = 5,
    long_length: Width = 20,
) -> OnePromptBranch:
    """Build a :class:`OnePromptBranch` that fits ``backbone``.

    Raises:
        ConfigError: If the network has not the blocks, or one is to have both lengths.
    """
    short = chosen_blocks(backbone, short_blocks, default=range(2), what="short_blocks")
    long = chosen_blocks(backbone, long_blocks, default=range(2, 5), what="long_blocks")
    if both := sorted(set(short) & set(long)):
        raise ConfigError(
            f"blocks {both} are in short_blocks and long_blocks; leave them out of one"
        )
    lengths = dict.fromkeys(short, short_length) | dict.fromkeys(long, long_length)
    heads = backbone.attention(short[0]).num_heads
    return OnePromptBranch(backbone.embed_dim, heads, lengths)


@dataclass(frozen=True, kw_only=True)
class OnePromptOptions(PromptOptions):
    """Options of OnePrompt's training; the defaults are those published for ImageNet-R."""

    lr: LearningRate = 1e-3
    train_mb_size: MinibatchSize = 128
    train_epochs: Epochs = 50
    max_grad_norm: GradNorm | None = None


@takes(OnePromptOptions)
def build_one_prompt(
    *,
    backbone: Backbone,
    head: HeadBuilder | None = None,
    short_blocks: list[Block] | None = None,
    long_blocks: list[Block] | None = None,
    short_length: Width = 5,
    long_length: Width = 20,
    anneal: bool | None = None,
    options: OnePromptOptions,
) -> PEFTTemplate:
    """Build OnePrompt: keys and values that every experience trains on and every image gets.

    Serves all scenarios, and needs no number of experiences: nothing grows. One pass an image, in
    training and in prediction. A class stores its row of the head.

    Args:
        backbone: The frozen network.
        head: What classifies; ``None``: a linear one.
        short_blocks: Blocks with few keys, from 0; ``None``: the first two.
        long_blocks: Blocks with many; ``None``: the third to the fifth.
        short_length: Keys of a short block, and as many values.
        long_length: Keys of a long block, and as many values.
        anneal: Whether the learning rate falls to 0 as a cosine in each experience; ``None`` is yes
            unless a plugin schedules it.
        options: The defaults are published for ImageNet-R: Adam with rate 0.001, minibatches of
            128, 50 epochs (of which the last ten are those of OVOR's virtual outliers, the plugin
            ``virtual_outliers``), and a loss over the classes of the experience.

    Source:
        Huang et al., ICLR 2024, arXiv 2402.04129, its OnePrompt; released code jpmorganchase/ovor
        4f59b75.
        Differs: how the release draws its prompts and lets the learning rate fall was not read:
        here they are from U(-1, 1), and it falls as a cosine.
    """
    branch = build_one_prompts(
        backbone=backbone,
        short_blocks=short_blocks,
        long_blocks=long_blocks,
        short_length=short_length,
        long_length=long_length,
    )
    return prompt_strategy(prompt_model(backbone, branch, head), anneal=anneal, options=options)
