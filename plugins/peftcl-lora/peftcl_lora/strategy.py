"""What the methods with a pair an experience share: their options and their strategy."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field

from avalanche_peftcl import Searched
from avalanche_peftcl.models import Backbone, HeadBuilder, LinearHead, PEFTModel
from avalanche_peftcl.training import (
    FeatureOptions,
    OptimizerName,
    PEFTTemplate,
    TrainingOptions,
    annealing,
    make_optimizer,
)
from peftcl_lora.pairs import PairedLoRA

Rank = Annotated[int, Field(ge=1, le=4096)]
Rate = Annotated[float, Field(gt=0, le=1e6), Searched(10)]
Decay = Annotated[float, Field(ge=0, le=1e6)]
Size = Annotated[int, Field(ge=1, le=2**20)]
Count = Annotated[int, Field(ge=1, le=10**9)]
Weight = Annotated[float, Field(ge=0, le=1e9)]


@dataclass(frozen=True, kw_only=True)
class PairOptions(TrainingOptions, FeatureOptions):
    """Options of a method that trains on the classes at hand, without weight decay."""

    loss: Literal["local", "seen"] = "local"
    weight_decay: Decay = 0.0


def pair_strategy(
    backbone: Backbone,
    branch: PairedLoRA,
    head: HeadBuilder | None,
    plugins: Sequence[Any],
    *,
    optimizer: OptimizerName,
    anneal: bool | None,
    options: PairOptions,
) -> PEFTTemplate:
    """Return a strategy that trains a branch and a head; one that is fitted has linear proxies."""
    model = PEFTModel(backbone, branch, head, **options.read())
    if model.head.fitted:
        model = PEFTModel(backbone, branch, model.head, proxies=LinearHead, **options.read())
    chosen = make_optimizer(optimizer, model, **options.rates())
    schedule = annealing(chosen, options.plugins, anneal=anneal, train_epochs=options.train_epochs)
    return PEFTTemplate(
        model=model, optimizer=chosen, own_plugins=[*plugins, *schedule], **options.template()
    )
