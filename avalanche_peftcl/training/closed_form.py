"""A classifier in closed form on frozen features: nothing trains, every image is seen once."""

from dataclasses import dataclass
from typing import Unpack

from torch import Tensor, nn

from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.models import Backbone, Branch, FrozenBranch, HeadBuilder, RidgeHead
from avalanche_peftcl.registry.takes import takes
from avalanche_peftcl.training.arguments import PluginOrder, TemplateArguments
from avalanche_peftcl.training.feature_cache import FeatureCache
from avalanche_peftcl.training.networks import build_network
from avalanche_peftcl.training.options import FeatureOptions, StrategyOptions
from avalanche_peftcl.training.template import PEFTTemplate


@dataclass(frozen=True, kw_only=True)
class FrozenOptions(StrategyOptions, FeatureOptions):
    """Options of a strategy that fits a head to frozen features."""

    plugin_order: PluginOrder = "after"  # nothing trains: they see every class


class ClosedForm(PEFTTemplate):
    """A strategy of which nothing trains, so that features may be read from a cache.

    Its arguments are those of :class:`.PEFTTemplate`. Where the environment variable
    ``AVALANCHE_PEFTCL_FEATURES`` names a folder, see :class:`.FeatureCache`, features lie there.

    Attributes:
        cache: The features that were computed before; ``None`` without that variable.
    """

    def __init__(self, *, model: nn.Module, **template: Unpack[TemplateArguments]) -> None:
        super().__init__(model=model, optimizer=None, **template)
        self.cache = FeatureCache.of_environment(self.network)

    reads_features = True

    def embed(self, images: Tensor) -> Tensor:
        """Return features, ``(B, 3, H, W)`` to ``(B, D)``; in eval mode those that are known.

        Features, ``(B, D)``, are returned as they are.
        """
        if images.ndim == 2:
            return images
        source = self.cache if self.cache and not self.network.training else self.network
        features: Tensor = source.embed(images)
        return features

    def features(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return them as the only ones."""
        return (self.embed(images),)

    def headline(self) -> str | None:
        """Say how much of it was read, since that is how much time was saved."""
        if self.cache is None or not self.cache.found:
            return None
        return f"features of {self.cache.found} of {self.cache.asked} minibatches were there before"


@takes(FrozenOptions)
def build_closed_form(
    *,
    backbone: Backbone,
    module: Branch | None = None,
    head: HeadBuilder | None = None,
    options: FrozenOptions,
) -> ClosedForm:
    """Build a classifier that fits a head to frozen features, an experience at a time.

    Nothing is forgotten: what a head keeps is summed over all images, whatever their order. A
    ``module`` stays as it was built.

    Args:
        backbone: The frozen network.
        module: A pass through it that is not trained; ``None`` is the network as it is.
        head: A head that is fitted; ``None`` is ridge regression.
        options: The others.

    Raises:
        ConfigError: If the head is trained by gradients.

    Source:
        Ridge regression of one-hot targets on frozen features: the form of RanPAC, McDonnell et
        al., arXiv 2307.02251. Differs: any head, on pooled features or on those of blocks; the
        penalty is chosen from the statistics.

    Example:
        >>> from avalanche_peftcl.testing import toy_backbone, toy_benchmark
        >>> strategy = build_closed_form(backbone=toy_backbone())
        >>> for experience in toy_benchmark("class").train_stream:
        ...     _ = strategy.train(experience)
        >>> any(p.requires_grad for p in strategy.model.parameters())
        False
    """
    return fit(backbone, module, head or RidgeHead, options)


def fit(
    backbone: Backbone, module: Branch | None, head: HeadBuilder, options: FrozenOptions
) -> ClosedForm:
    """Return a strategy that fits a head and trains nothing.

    Raises:
        ConfigError: If the head is trained by gradients.
    """
    branch = FrozenBranch() if module is None else module.requires_grad_(False)
    model = build_network(backbone, branch, head, **options.read())
    if not model.head.fitted and any(True for _ in model.head.parameters()):
        raise ConfigError(
            f"nothing trains here, and a {type(model.head).__name__} is trained; take a head that "
            "is fitted, such as 'ridge', or the strategy 'naive'"
        )
    no_training = TemplateArguments(train_mb_size=options.eval_mb_size, train_epochs=0)
    return ClosedForm(model=model, **(no_training | options.template()))
