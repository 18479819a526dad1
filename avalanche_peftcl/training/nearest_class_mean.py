"""Nearest class mean on frozen features: the floor of every comparison."""

from dataclasses import dataclass

from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.models import Backbone, Branch, FrozenBranch, HeadBuilder, PrototypeHead
from avalanche_peftcl.registry.takes import takes
from avalanche_peftcl.training.arguments import PluginOrder, TemplateArguments
from avalanche_peftcl.training.networks import build_network
from avalanche_peftcl.training.options import StrategyOptions
from avalanche_peftcl.training.template import PEFTTemplate


@dataclass(frozen=True, kw_only=True)
class _Options(StrategyOptions):
    plugin_order: PluginOrder = "after"  # nothing trains: they see every class


@takes(_Options)
def build_nearest_class_mean(
    *,
    backbone: Backbone,
    module: Branch | None = None,
    head: HeadBuilder | None = None,
    options: _Options,
) -> PEFTTemplate:
    """Build a classifier by cosine to the mean frozen feature of each class; nothing trains.

    A ``module`` stays as it was built; another ``head`` that is fitted may take the means' place.

    Raises:
        ConfigError: If the head is trained by gradients.

    Source:
        SimpleCIL: Zhou et al., IJCV 2024. Differs: nothing.
    """
    branch = FrozenBranch() if module is None else module.requires_grad_(False)
    model = build_network(backbone, branch, head or PrototypeHead)
    if not model.head.fitted:
        raise ConfigError(
            f"nothing trains here, and a {type(model.head).__name__} is trained; take a head that "
            "is fitted, such as 'prototypes', or the strategy 'naive'"
        )
    no_training = TemplateArguments(train_mb_size=options.eval_mb_size, train_epochs=0)
    return PEFTTemplate(
        model=model,
        optimizer=None,
        **(no_training | options.template()),
    )
