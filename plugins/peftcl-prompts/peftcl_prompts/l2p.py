"""L2P: prompts from a pool, chosen image by image, in front of the patches."""

from collections.abc import Iterator
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
    HeadBuilder,
    Probe,
    ProjectionSite,
    exportable,
)
from avalanche_peftcl.training import PEFTTemplate
from peftcl_prompts.ranges import Epochs, LearningRate, MinibatchSize, Weight, Width
from peftcl_prompts.selection import most_similar, similarities
from peftcl_prompts.tokens import insert
from peftcl_prompts.tuning import PromptOptions, prompt_model, prompt_strategy


class PromptPoolBranch(Branch):
    r"""A pass with the prompts of a pool whose keys are most similar to the image's frozen feature.

    They stand between the CLS token and the patches from the first block on; the feature is the
    mean of what comes out of them. With :math:`q` the frozen feature and :math:`S` the chosen keys

    .. math:: \ell_\text{pull} = -\lambda\, \frac{1}{B} \sum_b \sum_{j \in S_b} \cos(q_b, k_j)

    is added to the loss.

    Args:
        embed_dim: Width ``D`` of a token.
        query_dim: Width ``E`` of a frozen feature.
        size: ``M``, prompts in the pool.
        length: ``P``, tokens of a prompt.
        top_k: ``K``, how many prompts an image gets.
        pull: :math:`\lambda`.
        batchwise: Let a minibatch vote, see :func:`.most_similar`.

    Attributes:
        prompts: ``(M, P, D)``, from U(-1, 1).
        keys: ``(M, E)``, from U(-1, 1).

    Source:
        See :func:`build_l2p`.
    """

    shares_start = False
    reads = "tokens"
    forward_passes = 2

    def __init__(
        self,
        embed_dim: int,
        query_dim: int,
        *,
        size: int = 10,
        length: int = 5,
        top_k: int = 5,
        pull: float = 0.1,
        batchwise: bool = False,
    ) -> None:
        super().__init__()
        self.top_k, self.pull, self.batchwise = top_k, pull, batchwise
        self.prompts = nn.Parameter(torch.empty(size, length, embed_dim).uniform_(-1, 1))
        self.keys = nn.Parameter(torch.empty(size, query_dim).uniform_(-1, 1))
        self.token_probe, self.query_probe = Probe(), Probe()

    def begin(self, backbone: Backbone, embedded: Embedded) -> Tensor:
        """Return each image's prompts, ``(B, K * P, D)``."""
        query = self.query_probe(embedded.query())
        scores = similarities(query, self.keys)
        chosen = most_similar(scores.detach(), self.top_k, batchwise=self.batchwise)
        pulled = scores.gather(1, chosen).sum(dim=1)  # (B,)
        self.terms["pull"] = -self.pull * pulled.mean()
        return self.prompts[chosen].flatten(1, 2)

    def attend(
        self,
        backbone: Backbone,
        index: int,
        tokens: Tensor,
        *,
        queries: int | None = None,
        context: Any = None,
    ) -> Tensor:
        """Put the prompts behind the prefix tokens in the first block, then attend."""
        if index == 0:
            tokens = self.token_probe(insert(tokens, context, backbone.num_prefix_tokens))
        return backbone.attend(index, tokens, queries=queries)

    def pool(self, backbone: Backbone, tokens: Any) -> Tensor:
        """Return the mean of the prompts' outputs: ``(B, N + K P, D)`` to ``(B, D)``."""
        prefix, length = backbone.num_prefix_tokens, self.top_k * self.prompts.shape[1]
        return backbone.norm(tokens)[:, prefix : prefix + length].mean(dim=1)

    def out_features(self, backbone: Backbone) -> int:
        """Return the width of a token."""
        return backbone.embed_dim

    def projection_sites(self) -> Iterator[ProjectionSite]:
        """State what PGP keeps: prompts against tokens and prompts, keys against queries."""
        yield ProjectionSite("prompts", self.prompts, self.token_probe, view=_token_rows)
        yield ProjectionSite("keys", self.keys, self.query_probe)


def _token_rows(prompts: Tensor) -> Tensor:
    """Return ``(M, P, D)`` as rows, ``(1, M * P, D)``."""
    return prompts.view(1, -1, prompts.shape[-1])


@exportable
def build_prompt_pool(
    *,
    backbone: Backbone,
    size: Width = 10,
    length: Width = 5,
    top_k: Width = 5,
    pull: Weight = 0.1,
    batchwise: bool = False,
) -> PromptPoolBranch:
    """Build a :class:`PromptPoolBranch` that fits ``backbone``.

    Raises:
        ConfigError: If an image is to get more prompts than there are.
    """
    if top_k > size:
        raise ConfigError(
            f"top_k={top_k} prompts cannot be chosen from a pool of size={size}; take a larger "
            "pool or fewer of it"
        )
    query_dim = Branch().out_features(backbone)
    return PromptPoolBranch(
        backbone.embed_dim,
        query_dim,
        size=size,
        length=length,
        top_k=top_k,
        pull=pull,
        batchwise=batchwise,
    )


@dataclass(frozen=True, kw_only=True)
class L2POptions(PromptOptions):
    """Options of L2P's training; the defaults are those published for CIFAR-100."""

    lr: LearningRate = 1.875e-3
    train_mb_size: MinibatchSize = 16
    train_epochs: Epochs = 5


@takes(L2POptions)
def build_l2p(
    *,
    backbone: Backbone,
    head: HeadBuilder | None = None,
    size: Width = 10,
    length: Width = 5,
    top_k: Width = 5,
    pull: Weight = 0.1,
    batchwise: bool = False,
    anneal: bool | None = False,
    options: L2POptions,
) -> PEFTTemplate:
    """Build L2P: a pool of prompts, from which each image gets what its frozen feature asks for.

    Serves all scenarios, and needs no number of experiences: the pool never grows. Two passes an
    image, in training and in prediction, of which one without gradient. Stores the pool and its
    keys, and of a class its row of the head.

    Args:
        backbone: The frozen network.
        head: What classifies the mean of the prompts' outputs; ``None``: a linear one.
        size: Prompts in the pool.
        length: Tokens of a prompt.
        top_k: How many prompts an image gets.
        pull: Weight of the term that pulls keys to the queries that chose them.
        batchwise: Give all images of a minibatch the prompts that most of them choose, as the
            release does, in tests too. Predictions then depend on the minibatch; it warns.
        anneal: Whether the learning rate falls to 0 as a cosine in each experience.
        options: The defaults are those of the PyTorch release for CIFAR-100: Adam with rate
            0.03 * 16 / 256, 5 epochs of minibatches of 16, gradients clipped at norm 1, and a loss
            over the classes of the experience.

    Source:
        Wang et al., CVPR 2022, arXiv 2112.08654; released code JH-LEE-KR/l2p-pytorch f7bc994. The
        JAX original (google-research/l2p) has ``length=10, top_k=4, pull=1``.
        Differs: prompts image by image (``batchwise=True`` is the release's). Prompts have no place
        of their own, where the release stretches the network's position embedding over prompts and
        patches; what it would add to a prompt the prompt can learn. The head's rows start at zero.
        The query is of the same network, not of a second copy.
    """
    branch = build_prompt_pool(
        backbone=backbone, size=size, length=length, top_k=top_k, pull=pull, batchwise=batchwise
    )
    model = prompt_model(backbone, branch, head)
    return prompt_strategy(model, anneal=anneal, options=options, batchwise=batchwise)
