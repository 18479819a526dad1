"""Nearest class mean on frozen features: the floor of every comparison."""

from dataclasses import dataclass

from avalanche_peftcl.models import Backbone, FrozenBranch, PEFTModel
from avalanche_peftcl.models.heads.prototypes import build_prototypes
from avalanche_peftcl.registry.takes import takes
from avalanche_peftcl.training.arguments import PluginOrder, TemplateArguments
from avalanche_peftcl.training.options import StrategyOptions
from avalanche_peftcl.training.plugins import PrototypePlugin
from avalanche_peftcl.training.template import PEFTTemplate


@dataclass(frozen=True, kw_only=True)
class _Options(StrategyOptions):
    plugin_order: PluginOrder = "after"  # nothing trains: they see every class


@takes(_Options)
def build_nearest_class_mean(*, backbone: Backbone, options: _Options) -> PEFTTemplate:
    """Build a classifier by cosine to the mean frozen feature of each class; nothing trains.

    Source:
        SimpleCIL: Zhou et al., IJCV 2024. Differs: nothing.
    """
    head = build_prototypes(in_features=backbone.embed_dim)
    no_training = TemplateArguments(train_mb_size=options.eval_mb_size, train_epochs=0)
    return PEFTTemplate(
        model=PEFTModel(backbone, FrozenBranch(), head),
        optimizer=None,
        own_plugins=[PrototypePlugin()],
        **(no_training | options.template()),
    )
