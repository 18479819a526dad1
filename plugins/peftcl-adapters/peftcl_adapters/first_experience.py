"""A network that adapts in the first experience and is frozen for good, and what freezes it."""

from collections.abc import Iterable
from typing import Any

import torch
from avalanche.core import SupervisedPlugin
from torch import Tensor

from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.models import (
    Backbone,
    Branch,
    ClassRows,
    CosineHead,
    DynamicModel,
    Head,
    HeadBuilder,
    exportable,
    forward_branches,
)
from avalanche_peftcl.training import ends_experience


@exportable
class FirstExperienceModel(DynamicModel):
    """A pass that is adapted through a temporary cosine head, and a fitted head that predicts.

    Args:
        backbone: The frozen network.
        branch: The modules that train in the first experience.
        head: What predicts, a head that is fitted, or what builds it for the width of the feature.
        concatenate: Put the feature of the frozen network in front of the adapted one.

    Attributes:
        temporary: Classifies the adapted feature while it trains; it has rows of the first
            experience only.

    Raises:
        ConfigError: If the head is trained by gradients, which it would be in one experience only.

    Source:
        Zhou et al., APER, IJCV 2024, released code a2e6b71; McDonnell et al., RanPAC, NeurIPS 2023,
        released code 012927f. Differs: nothing.
    """

    def __init__(
        self,
        backbone: Backbone,
        branch: Branch,
        head: HeadBuilder | Head,
        *,
        concatenate: bool = True,
    ) -> None:
        super().__init__()
        self.backbone, self.branch = backbone, branch
        self.unadapted = Branch() if concatenate else None
        self.classes = ClassRows()
        width = branch.out_features(backbone)
        self.temporary = CosineHead(width)
        width += Branch().out_features(backbone) * concatenate
        self.head = head if isinstance(head, Head) else head(width)
        if not self.head.fitted:
            raise ConfigError(
                f"a {type(self.head).__name__} is trained, and here nothing trains after the first "
                "experience; take a head that is fitted, such as 'prototypes' or 'random_ridge'"
            )

    @property
    def branches(self) -> tuple[Branch, ...]:
        """The frozen pass, if it is concatenated, then the adapted one; alone while it adapts."""
        if self.unadapted is None or (self.training and self.adapts):
            return (self.branch,)
        return self.unadapted, self.branch

    @property
    def heads(self) -> tuple[Head, ...]:
        """The temporary head, and the one that predicts."""
        return self.temporary, self.head

    @property
    def adapts(self) -> bool:
        """Whether it is not frozen yet."""
        return any(p.requires_grad for p in self.temporary.parameters())

    def start_experience(self, pairs: Iterable[tuple[int, int]], *, fresh: bool = True) -> None:
        """Make room for the ``(task label, class)`` pairs of an experience; old rows stay."""
        self.classes.add(pairs)
        self.head.grow(len(self.classes))
        if self.adapts:
            self.temporary.grow(len(self.classes))

    def embed(self, images: Tensor) -> Tensor:
        """Return the features side by side: ``(B, 3, H, W)`` to ``(B, D)`` or ``(B, 2 D)``.

        While it adapts the temporary head reads the adapted one, and no other is computed.
        """
        return torch.cat(forward_branches(self.backbone, self.branches, images), dim=1)

    def classify(self, features: Tensor) -> Tensor:
        """Return a logit a row: while it adapts from the temporary head, else from the other."""
        if self.training and self.adapts:
            by_proxy: Tensor = self.temporary(features)
            return by_proxy
        logits: Tensor = self.head(features)
        return logits


class FirstExperiencePlugin(SupervisedPlugin):
    """Freezes the whole network once the first experience is trained; later ones train nothing."""

    remembers = ("is_frozen",)

    def __init__(self) -> None:
        super().__init__()
        self.is_frozen = False

    def before_training(self, strategy: Any, **kwargs: Any) -> None:
        """Freeze where a run goes on: no checkpoint holds what trains."""
        if self.is_frozen:
            self._freeze(strategy)

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Freeze; of an online stream after the last chunk of the first experience."""
        if not self.is_frozen and ends_experience(strategy.experience):
            self.is_frozen = True
            self._freeze(strategy)

    def _freeze(self, strategy: Any) -> None:
        strategy.network.requires_grad_(False)
        strategy.train_epochs = 0
