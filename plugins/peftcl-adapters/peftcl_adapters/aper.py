"""APER: adapt once, then class means of frozen and adapted features side by side."""

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field

from avalanche_peftcl import takes
from avalanche_peftcl.models import Backbone, Branch, HeadBuilder, PrototypeHead, build_adapters
from avalanche_peftcl.training import PEFTTemplate, TrainingOptions, annealing
from peftcl_adapters.first_experience import FirstExperienceModel, FirstExperiencePlugin
from peftcl_adapters.options import LearningRate


@dataclass(frozen=True, kw_only=True)
class FirstExperienceOptions(TrainingOptions):
    """Options of the first experience's training; the defaults are those published for CIFAR."""

    lr: LearningRate = 0.01
    train_mb_size: Annotated[int, Field(ge=1, le=2**20)] = 48


@takes(FirstExperienceOptions)
def build_aper(
    *,
    backbone: Backbone,
    module: Branch | None = None,
    head: HeadBuilder | None = None,
    anneal: bool | None = None,
    options: FirstExperienceOptions,
) -> PEFTTemplate:
    """Build APER for any PEFT module.

    In the first experience the module trains under cross-entropy with a temporary cosine head.
    Then all is frozen, and every class gets its mean ``[frozen feature, adapted feature]``.

    Args:
        backbone: The frozen network.
        module: What adapts; ``None``: adapters of width 64 beside each MLP, scale 0.1, dropout 0.1.
        head: What predicts, fitted after each experience; ``None``: cosine to the class means.
        anneal: Whether the learning rate falls to 0 as a cosine; ``None`` is yes unless a plugin
            schedules it.
        options: The defaults are the published settings of APER with adapters on CIFAR-100: SGD
            with momentum 0.9 and rate 0.01, 20 epochs of minibatches of 48, weight decay 0.0005.
            On ImageNet-R rate 0.05, minibatches of 24 and weight decay 0.005 are.

    Source:
        Zhou et al., IJCV 2024, arXiv 2303.07338; released code a2e6b71 (APER with adapters).
        Differs: any module of this package's joint in place of the five published ones; class
        means are summed in float64, and of a class met again over all its images.
    """
    module = module or build_adapters(backbone=backbone, r=64)
    model = FirstExperienceModel(backbone, module, head or PrototypeHead)
    return first_experience_strategy(model, anneal=anneal, options=options)


def first_experience_strategy(
    model: FirstExperienceModel, *, anneal: bool | None, options: FirstExperienceOptions
) -> PEFTTemplate:
    """Return a strategy that trains ``model`` in the first experience with SGD, then freezes it."""
    optimizer = torch.optim.SGD(
        [p for p in model.parameters() if p.requires_grad], **options.rates()
    )
    schedule = annealing(
        optimizer, options.plugins, anneal=anneal, train_epochs=options.train_epochs
    )
    own = [*schedule, FirstExperiencePlugin()]
    return PEFTTemplate(model=model, optimizer=optimizer, own_plugins=own, **options.template())
