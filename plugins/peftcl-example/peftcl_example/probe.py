"""A strategy: one growing linear head on frozen features."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Annotated, Any

import torch
from avalanche.models import IncrementalClassifier
from pydantic import Field
from torch import nn

from avalanche_peftcl.models import Backbone
from avalanche_peftcl.training import PEFTTemplate


def linear_probe(
    *,
    backbone: Backbone,
    device: str,
    plugins: Sequence[Any],
    evaluator: Any,
    lr: Annotated[float, Field(gt=0)] = 0.1,
    train_epochs: Annotated[int, Field(ge=1)] = 5,
    train_mb_size: Annotated[int, Field(ge=1)] = 16,
) -> PEFTTemplate:
    """Train a linear head that gets new rows with new classes; nothing else changes.

    Source:
        Alain and Bengio, arXiv 1610.01644. Differs: the last layer only, and the head grows.
    """
    head = IncrementalClassifier(backbone.embed_dim)
    return PEFTTemplate(
        model=nn.Sequential(OrderedDict(backbone=backbone, head=head)),
        optimizer=torch.optim.SGD(head.parameters(), lr=lr, momentum=0.9),
        train_epochs=train_epochs,
        train_mb_size=train_mb_size,
        eval_mb_size=train_mb_size,
        device=device,
        plugins=plugins,
        evaluator=evaluator,
    )
