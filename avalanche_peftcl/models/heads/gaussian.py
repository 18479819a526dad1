"""Regularised discriminant analysis: a Gaussian a class, each drawn towards what all share."""

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.functional.gaussians import (
    centred_fourth_moment,
    ledoit_wolf_shrinkage,
    oas_shrinkage,
    shrink,
    within_scatter,
)
from avalanche_peftcl.models.exportable import exportable
from avalanche_peftcl.models.heads.additive import SolvedHead
from avalanche_peftcl.models.heads.drift import Drift, move_moments
from avalanche_peftcl.models.heads.head import check_whole
from avalanche_peftcl.models.heads.lda import FLOOR, Shrunk
from avalanche_peftcl.models.heads.posterior import log_posterior
from avalanche_peftcl.registry.ranges import FeatureWidth

Pooling = Annotated[float, Field(ge=1e-6, le=1)]
MOST_ENTRIES = 2**28  # of the second moments of all classes: 2 GiB


@exportable
class GaussianHead(SolvedHead):
    r"""Log probabilities of classes that are Gaussians, each with its own covariance.

    .. math:: \Sigma_r = (1 - \rho)\,\frac{(1 - a)\,S_r + a\,S}{(1 - a)\,n_r + a\,n}
        + \rho\,\mu_r I, \qquad
        \log p(r \mid z) = -\tfrac 1 2 \lVert z - m_r \rVert^2_{\Sigma_r^{-1}}
        - \tfrac 1 2 \log \lvert \Sigma_r \rvert + \log \frac{n_r}{n} + \text{const}

    with :math:`S_r` the scatter of a class about its mean, :math:`S = \sum_r S_r`, and one share
    :math:`\rho` of shrinkage for all, that of the pooled covariance. A class of few images has
    nearly the shared covariance. It is computed from sums over all images, in float64: the same for
    every order of the stream, images can be taken out, and it moves with features (with
    ``shrinkage="ledoit_wolf"`` it does not: fourth moments cannot follow). Solved when it settles.

    Memory: ``12 R D²`` bytes; of these ``8 R D²`` are second moments, at most 2 GiB of them: 455
    classes at a width of 768. Time: :math:`2 B D^2` operations a minibatch, of order
    :math:`R D^3` to solve, :math:`2 B R D^2` for a prediction.

    Args:
        in_features: ``D``.
        pooling: ``a`` in ``(0, 1]``: 1 is :class:`.LDAHead`.
        shrinkage: ``"oas"``, ``"ledoit_wolf"``, or a share in ``(0, 1]``.

    Attributes:
        grams: :math:`\sum z z^\top` of each row, ``(R, D, D)``.
        sums: :math:`\sum z` of each row, ``(R, D)``.
        counts: Images of each row, ``(R,)``.
        means: ``(R, D)``.
        whitening: Inverse Cholesky factor of each covariance, ``(R, D, D)``.
        shrunk: Share of shrinkage, ``()``; 0 until it is chosen.

    Source:
        Friedman, Regularized discriminant analysis, JASA 1989, eqs. (16) to (18). Differs: the
        share of shrinkage is that of the pooled covariance; scores far below the best are bent to
        stay above -900, in the same order.

    Example:
        >>> head = GaussianHead(1, shrinkage=1e-6)
        >>> head.grow(2)
        >>> z = torch.tensor([[-0.1], [0.1], [-3.0], [3.0]])
        >>> head.observe(z, torch.tensor([0, 0, 1, 1]))
        >>> head.settle()
        >>> head(z).argmax(dim=1)  # one mean, two variances
        tensor([0, 0, 1, 1])
    """

    summed = "the means and covariances of classes"
    statistics = ("grams", "sums", "cubed", "fourth")
    row_tensors = (*statistics, "counts", "means", "whitening", "bias")
    grams: Tensor
    sums: Tensor
    cubed: Tensor
    fourth: Tensor
    means: Tensor
    whitening: Tensor
    bias: Tensor
    shrunk: Tensor

    def __init__(
        self,
        in_features: int,
        *,
        pooling: float = 0.5,
        shrinkage: Literal["oas", "ledoit_wolf"] | Shrunk = "oas",
    ) -> None:
        super().__init__(in_features)
        self.pooling, self.shrinkage = pooling, shrinkage
        self._check_memory(1)
        double = torch.float64
        self.register_buffer("grams", torch.zeros(0, in_features, in_features, dtype=double))
        self.register_buffer("sums", torch.zeros(0, in_features, dtype=double))
        self.register_buffer("cubed", torch.zeros(0, in_features, dtype=double))
        self.register_buffer("fourth", torch.zeros(0, dtype=double))
        self.register_buffer("means", torch.zeros(0, in_features))
        self.register_buffer("whitening", torch.zeros(0, in_features, in_features))
        self.register_buffer("bias", torch.zeros(0))
        self.register_buffer("shrunk", torch.zeros((), dtype=double))

    def grow(self, n_rows: int) -> None:
        """Lengthen to ``n_rows``.

        Raises:
            ConfigError: If that takes too much memory.
        """
        self._check_memory(n_rows)
        super().grow(n_rows)

    def _check_memory(self, n_rows: int) -> None:
        entries = n_rows * self.in_features**2
        if entries > MOST_ENTRIES:
            raise ConfigError(
                f"a covariance for each of {n_rows:,} classes of features of width "
                f"{self.in_features:,} takes {entries * 8 / 2**30:,.1f} GiB, and the most is "
                f"{MOST_ENTRIES * 8 / 2**30:.0f}; take head 'lda', with one covariance for all, or "
                "narrower features"
            )

    def _take(self, features: Tensor, rows: Tensor, *, sign: int) -> None:
        check_whole(self)
        z = features.double()
        square = z.square().sum(dim=1)
        with torch.autocast(features.device.type, enabled=False):
            for row in sorted(set(rows.tolist())):
                of = z[rows == row]
                self.grams[row].addmm_(of.T, of, alpha=sign)
        self.sums.index_add_(0, rows, z, alpha=sign)
        self.cubed.index_add_(0, rows, square[:, None] * z, alpha=sign)
        self.fourth.index_add_(0, rows, square.square(), alpha=sign)
        super()._take(features, rows, sign=sign)

    @torch.no_grad()
    def move(self, drift: Drift) -> None:
        """Move the sums; exact where the drift is linear.

        Raises:
            ConfigError: If the shrinkage needs fourth moments.
        """
        if self.shrinkage == "ledoit_wolf":
            raise ConfigError(
                "a GaussianHead cannot move with features that drift where its shrinkage is "
                "'ledoit_wolf', which needs fourth moments; take 'oas' or a number"
            )
        check_whole(self)
        self.grams, self.sums = move_moments(drift, self.grams, self.sums, self.counts)
        self.pending.fill_(True)

    def _solve(self, n: int) -> None:
        """Compute the Gaussians."""
        known = (self.counts > 0).nonzero()[:, 0].tolist()
        means = self.sums / self.counts.clamp_min(1)[:, None]
        self.means.copy_(means)
        pooled = within_scatter(self.grams.sum(dim=0), self.sums, self.counts)
        length = self.grams.diagonal(dim1=1, dim2=2).sum() / max(n, 1)
        self.shrunk.copy_(self._share(pooled / max(n, 1), n, length))
        for row in known:
            own = self.grams[row] - self.sums[row, :, None] * means[row]
            scatter = (1 - self.pooling) * own + self.pooling * pooled
            weight = (1 - self.pooling) * self.counts[row] + self.pooling * n
            if self.shrunk == 1 and pooled.trace() <= FLOOR * n * length:
                size = length / self.in_features
                covariance = torch.eye(len(own)).to(own) * torch.where(size > 0, size, 1.0)
            else:
                covariance = shrink(scatter / weight, self.shrunk)
            factor = torch.linalg.cholesky(covariance)
            identity = torch.eye(len(own)).to(own)
            inverse = torch.linalg.solve_triangular(factor, identity, upper=False)
            self.whitening[row] = inverse.float()
            prior = (self.counts[row] / n).log()
            self.bias[row] = (prior - factor.diagonal().log().sum()).float()

    def _share(self, pooled: Tensor, n: int, length: Tensor) -> Tensor:
        """Return the share of shrinkage, ``()``."""
        if pooled.trace() <= FLOOR * length:
            return pooled.new_ones(())
        if self.shrinkage == "oas":
            return oas_shrinkage(pooled, n)
        if self.shrinkage == "ledoit_wolf":
            about = (self.fourth, self.cubed, self.grams, self.sums, self.counts)
            share = ledoit_wolf_shrinkage(pooled, n, centred_fourth_moment(*about))
            return share.clamp_min(1e-6)  # or nothing keeps the covariance from being singular
        return pooled.new_tensor(float(self.shrinkage))

    def forward(self, features: Tensor) -> Tensor:
        """Return log probabilities: ``(B, D)`` to ``(B, R)``; -1000 for rows without an image."""
        z = features.float()
        scores = z.new_zeros(z.shape[0], len(self.counts))
        with torch.autocast(features.device.type, enabled=False):
            for row in range(len(self.counts)):
                apart = (z - self.means[row]) @ self.whitening[row].T
                scores[:, row] = self.bias[row] - apart.square().sum(dim=1) / 2
        return log_posterior(scores, self.counts > 0)


@exportable
def build_gaussian(
    *,
    in_features: FeatureWidth,
    pooling: Pooling = 0.5,
    shrinkage: Literal["oas", "ledoit_wolf"] | Shrunk = "oas",
) -> GaussianHead:
    """Build a :class:`GaussianHead`.

    Args:
        in_features: ``D``.
        pooling: How far the covariance of a class is that of all.
        shrinkage: ``oas``, ``ledoit_wolf``, or how far covariances move towards a multiple of the
            identity.

    Raises:
        ConfigError: If the features are too wide.
    """
    return GaussianHead(in_features, pooling=pooling, shrinkage=shrinkage)
