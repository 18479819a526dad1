"""Nearest class mean on frozen features: the floor of every comparison."""

from collections.abc import Sequence
from typing import Any

from avalanche_peftcl.models import Backbone, FrozenBranch, PEFTModel
from avalanche_peftcl.models.heads.prototypes import build_prototypes
from avalanche_peftcl.models.precision import MixedPrecision
from avalanche_peftcl.registry.ranges import MinibatchSize
from avalanche_peftcl.training.plugins import PrototypePlugin
from avalanche_peftcl.training.template import PEFTTemplate


def build_nearest_class_mean(
    *,
    backbone: Backbone,
    device: str = "cpu",
    plugins: Sequence[Any] = (),
    evaluator: Any = None,
    eval_mb_size: MinibatchSize = 64,
    mixed_precision: MixedPrecision = "auto",
) -> PEFTTemplate:
    """Build a classifier by cosine to the mean frozen feature of each class; nothing trains.

    Source:
        SimpleCIL: Zhou et al., IJCV 2024. Differs: nothing.
    """
    head = build_prototypes(in_features=backbone.embed_dim)
    return PEFTTemplate(
        model=PEFTModel(backbone, FrozenBranch(), head),
        optimizer=None,
        train_mb_size=eval_mb_size,
        train_epochs=0,
        eval_mb_size=eval_mb_size,
        device=device,
        plugins=plugins,
        plugin_order="after",  # nothing trains: they see every class
        own_plugins=[PrototypePlugin()],
        evaluator=evaluator,
        mixed_precision=mixed_precision,
    )
