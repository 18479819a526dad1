"""O-LoRA: a new pair an experience, whose A is kept orthogonal to those of all earlier ones."""

from dataclasses import dataclass
from typing import Annotated, Any

import torch
from avalanche.core import SupervisedPlugin
from pydantic import Field
from torch import Tensor

from avalanche_peftcl import takes
from avalanche_peftcl.models import Backbone, HeadBuilder
from avalanche_peftcl.training import OptimizerName, PEFTTemplate, add_loss
from peftcl_lora.pairs import PairedLoRA, Part
from peftcl_lora.strategy import PairOptions, Rank, Rate, Weight, pair_strategy


def overlap(past_down: Tensor, down: Tensor) -> Tensor:
    r"""Return how far a pair's ``A`` is from orthogonal to those of old pairs, summed over parts.

    .. math:: \sum_{s < t} \sum_{ij} \lvert A_s A_t^\top \rvert_{ij}

    Args:
        past_down: ``(T, P, R, D)``; ``T`` may be 0.
        down: ``(P, R, D)``.

    Returns:
        A scalar.

    Source:
        Wang et al., arXiv 2310.14152; released code cmnfriend/O-LoRA 07117e1.
        Differs: nothing.

    Example:
        >>> one = torch.tensor([[[1.0, 2.0]]])
        >>> overlap(torch.tensor([[[[3.0, -2.0]]], [[[0.0, -1.0]]]]), one)
        tensor(3.)
    """
    return torch.einsum("tprd,pqd->tprq", past_down, down).abs().sum()


class OLoRAPlugin(SupervisedPlugin):
    r"""Adds O-LoRA's two terms to the loss of a network whose branch is a :class:`.PairedLoRA`.

    .. math:: \lambda_1 \sum_{sites} \sum_{s<t} \sum_{ij} \lvert A_s A_t^\top \rvert_{ij}
              + \lambda_2 \sum_{sites} (\lVert A_t \rVert_2 + \lVert B_t \rVert_2)

    Args:
        orthogonality: :math:`\lambda_1`.
        norm: :math:`\lambda_2`.

    Source:
        See :func:`build_o_lora`.
    """

    remembers: tuple[str, ...] = ()

    def __init__(self, orthogonality: float, norm: float) -> None:
        super().__init__()
        self.orthogonality, self.norm = orthogonality, norm

    def before_backward(self, strategy: Any, **kwargs: Any) -> None:
        """Add the terms that have a weight."""
        branch: PairedLoRA = strategy.network.branch
        layers = branch.paired()
        if self.orthogonality and len(layers[0].past_down):
            terms = [overlap(layer.past_down, layer.down) for layer in layers]
            add_loss(strategy, "orthogonality", self.orthogonality * torch.stack(terms).sum())
        if self.norm:
            lengths = [p.flatten(1).norm(dim=1).sum() for each in layers for p in each.parameters()]
            add_loss(strategy, "norm", self.norm * torch.stack(lengths).sum())


@dataclass(frozen=True, kw_only=True)
class OLoRAOptions(PairOptions):
    """Options of O-LoRA's training."""

    lr: Rate = 0.001


@takes(OLoRAOptions)
def build_o_lora(
    *,
    backbone: Backbone,
    head: HeadBuilder | None = None,
    r: Rank = 8,
    alpha: Annotated[float, Field(ge=1e-6, le=1e6)] = 32.0,
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1,
    parts: tuple[Part, ...] = ("q", "v"),
    blocks: list[int] | None = None,
    orthogonality: Weight = 0.5,
    norm: Weight = 0.0,
    optimizer: OptimizerName = "adamw",
    anneal: bool = False,
    options: OLoRAOptions,
) -> PEFTTemplate:
    r"""Build O-LoRA for a vision transformer.

    Each experience trains a LoRA pair of its own; the loss keeps the rows of its ``A`` orthogonal
    to those of all earlier pairs, which stay in the sum and train no more. With an update in the
    space of new rows alone, inputs in that of the old ones find the weights as they were.

    Args:
        backbone: The frozen network.
        head: The classifier; ``None`` is linear.
        r: Rank of a pair.
        alpha: Pairs act with the factor ``alpha / r``.
        dropout: Probability of the dropout in front of every ``A``, in training.
        parts: Which of ``q``, ``k`` and ``v`` have pairs.
        blocks: Which blocks, from 0; ``None`` takes all.
        orthogonality: Weight :math:`\lambda_1` of the orthogonality. It multiplies a sum over
            sites and pairs of rows: with another ``r`` or other ``blocks`` it means another thing.
        norm: Weight :math:`\lambda_2` of the norms of the new matrices; published for some
            tasks only, up to 0.3.
        optimizer: Of pairs and head; it starts anew in each experience, as parameters are new.
        anneal: Whether the learning rate falls as a cosine over the epochs of an experience.
        options: Rank, factor, dropout, weights and learning rate are those published for T5-large;
            epochs and minibatches are ours: on texts it is one epoch.

    Needs:
        No number of experiences in advance.

    Costs:
        One pass a training step and image, one pass a test image, of a network whose pairs grow
        with the stream. Stored: nothing a class beside the head's row; an experience
        ``P L R (D + E)`` floats, ``P`` parts and ``L`` blocks.

    Source:
        Wang et al., "Orthogonal Subspace Learning for Language Model Continual Learning", EMNLP
        Findings 2023, arXiv 2310.14152; released code cmnfriend/O-LoRA 07117e1.

    Differs:
        A classifier of images, with rows for the classes of each experience and a loss over these,
        in place of a language model that is instructed which task it has. One draw of the
        dropout is shared by old pairs and the new one.
    """
    branch = PairedLoRA(backbone, r=r, parts=parts, blocks=blocks, scale=alpha / r, dropout=dropout)
    plugins = [OLoRAPlugin(orthogonality, norm)]
    return pair_strategy(
        backbone, branch, head, plugins, optimizer=optimizer, anneal=anneal, options=options
    )
