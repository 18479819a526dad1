"""LAE: a module that learns, its slow copy that accumulates, and the surer of the two predicts."""

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from avalanche.core import SupervisedPlugin
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from avalanche_peftcl import takes
from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.models import (
    Backbone,
    Branch,
    ClassRows,
    DynamicModel,
    Head,
    HeadBuilder,
    LinearHead,
    build_attention_adapters,
    exportable,
    forward_branches,
)
from avalanche_peftcl.training import (
    OptimizerName,
    PEFTTemplate,
    TrainingOptions,
    annealing,
    ends_experience,
    make_optimizer,
)
from avalanche_peftcl.training.plugins import HeadOnlyPlugin
from peftcl_lora.strategy import Decay, Rate, Size


def copied(branch: Branch, backbone: Backbone) -> Branch:
    """Return a copy of a branch that shares the weights of the frozen network, as the branch does.

    Args:
        branch: Any module.
        backbone: The network that it was built for.
    """
    memo: dict[int, Any] = {}
    for module in backbone.modules():
        for held in (module._parameters, module._buffers):
            memo[id(held)] = held
    return copy.deepcopy(branch, memo)


@exportable
class LAEModel(DynamicModel):
    r"""A frozen backbone, a module, its offline copy, and one trained head for both.

    In train mode the logits are those of the module. In eval mode they are, of each row,

    .. math:: \log \max(\operatorname{softmax} z_{on}, \operatorname{softmax} z_{off})

    with the softmax over all rows of one task label.

    Args:
        backbone: The frozen network.
        branch: The module.
        head: The classifier, or what builds it for the width of the feature; ``None`` is linear.

    Attributes:
        offline: The copy; it does not train.

    Raises:
        ConfigError: If the head is fitted and not trained, or the module is in a text tower too.

    Example:
        >>> from avalanche_peftcl.models import build_lora, create_backbone
        >>> backbone = create_backbone("vit_tiny_patch16_224", img_size=32)
        >>> model = LAEModel(backbone, build_lora(backbone=backbone, r=2)).eval()
        >>> model.start_experience([(0, 0), (0, 1)])
        >>> model(torch.zeros(3, 3, 32, 32)).exp().detach()  # the head begins at zero
        tensor([[0.5000, 0.5000],
                [0.5000, 0.5000],
                [0.5000, 0.5000]])
    """

    def __init__(
        self, backbone: Backbone, branch: Branch, head: Head | HeadBuilder | None = None
    ) -> None:
        super().__init__()
        if branch.text is not None:
            raise ConfigError("LAE has two passes through images; take a module with tower: image")
        self.backbone, self.branch = backbone, branch
        self.offline = copied(branch, backbone).requires_grad_(False)
        self.classes = ClassRows()
        made = head or LinearHead
        self.head = made if isinstance(made, Head) else made(branch.out_features(backbone))
        if self.head.fitted:
            raise ConfigError(
                f"LAE trains one head for two modules, a {type(self.head).__name__} is fitted to "
                "the features of one; take a head that is trained, such as 'linear'"
            )

    @property
    def heads(self) -> tuple[Head, ...]:
        """The head."""
        return (self.head,)

    @property
    def branches(self) -> tuple[Branch, ...]:
        """The module and its copy."""
        return self.branch, self.offline

    def start_experience(self, pairs: Iterable[tuple[int, int]], *, fresh: bool = True) -> None:
        """Make room for the ``(task label, class)`` pairs of an experience; old rows stay."""
        rows = self.classes.add(pairs)
        self.head.grow(len(self.classes))
        self.head.learn_rows(rows)

    def embed(self, images: Tensor) -> Tensor:
        """Return the feature, ``(B, E)``; in eval mode both side by side, ``(B, 2 E)``."""
        passes = [self.branch] if self.training else [*self.branches]
        return torch.cat(forward_branches(self.backbone, passes, images), dim=1)

    def classify(self, features: Tensor) -> Tensor:
        """Return a logit a row, ``(B, R)``; in eval mode the logarithm of the larger share."""
        if self.training:
            logits: Tensor = self.head(features)
            return logits
        online, offline = (self._log_shares(self.head(z)) for z in features.chunk(2, dim=1))
        return torch.maximum(online, offline)

    def _log_shares(self, logits: Tensor) -> Tensor:
        """Return the log-softmax over the rows of each task label."""
        logits = logits.float()
        labels = self.classes.task_labels
        if len(labels) < 2:
            return F.log_softmax(logits, dim=1)
        for label in labels:
            other = self.classes.keys[:, 0] != label
            shares = F.log_softmax(logits.masked_fill(other, float("-inf")), dim=1)
            logits = torch.where(other, logits, shares)
        return logits


class OfflinePlugin(SupervisedPlugin):
    r"""Moves the offline copy of a :class:`LAEModel` after each step.

    .. math:: p' \leftarrow d\,p' + (1 - d)\,p

    In the first experience :math:`d` is 0: both are one.

    Args:
        decay: :math:`d`.

    Source:
        See :func:`build_lae`.
    """

    remembers: tuple[str, ...] = ("n_experiences_done",)  # the copy is in the model

    def __init__(self, decay: float) -> None:
        super().__init__()
        self.decay = decay
        self.n_experiences_done = 0

    @torch.no_grad()
    def after_update(self, strategy: Any, **kwargs: Any) -> None:
        """Move it."""
        network: LAEModel = strategy.network
        share = 1 - self.decay if self.n_experiences_done else 1.0
        online, offline = network.branch.parameters(), network.offline.parameters()
        for kept, new in zip(offline, online, strict=True):
            kept.lerp_(new, share)

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Count an experience, when it ends."""
        self.n_experiences_done += ends_experience(strategy.experience)


@dataclass(frozen=True, kw_only=True)
class LAEOptions(TrainingOptions):
    """Options of LAE's training; the defaults are those published for CIFAR-100."""

    loss: Literal["local", "seen"] = "local"
    lr: Rate = 0.0028125
    weight_decay: Decay = 0.0
    train_mb_size: Size = 24
    train_epochs: Annotated[int, Field(ge=1, le=10**6)] = 5


@takes(LAEOptions)
def build_lae(
    *,
    backbone: Backbone,
    module: Branch | None = None,
    head: HeadBuilder | None = None,
    decay: Annotated[float, Field(ge=0, le=1)] = 0.9999,
    head_epochs: Annotated[int, Field(ge=0, le=10**6)] | None = None,
    optimizer: OptimizerName = "adam",
    anneal: bool = False,
    options: LAEOptions,
) -> PEFTTemplate:
    r"""Build LAE (learning, accumulation, ensemble) for any PEFT module.

    One module learns all experiences in turn; from the second on the head trains alone for the
    first epochs of each, so that the module need not turn upside down for rows that are new. A copy
    of it follows slowly. Each class gets the larger of the shares that the two give it.

    Args:
        backbone: The frozen network.
        module: What learns; ``None``: adapters of width 5 parallel to the attention of the first
            five blocks, with a learnt scale.
        head: The classifier, one that is trained; ``None`` is linear.
        decay: Share :math:`d` that the copy keeps of itself in a step. It stands still where the
            steps of an experience are far fewer than :math:`1 / (1 - d)`.
        head_epochs: Epochs of every experience but the first in which the head trains alone;
            ``None`` takes three fifths of all, rounded down, as published.
        optimizer: Of module and head.
        anneal: Whether the learning rate falls as a cosine over the epochs of an experience.
        options: The defaults are those published for CIFAR-100: Adam with a constant rate of
            0.0028125, no weight decay, 5 epochs of minibatches of 24. On ImageNet-R the rate is
            0.00046875, and there are 50 epochs.

    Raises:
        ConfigError: If ``head_epochs`` is more than there are; or as :class:`LAEModel`.

    Needs:
        No number of experiences in advance.

    Costs:
        One pass a training step and image, two passes a test image. Stored: nothing a class beside
        the head's row, nothing an experience; the module twice.

    Source:
        Gao et al., "A Unified Continual Learning Framework with General Parameter-Efficient
        Tuning", ICCV 2023, arXiv 2303.10070; released code gqk/LAE 1680e49.

    Differs:
        Any module of this package's joint. The modules of the core are LAE's own but for the
        prefix, whose attention is not renormalised ("compensation"), and LoRA, which tunes q, k and
        v by one ``A`` where the release tunes k and v. The last, smaller minibatch of an epoch is
        trained on too. Of images with task labels the softmax is over the classes of the label.
    """
    epochs = options.train_epochs
    alone = epochs * 3 // 5 if head_epochs is None else head_epochs
    if alone > epochs:
        raise ConfigError(f"head_epochs={alone} must be from 0 to train_epochs={epochs}")
    module = module or build_attention_adapters(backbone=backbone, r=5)
    model = LAEModel(backbone, module, head)
    chosen = make_optimizer(optimizer, model, **options.rates())
    schedule = annealing(chosen, options.plugins, anneal=anneal, train_epochs=epochs)
    own = [HeadOnlyPlugin(alone), OfflinePlugin(decay), *schedule]
    return PEFTTemplate(model=model, optimizer=chosen, own_plugins=own, **options.template())
