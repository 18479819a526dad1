"""The network that most strategies here train."""

from avalanche_peftcl.models import Backbone, Branch, HeadBuilder, PEFTModel


def build_network(backbone: Backbone, branch: Branch, head: HeadBuilder | None) -> PEFTModel:
    """Return a module and a head on a backbone.

    Args:
        backbone: The frozen network.
        branch: The module.
        head: Builds the head for the width of the features; ``None`` takes a linear one.
    """
    return PEFTModel(backbone, branch, head and head(branch.out_features(backbone)))
