"""The network that most strategies here train."""

from avalanche_peftcl.models import Backbone, Branch, HeadBuilder, LinearHead, PEFTModel
from avalanche_peftcl.models.block_features import FeatureKind


def build_network(
    backbone: Backbone,
    branch: Branch,
    head: HeadBuilder | None,
    *,
    features: FeatureKind = "pooled",
    frozen_section: FeatureKind | None = None,
) -> PEFTModel:
    """Return a module and a head on a backbone.

    A head that is fitted gets linear proxies where the module trains.

    Args:
        backbone: The frozen network.
        branch: The module.
        head: Builds the head for the width of the features; ``None`` takes a linear one.
        features: As of :class:`~avalanche_peftcl.models.PEFTModel`.
        frozen_section: As there.
    """
    model = PEFTModel(backbone, branch, head, features=features, frozen_section=frozen_section)
    if not model.head.fitted or not any(p.requires_grad for p in branch.parameters()):
        return model
    return PEFTModel(
        backbone,
        branch,
        model.head,
        proxies=LinearHead,
        features=features,
        frozen_section=frozen_section,
    )
