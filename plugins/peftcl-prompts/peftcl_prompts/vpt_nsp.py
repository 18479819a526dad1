"""VPT-NSP: prompts in every block, which step only where old images do not notice."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from avalanche.core import SupervisedPlugin
from avalanche.training.plugins import LRSchedulerPlugin
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import MultiStepLR

from avalanche_peftcl import takes
from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.models import Backbone, Branch, HeadBuilder, exportable
from avalanche_peftcl.training import PEFTTemplate, add_loss, ends_experience, feature_pass
from peftcl_prompts.blocks import Block, chosen_blocks
from peftcl_prompts.null_space import null_space_projector
from peftcl_prompts.ranges import (
    Epochs,
    GradNorm,
    LearningRate,
    MinibatchSize,
    Weight,
    WeightDecay,
    Width,
)
from peftcl_prompts.tuning import PromptOptions, prompt_model, prompt_strategy

Temperature = Annotated[float, Field(ge=1e-3, le=1e3)]
Strength = Annotated[float, Field(ge=0, le=1)]


class Moments:
    r"""Second moments of what a prompt of a block meets, over the images of an experience.

    Attributes:
        affinity: Sum of :math:`W_{k,h}^\top q q^\top W_{k,h}` over images, heads and queries, and
            how many these are, of each block.
        attention: Sum of :math:`a^\top a` over images and heads, with :math:`a` the softmax weights
            of all queries on the prompts, ``(Q, P)``, and how many these are.
    """

    def __init__(self) -> None:
        self.affinity: dict[int, tuple[Tensor, int]] = {}
        self.attention: dict[int, tuple[Tensor, int]] = {}

    def add(self, index: int, key_map: Tensor, q: Tensor, weights: Tensor) -> None:
        """Take in a minibatch.

        Args:
            index: The block.
            key_map: :math:`W_k` of all heads, ``(H, D / H, D)``.
            q: ``(B, H, Q, D / H)``.
            weights: ``(B, H, Q, P)``.
        """
        q, weights, key_map = (t.cpu().double() for t in (q, weights, key_map))
        by_head = torch.einsum("bhqc,bhqd->hcd", q, q)
        mapped = torch.einsum("hci,hcd,hdj->ij", key_map, by_head, key_map)  # (D, D)
        columns = torch.einsum("bhqp,bhqr->pr", weights, weights)  # (P, P)
        for held, new, count in (
            (self.affinity, mapped, q.shape[0] * q.shape[1] * q.shape[2]),
            (self.attention, columns, q.shape[0] * q.shape[1]),
        ):
            old, known = held.get(index, (torch.zeros_like(new), 0))
            held[index] = old + new, known + count


class DeepPromptBranch(Branch):
    """A pass with prompts of each block's own, in front of its first norm, dropped behind it.

    Other tokens attend to them; they ask nothing themselves, for what they would get is dropped.

    Args:
        embed_dim: Width ``D`` of a token.
        blocks: The ``L`` blocks, from 0.
        length: ``P``, prompts of a block.

    Attributes:
        prompts: ``(L, P, D)``, from U(-1, 1).
        moments: Where a pass is taken down while somebody wants it.

    Source:
        See :func:`build_vpt_nsp`.
    """

    def __init__(self, embed_dim: int, blocks: Sequence[int], *, length: int = 4) -> None:
        super().__init__()
        self.blocks, self.shares_start = list(blocks), 0 not in blocks
        self.prompts = nn.Parameter(torch.empty(len(blocks), length, embed_dim).uniform_(-1, 1))
        self.moments: Moments | None = None

    def attend(
        self,
        backbone: Backbone,
        index: int,
        tokens: Tensor,
        *,
        queries: int | None = None,
        context: Any = None,
    ) -> Tensor:
        """Return tokens plus their attention, to the block's prompts too."""
        if index not in self.blocks:
            return backbone.attend(index, tokens, queries=queries)
        prompts = backbone.normed(index, self.prompts[self.blocks.index(index)][None])[0]

        def extend(
            attention: Any, _: Any, q: Tensor, k: Tensor, v: Tensor
        ) -> tuple[Tensor, Tensor]:
            dim, heads = attention.attn_dim, attention.num_heads
            weight, bias = attention.qkv.weight, attention.qkv.bias
            mapped = F.linear(prompts, weight[dim:], None if bias is None else bias[dim:])
            by_head = mapped.view(len(prompts), 2, heads, -1).permute(
                1, 2, 0, 3
            )  # (2, H, P, D / H)
            further = by_head[:, None].expand(-1, len(k), -1, -1, -1).to(k.dtype)
            k, v = torch.cat([further[0], k], dim=2), torch.cat([further[1], v], dim=2)
            if self.moments is not None:
                weights = (attention.scale * (q.float() @ k.float().mT)).softmax(dim=3)
                key_map = weight[dim : 2 * dim].view(heads, -1, weight.shape[1])
                self.moments.add(index, key_map, q, weights[..., : len(prompts)])
            return k, v

        return backbone.attend(index, tokens, queries=queries, extend=extend)


@exportable
def build_deep_prompts(
    *, backbone: Backbone, length: Width = 4, blocks: list[Block] | None = None
) -> DeepPromptBranch:
    """Build a :class:`DeepPromptBranch` that fits ``backbone``.

    Raises:
        ConfigError: If the network has not the blocks, or one normalises its keys.
    """
    default = range(backbone.depth)
    chosen = chosen_blocks(backbone, blocks, default=default, what="blocks")
    for index in chosen:
        if not isinstance(norm := backbone.attention(index).k_norm, nn.Identity):
            raise ConfigError(
                f"block {index} normalises its keys ({type(norm).__name__}), which affinities are "
                "then not linear in; take another network, or strategy 'one_prompt'"
            )
    return DeepPromptBranch(backbone.embed_dim, chosen, length=length)


class NullSpacePlugin(SupervisedPlugin):
    r"""Lets prompts step where old images notice least: :math:`\Delta P' = B_2\, \Delta P\, B_1`.

    After an experience its images are read for :class:`Moments`; means over each experience are
    summed. From the second on :math:`B_1` and :math:`B_2` of each block are the projectors of
    :func:`.null_space_projector`, and mean and standard deviation of each prompt over its entries
    are kept near those after the experience before.

    Args:
        branch: The prompts.
        strength: :math:`\eta`.
        keep: Weight of the term that keeps mean and standard deviation.

    Attributes:
        affinity: Summed moments of each block, ``(D, D)``.
        attention: Likewise, ``(P, P)``.
        last_prompts: The prompts after the last experience, ``(L, P, D)``.
    """

    remembers = ("affinity", "attention", "last_prompts", "_unfinished")

    def __init__(self, branch: DeepPromptBranch, *, strength: float, keep: float) -> None:
        super().__init__()
        self.branch, self.strength, self.keep = branch, strength, keep
        self.affinity: list[Tensor] = []
        self.attention: list[Tensor] = []
        self.last_prompts: Tensor | None = None
        self._unfinished: dict[str, Any] = {}  # moments of chunks of an experience
        self._projectors: tuple[Tensor, Tensor] | None = None
        self._start: Tensor | None = None

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Make the projectors of all blocks, ``(L, D, D)`` and ``(L, P, P)``."""
        self._projectors = None
        if self.affinity:
            one, two = (
                torch.stack([null_space_projector(s, strength=self.strength) for s in moments])
                for moments in (self.affinity, self.attention)
            )
            device = self.branch.prompts.device
            self._projectors = one.to(device), two.to(device)

    def before_backward(self, strategy: Any, **kwargs: Any) -> None:
        """Add the term that keeps mean and standard deviation."""
        if self.last_prompts is None or not self.keep:
            return
        new, old = self.branch.prompts, self.last_prompts.to(self.branch.prompts)
        apart = [
            F.l1_loss(one(dim=2), other(dim=2), reduction="none").mean(dim=1).sum()
            for one, other in ((new.mean, old.mean), (new.std, old.std))
        ]
        add_loss(strategy, "layer_norm", self.keep * torch.stack(apart).sum())

    def before_update(self, strategy: Any, **kwargs: Any) -> None:
        """Remember where the prompts are."""
        if self._projectors is not None:
            self._start = self.branch.prompts.detach().clone()

    @torch.no_grad()
    def after_update(self, strategy: Any, **kwargs: Any) -> None:
        """Project what the optimizer did."""
        if self._projectors is not None and self._start is not None:
            one, two = self._projectors
            step = self.branch.prompts - self._start  # (L, P, D)
            self.branch.prompts.copy_(self._start + two @ step @ one)

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Read the images; when the experience ends, add its means to the sums."""
        moments = self.branch.moments = Moments()
        moments.affinity |= self._unfinished.get("affinity", {})
        moments.attention |= self._unfinished.get("attention", {})
        try:
            workers = kwargs.get("num_workers", 0)
            feature_pass(strategy, full_precision=True, num_workers=workers)
        finally:
            self.branch.moments = None
        if not ends_experience(strategy.experience):
            self._unfinished = dict(vars(moments))
            return
        self._unfinished = {}
        self.affinity = self._summed(self.affinity, moments.affinity)
        self.attention = self._summed(self.attention, moments.attention)
        self.last_prompts = self.branch.prompts.detach().cpu().clone()

    def _summed(self, old: list[Tensor], new: dict[int, tuple[Tensor, int]]) -> list[Tensor]:
        means = [total / count for total, count in (new[index] for index in self.branch.blocks)]
        return [a + b for a, b in zip(old, means, strict=True)] if old else means

    @property
    def stored_floats(self) -> int:
        """Floats kept from experience to experience."""
        last = [] if self.last_prompts is None else [self.last_prompts]
        return sum(t.numel() for t in [*self.affinity, *self.attention, *last])


class TemperedCrossEntropy:
    """Cross-entropy of logits over a temperature.

    Args:
        temperature: 1 is plain cross-entropy.
    """

    def __init__(self, temperature: float) -> None:
        self.temperature = temperature

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the mean over a minibatch, ``()``."""
        return F.cross_entropy(logits / self.temperature, targets)


@dataclass(frozen=True, kw_only=True)
class VPTNSPOptions(PromptOptions):
    """Options of the training; the defaults are those published for CIFAR-100."""

    lr: LearningRate = 0.01
    weight_decay: WeightDecay = 5e-5
    train_mb_size: MinibatchSize = 256
    train_epochs: Epochs = 100
    max_grad_norm: GradNorm | None = None


@takes(VPTNSPOptions)
def build_vpt_nsp(
    *,
    backbone: Backbone,
    head: HeadBuilder | None = None,
    length: Width = 4,
    blocks: list[Block] | None = None,
    strength: Strength = 0.97,
    keep: Weight = 1.0,
    temperature: Temperature = 28.0,
    anneal: bool | None = None,
    options: VPTNSPOptions,
) -> PEFTTemplate:
    """Build VPT-NSP: prompts in every block, whose steps are projected off what old images show.

    Serves all scenarios, and needs no number of experiences: nothing grows. One pass an image, in
    training and in prediction; after an experience its images are read once more. Stores second
    moments, ``D * D + P * P`` floats a block, and of a class its row of the head.

    Args:
        backbone: The frozen network.
        head: What classifies; ``None``: a linear one.
        length: Prompts of a block.
        blocks: Which blocks, from 0; ``None``: all.
        strength: 1 keeps steps to the null space, 0 leaves them as they are; 0.94 is published for
            ImageNet-R.
        keep: Weight of the term that keeps mean and standard deviation of each prompt, behind which
            the norm in front of the attention stays as it was.
        temperature: Of the loss; 30 is published for ImageNet-R.
        anneal: Whether the learning rate falls to a tenth after half of the epochs and again after
            eight tenths of them; ``None`` is yes unless a plugin schedules it.
        options: The defaults are published for CIFAR-100: Adam with rate 0.01 and weight decay
            5e-5, minibatches of 256, 100 passes an experience (10 epochs that show each image ten
            times), and a loss over the classes of the experience.

    Source:
        Lu et al., NeurIPS 2024, arXiv 2406.05658; released code zugexiaodui/VPTinNSforCL 0d9c547.
        Differs: the head does not decay, whose old rows would, where the release has a new head an
        experience; of the last block the moments are those of the queries that the pooling reads,
        and images have the test transforms; no AutoAugment. The prompts of texts are left out.
    """
    branch = build_deep_prompts(backbone=backbone, length=length, blocks=blocks)
    model = prompt_model(backbone, branch, head)
    rest = [p for n, p in model.named_parameters() if p.requires_grad and n != "branch.prompts"]
    rates = options.rates()
    optimizer = torch.optim.Adam(
        [
            {"params": [branch.prompts], "weight_decay": rates["weight_decay"]},
            {"params": rest, "weight_decay": 0.0},
        ],
        lr=rates["lr"],
        betas=(rates["momentum"], 0.999),
    )
    return prompt_strategy(
        model,
        optimizer=optimizer,
        anneal=anneal,
        options=options,
        schedule=_milestones,
        criterion=TemperedCrossEntropy(temperature),
        own_plugins=[NullSpacePlugin(branch, strength=strength, keep=keep)],
    )


def _milestones(optimizer: torch.optim.Optimizer, train_epochs: int) -> LRSchedulerPlugin:
    at = [round(share * train_epochs) for share in (0.5, 0.8)]
    schedule = MultiStepLR(optimizer, milestones=at, gamma=0.1)
    return LRSchedulerPlugin(schedule, reset_scheduler=True, reset_lr=True)
