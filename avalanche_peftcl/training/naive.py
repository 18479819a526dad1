"""Sequential tuning: the same modules trained on one experience after the other, no protection."""

from collections.abc import Sequence
from typing import Any

from avalanche_peftcl.models import Backbone, Branch, PEFTModel
from avalanche_peftcl.models.modules.adapter import build_adapters
from avalanche_peftcl.models.precision import MixedPrecision
from avalanche_peftcl.registry.ranges import (
    Epochs,
    GradNorm,
    LearningRate,
    MinibatchSize,
    Momentum,
    Steps,
    WeightDecay,
)
from avalanche_peftcl.training.local_loss import LossOver
from avalanche_peftcl.training.optimizers import OptimizerName, annealing, make_optimizer
from avalanche_peftcl.training.template import PEFTTemplate


def build_naive(
    *,
    backbone: Backbone,
    module: Branch | None = None,
    device: str = "cpu",
    plugins: Sequence[Any] = (),
    evaluator: Any = None,
    loss: LossOver = "seen",
    optimizer: OptimizerName = "sgd",
    lr: LearningRate = 0.025,
    momentum: Momentum = 0.9,
    weight_decay: WeightDecay = 5e-4,
    anneal: bool | None = None,
    train_mb_size: MinibatchSize = 16,
    train_epochs: Epochs = 20,
    eval_mb_size: MinibatchSize = 64,
    max_grad_norm: GradNorm | None = None,
    accumulation_steps: Steps = 1,
    mixed_precision: MixedPrecision = "auto",
) -> PEFTTemplate:
    """Build Avalanche's naive strategy for a PEFT module (adapters by default) and a linear head.

    The loss is cross-entropy over all classes seen so far (of the image's task label), as
    in ``avalanche.training.Naive`` with a growing head; with ``loss="local"`` over those of the
    experience. ``anneal=None`` lets the learning rate fall as a cosine unless a plugin schedules
    it.
    """
    model = PEFTModel(backbone, module or build_adapters(backbone=backbone))
    chosen = make_optimizer(optimizer, model, lr=lr, momentum=momentum, weight_decay=weight_decay)
    schedule = annealing(chosen, plugins, anneal=anneal, train_epochs=train_epochs)
    return PEFTTemplate(
        model=model,
        optimizer=chosen,
        loss=loss,
        train_mb_size=train_mb_size,
        train_epochs=train_epochs,
        eval_mb_size=eval_mb_size,
        device=device,
        plugins=plugins,
        own_plugins=schedule,
        evaluator=evaluator,
        max_grad_norm=max_grad_norm,
        accumulation_steps=accumulation_steps,
        mixed_precision=mixed_precision,
    )
