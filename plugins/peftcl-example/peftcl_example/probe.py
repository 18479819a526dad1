"""A strategy: one growing linear head on frozen features."""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Annotated

import torch
from avalanche.models import IncrementalClassifier
from pydantic import Field
from torch import nn

from avalanche_peftcl import Searched, takes
from avalanche_peftcl.models import Backbone
from avalanche_peftcl.training import PEFTTemplate, TrainingOptions


@dataclass(frozen=True, kw_only=True)
class ProbeOptions(TrainingOptions):
    """The options of every strategy that trains, some with other defaults."""

    lr: Annotated[float, Field(gt=0), Searched(10)] = 0.1
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    train_epochs: Annotated[int, Field(ge=1)] = 5


@takes(ProbeOptions)
def linear_probe(*, backbone: Backbone, options: ProbeOptions) -> PEFTTemplate:
    """Train a linear head that gets new rows with new classes; nothing else changes.

    Source:
        Alain and Bengio, arXiv 1610.01644. Differs: the last layer only, and the head grows.
    """
    head = IncrementalClassifier(backbone.out_features)
    return PEFTTemplate(
        model=nn.Sequential(OrderedDict(backbone=backbone, head=head)),
        optimizer=torch.optim.SGD(head.parameters(), **options.rates()),
        **options.template(),
    )
