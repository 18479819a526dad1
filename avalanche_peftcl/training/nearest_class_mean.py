"""Nearest class mean on frozen features: the floor of every comparison."""

from avalanche_peftcl.models import Backbone, Branch, HeadBuilder, PrototypeHead
from avalanche_peftcl.registry.takes import takes
from avalanche_peftcl.training.closed_form import ClosedForm, FrozenOptions, fit


@takes(FrozenOptions)
def build_nearest_class_mean(
    *,
    backbone: Backbone,
    module: Branch | None = None,
    head: HeadBuilder | None = None,
    options: FrozenOptions,
) -> ClosedForm:
    """Build a classifier by cosine to the mean frozen feature of each class; nothing trains.

    A ``module`` stays as it was built; another ``head`` that is fitted may take the means' place.

    Raises:
        ConfigError: If the head is trained by gradients.

    Source:
        SimpleCIL: Zhou et al., IJCV 2024. Differs: nothing.
    """
    return fit(backbone, module, head or PrototypeHead, options)
