"""Ridge regression of one-hot targets, from sums over all images: what its heads share."""

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.functional.ridge import (
    Spectrum,
    generalised_cross_validation,
    penalties,
    scale_free_cross_validation,
    spectrum,
)
from avalanche_peftcl.models.heads.additive import MomentHead
from avalanche_peftcl.models.heads.rows import MASK_VALUE

WIDEST = 16_384  # of a regression: its Gram takes 2 GiB
Penalty = Literal["gcv", "scale_free"] | Annotated[float, Field(ge=1e-12, le=1e12)]
PenaltyFactor = Annotated[float, Field(ge=1e-6, le=1e6)]

_ROUNDING = 1e-9  # of a criterion
_CRITERIA = {"gcv": generalised_cross_validation, "scale_free": scale_free_cross_validation}


def choose_penalty(there: Spectrum, penalty: Penalty, factor: float = 1.0) -> Tensor:
    """Return the penalty of a regression, ``()``.

    Of several on the grid that are equally good up to rounding, it is the one nearest to its
    middle, the mean squared length of a row.

    Args:
        there: Its statistics.
        penalty: The criterion whose minimum on the grid is taken, or the number itself.
        factor: Multiplies what a criterion chose.
    """
    if isinstance(penalty, float | int):
        return torch.as_tensor(float(penalty)).to(there.values)
    grid = penalties(there)
    values = _CRITERIA[penalty](there, grid)
    # towards either end a criterion may be flat: rounding, and with it the order, must not choose
    equal = (values <= values.min() + _ROUNDING * values.min().abs()).nonzero()[:, 0]
    return grid[equal[(equal - len(grid) // 2).abs().argmin()]] * factor


def check_width(width: int, widest: int, way_out: str) -> None:
    """Refuse a head whose second moments would take too much memory.

    Raises:
        ConfigError: If ``width`` is more than ``widest``.
    """
    if width > widest:
        raise ConfigError(
            f"features of width {width:,} are too wide: their second moments would take "
            f"{8 * width**2 / 2**30:,.1f} GiB, and the widest that are taken are {widest:,}; "
            f"{way_out}"
        )


class RegressionHead(MomentHead):
    r"""Ridge regression of one-hot targets on features ``h`` that a subclass makes of a feature.

    .. math:: G = \sum h h^\top, \quad C = \sum h y^\top, \quad W = (G + \lambda I)^{-1} C

    over all images of the stream, in float64. The sums do not depend on the order of experiences
    and minibatches; a class met again adds to them, a new one adds a column, and what was added
    can be subtracted. They are solved in :meth:`settle` and nowhere else.

    Memory: ``8 M²`` bytes for ``G``, and as much again while it is solved; ``12 M`` a class. Time:
    :math:`2 B M^2` operations a minibatch; to solve, of order :math:`M^2 n` where the number of
    images is below half of ``M``, else :math:`M^3`.

    Args:
        in_features: ``D``.
        width: ``M``, of ``h``.
        penalty: How :math:`\lambda` is chosen: ``"gcv"`` (generalised cross-validation),
            ``"scale_free"`` (the same of scores whose common factor is free), or a number.
        penalty_factor: Multiplies what was chosen by a criterion.

    Attributes:
        gram: ``G``, ``(M, M)``; of no rows until there is an image.
        sums: ``C`` transposed, ``(R, M)``.
        counts: Images of each row, ``(R,)``.
        weight: ``W`` transposed, ``(R, M)``.
        penalty: :math:`\lambda`; 0 until it is chosen.
    """

    summed = "the sums of features of a regression"
    row_tensors: tuple[str, ...] = ("sums", "counts", "weight")
    score_name = "estimate"
    weight: Tensor
    penalty: Tensor

    def __init__(
        self,
        in_features: int,
        width: int,
        *,
        penalty: Penalty = "gcv",
        penalty_factor: float = 1.0,
    ) -> None:
        super().__init__(in_features, width)
        self.criterion, self.penalty_factor = penalty, penalty_factor
        self.register_buffer("weight", torch.zeros(0, width))
        self.register_buffer("penalty", torch.zeros((), dtype=torch.float64))

    def _solve(self, n: int) -> None:
        """Choose the penalty and solve for the weights."""
        if n:
            there = spectrum(self.gram, self.sums.T, n=n)
            self.penalty.copy_(choose_penalty(there, self.criterion, self.penalty_factor))
            self.weight.copy_(there.solve(self.penalty).T)
        else:
            self.gram.zero_()
            self.weight.zero_()

    def forward(self, features: Tensor) -> Tensor:
        """Return scores: ``(B, D)`` to ``(B, R)``; -1000 for rows without an image yet."""
        with torch.autocast(features.device.type, enabled=False):
            scores = self.regressors(features) @ self.weight.T
        return scores.masked_fill(self.counts == 0, MASK_VALUE)

    def scores(self, logits: Tensor) -> Tensor:
        """Return the logits: estimates of a target that is 1 for the class and 0 for others."""
        return logits
