"""Trained logits that are linear in the features: W z + b."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from avalanche_peftcl.models.exportable import exportable
from avalanche_peftcl.models.heads.head import Head
from avalanche_peftcl.models.projection.sites import ProjectionSite, column, ones
from avalanche_peftcl.registry.ranges import FeatureWidth


@exportable
class LinearHead(Head):
    """Logits ``W z + b``; new rows start at zero.

    Args:
        in_features: ``D``.
    """

    row_tensors = ("weight", "bias")

    def __init__(self, in_features: int) -> None:
        super().__init__(in_features)
        self.weight = nn.Parameter(torch.zeros(0, in_features))
        self.bias = nn.Parameter(torch.zeros(0))

    def forward(self, features: Tensor) -> Tensor:
        """Return logits: ``(B, D)`` to ``(B, R)``."""
        return F.linear(features, self.weight, self.bias)

    def head_sites(self) -> Iterator[ProjectionSite]:
        """State what must hold for the logits of old features to stay."""
        yield ProjectionSite("weight", self.weight, self)
        yield ProjectionSite("bias", self.bias, self, view=column, features=ones)


@exportable
def build_linear(*, in_features: FeatureWidth) -> LinearHead:
    """Build a :class:`LinearHead`."""
    return LinearHead(in_features)
