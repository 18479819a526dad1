"""Ridge regression with a Gaussian kernel, by random Fourier features."""

import math
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from avalanche_peftcl.functional.finite import check_finite
from avalanche_peftcl.functional.kernels import fourier_features, median_distance
from avalanche_peftcl.models.exportable import exportable
from avalanche_peftcl.models.heads.exact_kernel_ridge import ExactKernelRidgeHead
from avalanche_peftcl.models.heads.random_ridge import RandomFeatures
from avalanche_peftcl.models.heads.regression import Penalty, PenaltyFactor, RegressionHead
from avalanche_peftcl.registry.ranges import FeatureWidth, Seed

_AT_ONCE = 1_024  # images whose random features are in memory
Bandwidth = Annotated[float, Field(ge=1e-6, le=1e6)]


@exportable
class KernelRidgeHead(RegressionHead):
    r"""Ridge regression on random features whose inner products approach a Gaussian kernel.

    .. math:: h(z) = \sqrt{2 / M}\,\cos(z\,\Omega / \sigma + b) \quad\text{with}\quad
        h(a)^\top h(b) \approx \exp(-\lVert a - b \rVert^2 / 2 \sigma^2)

    up to an error of order :math:`1 / \sqrt M`. Memory and time stand at :class:`.RegressionHead`.
    With ``bandwidth`` given it is the same for every order of the stream. Else the median distance
    between images of the first experience is taken when it settles, whose features are kept until
    then, and stays. It cannot move with features.

    Args:
        in_features: ``D``.
        n_features: ``M``, how many random features.
        bandwidth: :math:`\sigma`; ``None``: the median distance in the first experience.
        seed: Of the random features; ``None`` draws from torch's generator, which a run has seeded.
        penalty: How :math:`\lambda` is chosen: ``"gcv"``, ``"scale_free"``, or a number.
        penalty_factor: Multiplies what was chosen by a criterion.

    Attributes:
        directions: :math:`\Omega`, ``(D, M)``.
        phases: ``b``, ``(M,)``.
        bandwidth: :math:`\sigma`, ``()``; 0 until it is chosen.

    Source:
        Rahimi and Recht, NeurIPS 2007. Differs: nothing.

    Example:
        >>> head = KernelRidgeHead(2, n_features=64, seed=0)
        >>> head.grow(2)
        >>> head.observe(torch.tensor([[3.0, 0.0], [0.0, 3.0]]), torch.tensor([0, 1]))
        >>> head.settle()
        >>> round(float(head.bandwidth), 2)
        4.24
        >>> head(torch.tensor([[3.0, 0.1], [0.1, 3.0]])).argmax(dim=1)
        tensor([0, 1])
    """

    directions: Tensor
    phases: Tensor
    bandwidth: Tensor
    waiting: Tensor
    waiting_rows: Tensor
    free_tensors = (*RegressionHead.free_tensors, "waiting", "waiting_rows")
    statistics = (*RegressionHead.statistics, "waiting", "waiting_rows")

    def __init__(
        self,
        in_features: int,
        *,
        n_features: int = 4_000,
        bandwidth: float | None = None,
        seed: int | None = None,
        penalty: Penalty = "gcv",
        penalty_factor: float = 1.0,
    ) -> None:
        super().__init__(in_features, n_features, penalty=penalty, penalty_factor=penalty_factor)
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        directions = torch.randn(in_features, n_features, generator=generator)
        phases = 2 * math.pi * torch.rand(n_features, generator=generator)
        self.register_buffer("directions", directions)
        self.register_buffer("phases", phases)
        self.register_buffer("bandwidth", torch.tensor(bandwidth or 0.0))
        self.register_buffer("waiting", torch.zeros(0, in_features))  # until there is a bandwidth
        self.register_buffer("waiting_rows", torch.zeros(0, dtype=torch.long))  # -1 - row: removed

    def regressors(self, features: Tensor) -> Tensor:
        """Return the random features, in float32."""
        # of a bandwidth not chosen yet any will do: no row has an image
        bandwidth = torch.where(self.bandwidth > 0, self.bandwidth, 1.0)
        return fourier_features(features.float(), self.directions, self.phases, bandwidth)

    def _take(self, features: Tensor, rows: Tensor, *, sign: int) -> None:
        if self.bandwidth > 0:
            super()._take(features, rows, sign=sign)
        else:
            self.waiting = torch.cat([self.waiting, features.to(self.waiting)])
            self.waiting_rows = torch.cat([self.waiting_rows, rows if sign > 0 else -1 - rows])

    @torch.no_grad()
    def settle(self) -> None:
        """Choose the bandwidth first, if there is none; then as :meth:`.RegressionHead.settle`."""
        rows, taken = self.waiting_rows, self.waiting_rows >= 0
        if bool(taken.any()):
            check_finite([self.waiting], "the features of a kernel regression")
            self.bandwidth.fill_(median_distance(self.waiting[taken]))
            for start in range(0, len(rows), _AT_ONCE):
                part = slice(start, start + _AT_ONCE)
                z, of, added = self.waiting[part], rows[part], taken[part]
                self._take(z[added], of[added], sign=1)
                self._take(z[~added], -1 - of[~added], sign=-1)
            self.waiting, self.waiting_rows = self.waiting[:0], rows[:0]
        super().settle()


@exportable
def build_kernel_ridge(
    *,
    in_features: FeatureWidth,
    exact: bool = False,
    n_features: RandomFeatures = 4_000,
    bandwidth: Bandwidth | None = None,
    seed: Seed | None = None,
    penalty: Penalty = "gcv",
    penalty_factor: PenaltyFactor = 1.0,
) -> KernelRidgeHead | ExactKernelRidgeHead:
    """Build a :class:`KernelRidgeHead`, or an :class:`.ExactKernelRidgeHead`.

    Args:
        in_features: ``D``.
        exact: Keep the features of all images, instead of random ones.
        n_features: How many random features; nothing where ``exact``.
        bandwidth: Of the kernel; ``None``: the median distance in the first experience.
        seed: Of the random features; ``None`` takes the run's.
        penalty: ``gcv``, ``scale_free``, or the penalty itself.
        penalty_factor: Multiplies what was chosen by a criterion.
    """
    if exact:
        return ExactKernelRidgeHead(
            in_features, bandwidth=bandwidth, penalty=penalty, penalty_factor=penalty_factor
        )
    return KernelRidgeHead(
        in_features,
        n_features=n_features,
        bandwidth=bandwidth,
        seed=seed,
        penalty=penalty,
        penalty_factor=penalty_factor,
    )
