"""Linear discriminant analysis: class means and one shrunk covariance."""

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from avalanche_peftcl.functional.gaussians import oas_shrinkage, shrink, within_scatter
from avalanche_peftcl.models.exportable import exportable
from avalanche_peftcl.models.heads.additive import MomentHead
from avalanche_peftcl.models.heads.drift import Drift
from avalanche_peftcl.models.heads.posterior import log_posterior
from avalanche_peftcl.models.heads.regression import WIDEST, check_width
from avalanche_peftcl.registry.ranges import FeatureWidth

Shrunk = Annotated[float, Field(ge=1e-6, le=1)]
Shrinkage = Literal["oas"] | Shrunk
FLOOR = 1e-9  # of the mean squared length of features: a variance below is none


@exportable
class LDAHead(MomentHead):
    r"""Log probabilities of classes that are Gaussians with one covariance.

    .. math:: \log p(r \mid z) = z^\top \Sigma^{-1} m_r - \tfrac 1 2 m_r^\top \Sigma^{-1} m_r
        + \log \frac{n_r}{n} + \text{const}

    with :math:`\Sigma` the scatter about class means, over ``n``, shrunk towards a multiple of the
    identity. It is computed from sums over all images, in float64: the same for every order of the
    stream, images can be taken out, and it moves with features. Solved when it settles. Where no
    class has two different images there is no scatter, and :math:`\Sigma` is the mean squared
    length of a feature on the diagonal.

    Memory: ``8 D²`` bytes, and three times as much again while it is solved; ``12 D`` a class.
    Time: :math:`2 B D^2` operations a minibatch, of order :math:`D^3 + R D^2` to solve.

    Args:
        in_features: ``D``, at most 16,384.
        shrinkage: ``"oas"``, or a share in ``(0, 1]``. Ledoit and Wolf's needs fourth moments about
            class means, which no sum over images in this size gives; ``gaussian`` has it.

    Attributes:
        gram: :math:`\sum z z^\top`, ``(D, D)``; of no rows until there is an image.
        sums: :math:`\sum z` of each row, ``(R, D)``.
        counts: Images of each row, ``(R,)``.
        shrunk: Share of shrinkage, ``()``; 0 until it is chosen.

    Raises:
        ConfigError: If the features are too wide.

    Source:
        Hayes and Kanan, Deep SLDA, CVPR-W 2020; OAS: Chen et al., arXiv 0907.4698. Differs: the
        covariance is of all images so far, of which every class has its share; scores far below
        the best are bent to stay above -900, in the same order.

    Example:
        >>> head = LDAHead(2, shrinkage=0.5)
        >>> head.grow(2)
        >>> z = torch.tensor([[3.0, 0.0], [2.0, 1.0], [0.0, 3.0], [1.0, 2.0]])
        >>> head.observe(z, torch.tensor([0, 0, 1, 1]))
        >>> head.settle()
        >>> head(z).argmax(dim=1)
        tensor([0, 0, 1, 1])
    """

    summed = "the class means and the covariance"
    row_tensors = ("sums", "counts", "weight", "bias")
    weight: Tensor
    bias: Tensor
    centre: Tensor
    shrunk: Tensor

    def __init__(self, in_features: int, *, shrinkage: Shrinkage = "oas") -> None:
        check_width(in_features, WIDEST, "take features of fewer blocks, or head 'prototypes'")
        super().__init__(in_features, in_features)
        self.shrinkage = shrinkage
        self.register_buffer("weight", torch.zeros(0, in_features))
        self.register_buffer("bias", torch.zeros(0))
        self.register_buffer("centre", torch.zeros(in_features))
        self.register_buffer("shrunk", torch.zeros((), dtype=torch.float64))

    @torch.no_grad()
    def move(self, drift: Drift) -> None:
        """Move the sums; exact where the drift is linear."""
        self._move_sums(drift)

    def covariance(self) -> Tensor:
        """Return the shrunk covariance within classes, ``(D, D)``, in float64."""
        n = int(self.counts.sum())
        plain = within_scatter(self.gram, self.sums, self.counts) / max(n, 1)
        if plain.trace() <= FLOOR * self.gram.trace() / max(n, 1):
            self.shrunk.fill_(1.0)
            size = self.gram.trace() / max(n, 1) / self.in_features
            return torch.eye(len(plain)).to(plain) * torch.where(size > 0, size, 1.0)
        given = self.shrinkage
        self.shrunk.copy_(oas_shrinkage(plain, n) if given == "oas" else torch.tensor(float(given)))
        return shrink(plain, self.shrunk)

    def _solve(self, n: int) -> None:
        """Compute weights and offsets from the class means and the covariance."""
        known = self.counts > 0
        centre = self.sums.sum(dim=0) / max(n, 1)
        means = self.sums[known] / self.counts[known, None] - centre
        solved = torch.cholesky_solve(means.T, torch.linalg.cholesky(self.covariance())).T
        priors = self.counts[known].double() / max(n, 1)
        offsets = priors.log() - (solved * means).sum(dim=1) / 2
        self.weight.zero_()[known] = solved.float()
        self.bias.zero_()[known] = offsets.float()
        self.centre.copy_(centre)

    def forward(self, features: Tensor) -> Tensor:
        """Return log probabilities: ``(B, D)`` to ``(B, R)``; -1000 for rows without an image."""
        with torch.autocast(features.device.type, enabled=False):
            scores = (features.float() - self.centre) @ self.weight.T + self.bias
        return log_posterior(scores, self.counts > 0)


@exportable
def build_lda(*, in_features: FeatureWidth, shrinkage: Shrinkage = "oas") -> LDAHead:
    """Build an :class:`LDAHead`.

    Args:
        in_features: ``D``.
        shrinkage: ``oas``, or how far the covariance moves towards a multiple of the identity.

    Raises:
        ConfigError: If the features are too wide.
    """
    return LDAHead(in_features, shrinkage=shrinkage)
