"""Sequential tuning: the same modules trained on one experience after the other, no protection."""

from dataclasses import dataclass
from typing import TypeVar

from avalanche_peftcl.models import Backbone, Branch, HeadBuilder
from avalanche_peftcl.models.modules.adapter import build_adapters
from avalanche_peftcl.registry.takes import takes
from avalanche_peftcl.training.networks import build_network
from avalanche_peftcl.training.optimizers import OptimizerName, annealing, make_optimizer
from avalanche_peftcl.training.options import FeatureOptions, TrainingOptions
from avalanche_peftcl.training.template import PEFTTemplate

_Kind = TypeVar("_Kind", bound=PEFTTemplate)


@dataclass(frozen=True, kw_only=True)
class TuningOptions(TrainingOptions, FeatureOptions):
    """Options of a strategy that tunes a module and a head."""


@takes(TuningOptions)
def build_naive(
    *,
    backbone: Backbone,
    module: Branch | None = None,
    head: HeadBuilder | None = None,
    optimizer: OptimizerName = "sgd",
    anneal: bool | None = None,
    options: TuningOptions,
) -> PEFTTemplate:
    """Build Avalanche's naive strategy for a PEFT module and a head; adapters, linear by default.

    The loss is cross-entropy over all classes seen so far (of the image's task label), as
    in ``avalanche.training.Naive`` with a growing head; with ``loss="local"`` over those of the
    experience.

    Args:
        backbone: The frozen network.
        module: What trains in it.
        head: The classifier.
        optimizer: Of module and head.
        anneal: Whether the learning rate falls as a cosine; ``None``: unless a plugin schedules it.
        options: What a strategy that trains takes.
    """
    return tune(
        PEFTTemplate,
        backbone=backbone,
        module=module,
        head=head,
        optimizer=optimizer,
        anneal=anneal,
        options=options,
    )


def tune(
    kind: type[_Kind],
    *,
    backbone: Backbone,
    module: Branch | None,
    head: HeadBuilder | None,
    optimizer: OptimizerName,
    anneal: bool | None,
    options: TuningOptions,
) -> _Kind:
    """Return a strategy of a kind that tunes a module and a head by one optimizer."""
    model = build_network(
        backbone, module or build_adapters(backbone=backbone), head, **options.read()
    )
    chosen = make_optimizer(optimizer, model, **options.rates())
    schedule = annealing(chosen, options.plugins, anneal=anneal, train_epochs=options.train_epochs)
    return kind(model=model, optimizer=chosen, own_plugins=schedule, **options.template())
