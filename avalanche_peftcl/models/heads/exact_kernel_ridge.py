"""Ridge regression with a Gaussian kernel, where the features of all images are kept."""

import torch
from torch import Tensor

from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.functional.finite import check_finite
from avalanche_peftcl.functional.kernels import gaussian_kernel, median_distance
from avalanche_peftcl.functional.ridge import kernel_spectrum
from avalanche_peftcl.models.exportable import exportable
from avalanche_peftcl.models.heads.head import Head
from avalanche_peftcl.models.heads.regression import Penalty, choose_penalty
from avalanche_peftcl.models.heads.rows import MASK_VALUE

MOST_IMAGES = 16_384  # whose kernel takes 2 GiB
_CLOSE = 1e-4  # of its length: how far a removed feature may lie from the one that was kept


@exportable
class ExactKernelRidgeHead(Head):
    r"""Kernel ridge regression of one-hot targets: every feature is kept.

    .. math:: \alpha = (K + \lambda I)^{-1} Y, \quad
        K_{ij} = \exp(-\lVert z_i - z_j \rVert^2 / 2 \sigma^2)

    Memory: ``4 n (D + R)`` bytes, and ``16 n²`` while it is solved. Time: of order :math:`n^3` to
    solve, :math:`n (D + R)` for a prediction. At most 16,384 images.

    Args:
        in_features: ``D``.
        bandwidth: :math:`\sigma`; ``None``: the median distance between images of the first
            experience, which stays.
        penalty: How :math:`\lambda` is chosen: ``"gcv"``, ``"scale_free"``, or a number.
        penalty_factor: Multiplies what was chosen by a criterion.

    Attributes:
        kept: Features, ``(n, D)``.
        rows: Row of each, ``(n,)``.
        weight: :math:`\alpha` transposed, ``(R, n)``.
        penalty: :math:`\lambda`; 0 until it is chosen.
        bandwidth: :math:`\sigma`, ``()``; 0 until it is chosen.

    Source:
        Saunders et al., ICML 1998. Differs: the penalty is chosen by generalised cross-validation.

    Example:
        >>> head = ExactKernelRidgeHead(1, bandwidth=1.0, penalty=1.0)
        >>> head.grow(2)
        >>> head.observe(torch.tensor([[0.0], [9.0]]), torch.tensor([0, 1]))
        >>> head.settle()
        >>> head(torch.tensor([[0.0]])).round(decimals=4)
        tensor([[0.5000, 0.0000]])
    """

    fitted = True
    row_tensors = ("weight",)
    free_tensors = ("kept", "rows", "weight")
    score_name = "estimate"
    kept: Tensor
    rows: Tensor
    weight: Tensor
    penalty: Tensor
    bandwidth: Tensor
    pending: Tensor

    def __init__(
        self,
        in_features: int,
        *,
        bandwidth: float | None = None,
        penalty: Penalty = "gcv",
        penalty_factor: float = 1.0,
    ) -> None:
        super().__init__(in_features)
        self.criterion, self.penalty_factor = penalty, penalty_factor
        self.register_buffer("kept", torch.zeros(0, in_features))
        self.register_buffer("rows", torch.zeros(0, dtype=torch.long))
        self.register_buffer("weight", torch.zeros(0, 0))
        self.register_buffer("penalty", torch.zeros((), dtype=torch.float64))
        self.register_buffer("bandwidth", torch.tensor(bandwidth or 0.0))
        self.register_buffer("pending", torch.zeros((), dtype=torch.bool))

    @torch.no_grad()
    def observe(self, features: Tensor, rows: Tensor) -> None:
        """Keep features.

        Raises:
            ConfigError: If there are too many.
        """
        n = len(self.kept) + len(features)
        if n > MOST_IMAGES:
            raise ConfigError(
                f"an exact kernel regression keeps at most {MOST_IMAGES:,} images, not {n:,}; set "
                "exact to false, for random features of bounded memory"
            )
        self.kept = torch.cat([self.kept, features.to(self.kept)])
        self.rows = torch.cat([self.rows, rows])
        self.pending.fill_(True)

    @torch.no_grad()
    def remove(self, features: Tensor, rows: Tensor) -> None:
        """Let go of the kept feature of its class that is nearest to each.

        Raises:
            ConfigError: If none lies where it should be.
        """
        stay = torch.ones_like(self.rows, dtype=torch.bool)
        for feature, row in zip(features.to(self.kept), rows, strict=True):
            places = (stay & (self.rows == row)).nonzero()[:, 0]
            apart = (self.kept[places] - feature).norm(dim=1)
            if not len(places) or apart.min() > _CLOSE * feature.norm():
                raise ConfigError(
                    f"an image of row {int(row)} that is to be removed was not observed, or its "
                    "feature was another one then; remove each image once, from a network that "
                    "has not been trained since"
                )
            stay[places[apart.argmin()]] = False
        self.weight = self.weight[:, stay[: self.weight.shape[1]]]
        self.kept, self.rows = self.kept[stay], self.rows[stay]
        self.pending.fill_(True)

    @torch.no_grad()
    def settle(self) -> None:
        """Choose what is not chosen and solve for the coefficients, if the images have changed.

        Raises:
            NotFiniteError: If a feature is not finite numbers.
        """
        if not self.pending:
            return
        check_finite([self.kept], "the features of a kernel regression")
        n_rows, n = len(self.weight), len(self.kept)
        self.weight = self.weight.new_zeros(n_rows, n)
        if n:
            if self.bandwidth == 0:
                self.bandwidth.fill_(median_distance(self.kept))
            kept = self.kept.double()
            targets = torch.eye(n_rows, dtype=kept.dtype, device=kept.device)[self.rows]
            there = kernel_spectrum(gaussian_kernel(kept, kept, self.bandwidth.double()), targets)
            self.penalty.copy_(choose_penalty(there, self.criterion, self.penalty_factor))
            self.weight.copy_(there.solve(self.penalty).T)
        self.pending.fill_(False)

    def forward(self, features: Tensor) -> Tensor:
        """Return scores: ``(B, D)`` to ``(B, R)``; -1000 for rows without an image yet."""
        n_rows, solved = self.weight.shape
        known = torch.zeros(n_rows, dtype=torch.bool, device=self.weight.device)
        known[self.rows[:solved]] = True
        with torch.autocast(features.device.type, enabled=False):
            kernel = gaussian_kernel(features.float(), self.kept[:solved], self.bandwidth)
            scores = kernel @ self.weight.T
        return scores.masked_fill(~known, MASK_VALUE)

    def scores(self, logits: Tensor) -> Tensor:
        """Return the logits: estimates of a target that is 1 for the class and 0 for others."""
        return logits
