"""SLCA++: a slow module, a faster head, and the head aligned on Gaussians of the classes."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from avalanche.training.plugins import LRSchedulerPlugin
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from avalanche_peftcl import takes
from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.functional import symmetric_cross_entropy
from avalanche_peftcl.models import Backbone, Branch, HeadBuilder, PEFTModel, build_lora
from avalanche_peftcl.training import PEFTTemplate, TemplateArguments
from avalanche_peftcl.training.plugins import FeatureReplayPlugin
from peftcl_adapters.options import (
    AlignmentOptions,
    EpochsOrNone,
    LearningRate,
    LocalOptions,
    MinibatchSize,
    Positive,
    Share,
    Weight,
)


class SymmetricLoss(nn.Module):
    """Symmetric cross-entropy with fixed weights, see :func:`.symmetric_cross_entropy`.

    Args:
        weight: Of the cross-entropy.
        reverse_weight: Of that of the label under the prediction.
    """

    def __init__(self, weight: float, reverse_weight: float) -> None:
        super().__init__()
        self.weight, self.reverse_weight = weight, reverse_weight

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of ``(B, C)`` logits, a scalar."""
        loss: Tensor = symmetric_cross_entropy(
            logits, targets, weight=self.weight, reverse_weight=self.reverse_weight
        )
        return loss


@dataclass(frozen=True, kw_only=True)
class SLCAOptions(LocalOptions, AlignmentOptions):
    """Options of SLCA++; the defaults are the published settings for CIFAR-100."""

    lr: LearningRate = 0.01
    train_mb_size: MinibatchSize = 128


@takes(SLCAOptions)
def build_slca_pp(
    *,
    backbone: Backbone,
    module: Branch | None = None,
    head: HeadBuilder | None = None,
    module_lr_scale: Positive = 0.1,
    ce_weight: Weight = 1.0,
    reverse_weight: Weight = 0.1,
    drop_after: EpochsOrNone | None = None,
    temperature: Positive = 0.1,
    ageing: Share = 0.1,
    options: SLCAOptions,
) -> PEFTTemplate:
    """Build SLCA++ for any PEFT module and any head that is trained.

    The module trains on from experience to experience, slower than the head, by symmetric
    cross-entropy among the classes of the experience. After each one features of its images give a
    Gaussian a class; from the second one on the head is aligned to all classes on features drawn
    from these, and goes on as it was before when the next experience begins.

    It keeps a mean and a covariance of each class, :math:`D + D^2` numbers in float64, the head
    before its alignment, and nothing of an experience. A step costs one pass an image, as does a
    prediction; an experience costs one more pass over its images.

    Args:
        backbone: The frozen network.
        module: What trains; ``None``: LoRA of rank 4 on query, key and value of every block.
        head: What predicts; ``None``: ``linear``.
        module_lr_scale: Learning rate of the module, as a multiple of the head's.
        ce_weight: Of the cross-entropy; 0.5 is published for ImageNet-R.
        reverse_weight: Of that of the label under the prediction; 0.5 likewise.
        drop_after: Epoch after which both rates are a tenth; ``None`` for nine tenths of all, as
            published; 0 for never. 40 of 50 epochs are published for ImageNet-R.
        temperature: Of the normalised logits in the alignment.
        ageing: Share by which means of older classes are shortened in it.
        options: What a strategy that trains takes, and those of the alignment.

    Raises:
        ConfigError: If the head is fitted.

    Source:
        Zhang et al., SLCA, ICCV 2023, released code GengDavid/SLCA 169d4e6, and SLCA++, arXiv
        2408.08295. Differs: what trains beside LoRA there, all norms and biases and the CLS token,
        stays frozen here; LoRA's scale does not train; no weight decay on the head, so that rows of
        classes that are not in the experience stay, to the bit, as frozen heads do there; new rows
        start at zero; scaling up logits of older heads by two hundredths an experience, of which it
        is not known to us where it acts, is left out; a class met again adds to its Gaussian.
    """
    every = list(range(backbone.depth))
    module = module or build_lora(backbone=backbone, r=4, blocks=every, learn_scale=False)
    model = PEFTModel(backbone, module, head)
    if model.head.fitted:
        raise ConfigError(
            f"SLCA++ aligns a head that is trained, and a {type(model.head).__name__} is fitted; "
            "take 'linear' or 'cosine', or another strategy"
        )
    rates = options.rates()
    slow = [p for p in module.parameters() if p.requires_grad]
    groups = [{"params": slow, "lr": options.lr * module_lr_scale}] if slow else []
    groups.append({"params": list(model.head.parameters()), "weight_decay": 0.0})
    optimizer = torch.optim.SGD(groups, **rates)
    replay = FeatureReplayPlugin(
        covariance=options.covariance,
        shrinkage=0.0,
        jitter=1e-4,
        ageing=ageing,
        temperature=temperature,
        weight_decay=options.weight_decay,
        **options.alignment(),
    )
    after = round(0.9 * options.train_epochs) if drop_after is None else drop_after
    loss = TemplateArguments(criterion=SymmetricLoss(ce_weight, reverse_weight))
    return PEFTTemplate(
        model=model,
        optimizer=optimizer,
        own_plugins=[*_dropping(optimizer, after), replay],
        **(options.template() | loss),
    )


def _dropping(optimizer: torch.optim.Optimizer, after: int) -> Sequence[LRSchedulerPlugin]:
    """Return the plugin that makes rates a tenth after an epoch, anew in each experience."""
    if not after:
        return []
    schedule = LambdaLR(optimizer, lambda epoch: 1.0 if epoch < after else 0.1)
    return [LRSchedulerPlugin(schedule, reset_scheduler=True, reset_lr=True)]
