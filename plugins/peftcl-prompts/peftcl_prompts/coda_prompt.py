"""CODA-Prompt: keys and values that are weighted sums of all components so far."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from avalanche.training.plugins import LRSchedulerPlugin
from torch import Tensor
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR

from avalanche_peftcl import takes
from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.functional import in_double, remove_component
from avalanche_peftcl.models import (
    Backbone,
    Branch,
    Embedded,
    ExperienceParts,
    HeadBuilder,
    attend_with_prefix,
    exportable,
)
from avalanche_peftcl.training import PEFTTemplate
from peftcl_prompts.blocks import Block, chosen_blocks
from peftcl_prompts.ranges import Epochs, GradNorm, LearningRate, MinibatchSize, Weight, Width
from peftcl_prompts.tuning import PromptOptions, prompt_model, prompt_strategy


def component_weights(queries: Tensor, attention: Tensor, keys: Tensor) -> Tensor:
    r"""Return the weight of each component, :math:`\alpha_m = \cos(q \odot A_m, K_m)`.

    Args:
        queries: ``(B, E)``.
        attention: :math:`A`, ``(L, M, E)``.
        keys: :math:`K`, ``(L, M, E)``.

    Returns:
        ``(B, L, M)`` in float32.

    Source:
        Smith et al., CVPR 2023, arXiv 2211.13218, eqs. (4) and (5). Differs: nothing; the products
        are never formed, for :math:`(q \odot A) \cdot K = q \cdot (A \odot K)`.

    Example:
        >>> q, one = torch.tensor([[3.0, 4.0]]), torch.ones(1, 1, 2)
        >>> component_weights(q, one, torch.tensor([[[1.0, 0.0]]]))
        tensor([[[0.6000]]])
    """
    with torch.autocast(queries.device.type, enabled=False):
        q, a, k = queries.float(), attention.float(), keys.float()
        above = torch.einsum("be,lme->blm", q, a * F.normalize(k, dim=2))
        below = torch.einsum("be,lme->blm", q.square(), a.square()).sqrt()
        return above / below.clamp_min(1e-12)


def orthonormal_rows(count: int, old: Tensor) -> Tensor:
    """Draw rows of unit norm that are orthogonal to each other and to old ones.

    Args:
        count: How many.
        old: ``(M, D)``, of any length.

    Returns:
        ``(count, D)``, in the dtype and on the device of ``old``.

    Raises:
        ValueError: If there are not so many directions left.

    Source:
        Smith et al., CVPR 2023, released code 6417d4f (Gram-Schmidt before each experience).
        Differs: by QR in float64, drawn from a normal distribution.

    Example:
        >>> rows = orthonormal_rows(1, torch.tensor([[2.0, 0.0], [3.0, 0.0]]))
        >>> rows.abs()
        tensor([[0., 1.]])
    """
    width = old.shape[1]
    fresh = torch.randn(count, width, dtype=torch.float64)
    left, values, _ = torch.linalg.svd(in_double(old).cpu().T, full_matrices=False)
    span = left[:, values > 1e-6 * values.amax()] if len(old) else left[:, :0]  # (D, K)
    if span.shape[1] + count > width:
        raise ValueError(
            f"{count} rows cannot be orthogonal to {span.shape[1]} others in {width} dimensions"
        )
    for _ in range(2):  # the second time takes off what rounding left
        fresh = torch.linalg.qr(remove_component(fresh, span).T).Q.T
    return fresh.to(old)


def off_orthonormal(rows: Tensor) -> Tensor:
    r"""Return the mean of the squared entries of :math:`R R^\top - I`, ``()``.

    Args:
        rows: ``(..., M, D)``.
    """
    gram = rows @ rows.mT
    return (gram - torch.eye(gram.shape[-1], device=gram.device)).square().mean()


class CODAPromptBranch(Branch):
    r"""A pass whose keys and values in ``L`` blocks are sums over components of all experiences.

    .. math:: p(x) = \sum_m \cos(q(x) \odot A_m, K_m)\, P_m

    with :math:`q` the frozen feature. The first half of :math:`p` is keys, the second values. Those
    of earlier experiences are summed and do not train.

    Args:
        embed_dim: Width ``D`` of a token.
        query_dim: Width ``E`` of a frozen feature.
        blocks: Which blocks, from 0.
        components: ``M``, components of a block and an experience.
        length: ``P``, rows of a component, half of them keys.
        orthogonality: Weight of the mean squared entries of :math:`K K^\top - I`, and of the same
            of :math:`A` and :math:`P`, over all components.

    Attributes:
        parts: Of each experience ``prompts``, ``(L, M, P, D)``, ``keys`` and ``attention``,
            ``(L, M, E)``, orthonormal in a block and to those of earlier experiences.

    Source:
        See :func:`build_coda_prompt`.
    """

    forward_passes = 2

    def __init__(
        self,
        embed_dim: int,
        query_dim: int,
        blocks: Sequence[int],
        *,
        components: int = 10,
        length: int = 8,
        orthogonality: float = 0.0,
    ) -> None:
        super().__init__()
        self.shares_start = 0 not in blocks
        self.blocks, self.orthogonality = list(blocks), orthogonality
        shapes = {
            "prompts": (len(blocks), components, length, embed_dim),
            "keys": (len(blocks), components, query_dim),
            "attention": (len(blocks), components, query_dim),
        }
        self.parts = ExperienceParts({name: torch.zeros(shape) for name, shape in shapes.items()})
        self._draw()

    def start_experience(self, number: int) -> None:
        """Draw new components, orthonormal to the old ones, which are frozen."""
        if self.parts.start(number):
            self._draw()

    @torch.no_grad()
    def _draw(self) -> None:
        for name in ("prompts", "keys", "attention"):
            new, past = self.parts.get_parameter(name), self.parts.past(name)
            for block in range(len(self.blocks)):
                old = past[:, block].reshape(-1, new[block, 0].numel())
                try:
                    drawn = orthonormal_rows(new.shape[1], old)
                except ValueError as error:
                    raise ConfigError(
                        f"experience {len(self.parts)} has no place for its components: {error}; "
                        "take fewer components an experience"
                    ) from error
                new[block] = drawn.view_as(new[block])

    def components(self, name: str) -> Tensor:
        """Return ``prompts``, ``keys`` or ``attention`` of all experiences, ``(L, T * M, ...)``."""
        return self.parts.every(name).transpose(0, 1).flatten(1, 2)

    def begin(self, backbone: Backbone, embedded: Embedded) -> Tensor:
        """Return each image's keys and values, ``(B, L, P, D)``."""
        prompts, keys, attention = map(self.components, ("prompts", "keys", "attention"))
        if self.orthogonality:
            off = (off_orthonormal(rows) for rows in (prompts.flatten(2), keys, attention))
            self.terms["orthogonality"] = self.orthogonality * torch.stack(list(off)).sum()
        weights = component_weights(embedded.query(), attention, keys)
        return torch.einsum("blm,lmpd->blpd", weights, prompts)

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
        keys, values = context[:, self.blocks.index(index)].chunk(2, dim=1)  # (B, P / 2, D)
        return attend_with_prefix(
            backbone, index, tokens, keys=keys, values=values, queries=queries
        )


@exportable
def build_coda_prompts(
    *,
    backbone: Backbone,
    blocks: list[Block] | None = None,
    components: Width = 10,
    length: Width = 8,
    orthogonality: Weight = 0.0,
) -> CODAPromptBranch:
    """Build a :class:`CODAPromptBranch` that fits ``backbone``.

    Raises:
        ConfigError: If the network has not the blocks, or rows do not divide into keys and values.
    """
    if length % 2:
        raise ConfigError(f"length={length} must be even: half of it is keys, half is values")
    return CODAPromptBranch(
        backbone.embed_dim,
        Branch().out_features(backbone),
        chosen_blocks(backbone, blocks, default=range(5), what="blocks"),
        components=components,
        length=length,
        orthogonality=orthogonality,
    )


@dataclass(frozen=True, kw_only=True)
class CODAPromptOptions(PromptOptions):
    """Options of CODA-Prompt's training; the defaults are those published for CIFAR-100."""

    lr: LearningRate = 1e-3
    train_mb_size: MinibatchSize = 128
    train_epochs: Epochs = 20
    max_grad_norm: GradNorm | None = None


@takes(CODAPromptOptions)
def build_coda_prompt(
    *,
    backbone: Backbone,
    head: HeadBuilder | None = None,
    blocks: list[Block] | None = None,
    components: Width = 10,
    length: Width = 8,
    orthogonality: Weight = 0.0,
    anneal: bool | None = None,
    options: CODAPromptOptions,
) -> PEFTTemplate:
    """Build CODA-Prompt: each image's keys and values are a weighted sum of all components so far.

    Serves all scenarios. Grows on demand: an experience adds its components, and nobody has to know
    how many will come; online without boundaries all are one. They are orthonormal, so there may
    be as many in a block as a frozen feature has dimensions, over all experiences. Two passes an
    image, in training and in prediction, of which one without gradient. A class stores its row of
    the head. Nothing is chosen: no image's prediction depends on another.

    Args:
        backbone: The frozen network.
        head: What classifies; ``None``: a linear one.
        blocks: Which blocks, from 0; ``None``: the first five.
        components: Components of a block and an experience; published are 100 for all experiences.
        length: Rows of a component, half of them keys and half values.
        orthogonality: Weight of the terms that keep components orthonormal; the paper has 0.1, the
            release 0.
        anneal: Whether the learning rate falls in each experience of ``E`` epochs, in epoch ``e``
            to ``cos(99 pi e / (200 (E - 1)))`` of it; ``None`` is yes unless a plugin schedules it.
        options: The defaults are those of the release for CIFAR-100: Adam with rate 0.001, 20
            epochs of minibatches of 128, and a loss over the classes of the experience; for
            ImageNet-R 50 epochs.

    Source:
        Smith et al., CVPR 2023, arXiv 2211.13218; released code GT-RIPL/CODA-Prompt 6417d4f.
        Differs: components come with the experiences, where the release divides 100 among a number
        that it knows. The head's rows start at zero; those of old classes get no gradient and stay.
    """
    branch = build_coda_prompts(
        backbone=backbone,
        blocks=blocks,
        components=components,
        length=length,
        orthogonality=orthogonality,
    )
    model = prompt_model(backbone, branch, head)
    return prompt_strategy(model, anneal=anneal, options=options, schedule=quarter_cosine)


def quarter_cosine(optimizer: torch.optim.Optimizer, train_epochs: int) -> LRSchedulerPlugin:
    """Return what lets the learning rate fall over the first 0.99 of a quarter of a cosine."""
    last = max(1, train_epochs - 1)
    schedule = LambdaLR(optimizer, lambda epoch: math.cos(0.495 * math.pi * min(1, epoch / last)))
    return LRSchedulerPlugin(schedule, reset_scheduler=True, reset_lr=True)
