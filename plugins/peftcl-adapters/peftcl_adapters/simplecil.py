"""SimpleCIL: class means of frozen features; nothing trains."""

from avalanche_peftcl import takes
from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.models import (
    Backbone,
    FeatureKind,
    FrozenBranch,
    HeadBuilder,
    PEFTModel,
    PrototypeHead,
)
from avalanche_peftcl.training import PEFTTemplate, StrategyOptions, TemplateArguments


@takes(StrategyOptions)
def build_simplecil(
    *,
    backbone: Backbone,
    head: HeadBuilder | None = None,
    features: FeatureKind = "pooled",
    options: StrategyOptions,
) -> PEFTTemplate:
    """Build a classifier by cosine to the mean frozen feature of each class.

    ``features="blocks"`` reads every block, see :func:`~avalanche_peftcl.models.block_features`.
    Another ``head`` than the class means is one that is fitted, such as ``random_ridge``.

    Args:
        backbone: The frozen network.
        head: A head that is fitted.
        features: What it reads: ``"pooled"``, ``"blocks"``, or block numbers from 0.
        options: What a strategy takes of which nothing trains.

    Source:
        Zhou et al., IJCV 2024, arXiv 2303.07338; released code a2e6b71.
        Differs: with ``features="pooled"`` nothing; block features are this package's.
    """
    return frozen_strategy(backbone, head or PrototypeHead, features=features, options=options)


def frozen_strategy(
    backbone: Backbone, head: HeadBuilder, *, features: FeatureKind, options: StrategyOptions
) -> PEFTTemplate:
    """Return a strategy that shows a fitted head the features of the frozen network.

    Raises:
        ConfigError: If the head is trained by gradients.
    """
    model = PEFTModel(backbone, FrozenBranch(), head, features=features)
    if not model.head.fitted:
        raise ConfigError(
            f"nothing trains here, a {type(model.head).__name__} would; take a head that is "
            "fitted, such as 'prototypes' or 'random_ridge', or strategy 'naive'"
        )
    no_training = TemplateArguments(train_mb_size=options.eval_mb_size, train_epochs=0)
    return PEFTTemplate(model=model, optimizer=None, **(options.template() | no_training))
