"""Trained logits that are cosines to a row's weight, with one trained factor."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from avalanche_peftcl.models.exportable import exportable
from avalanche_peftcl.models.heads.head import Head
from avalanche_peftcl.registry.ranges import FeatureWidth


@exportable
class CosineHead(Head):
    r"""Logits :math:`\sigma \cos(z, w_r)` with trained rows and one trained factor.

    Args:
        in_features: ``D``.

    Source:
        Liu et al., arXiv 2407.17120; released code 24de712 (``CosineLinear``).
        Differs: rows of earlier classes are kept for replayed images.
    """

    row_tensors = ("weight",)
    score_name = "similarity"

    def __init__(self, in_features: int) -> None:
        super().__init__(in_features)
        self.weight = nn.Parameter(torch.zeros(0, in_features))
        self.sigma = nn.Parameter(torch.ones(1))

    def grow(self, n_rows: int, *, draw: bool = True) -> None:
        """Lengthen to ``n_rows``.

        Args:
            n_rows: ``R``.
            draw: Draw the new rows; else they are 0, from which a cosine cannot train, until
                :meth:`reset` draws them.
        """
        known = len(self.weight)
        super().grow(n_rows)
        if draw:
            self._draw(range(known, n_rows))

    @torch.no_grad()
    def reset(self, rows: Sequence[int]) -> None:
        r"""Draw ``rows`` anew from :math:`U(\pm 1/\sqrt D)` and set the factor to 1."""
        self._draw(rows)
        self.sigma.fill_(1.0)

    def forward(self, features: Tensor) -> Tensor:
        """Return logits: ``(B, D)`` to ``(B, R)``."""
        normed = F.normalize(features.float(), dim=1)
        return self.sigma * (normed @ F.normalize(self.weight, dim=1).T)

    def scores(self, logits: Tensor) -> Tensor:
        """Return the cosines, without the factor."""
        return logits / self.sigma

    @torch.no_grad()
    def _draw(self, rows: Sequence[int]) -> None:
        bound = 1 / math.sqrt(self.in_features)
        fresh = torch.empty(len(rows), self.in_features).uniform_(-bound, bound)
        self.weight[list(rows)] = fresh.to(self.weight)


@exportable
def build_cosine(*, in_features: FeatureWidth) -> CosineHead:
    """Build a :class:`CosineHead`."""
    return CosineHead(in_features)
