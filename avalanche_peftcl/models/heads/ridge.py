"""Ridge regression of one-hot targets on the features themselves."""

import torch

from avalanche_peftcl.models.exportable import exportable
from avalanche_peftcl.models.heads.drift import Drift
from avalanche_peftcl.models.heads.regression import (
    WIDEST,
    Penalty,
    PenaltyFactor,
    RegressionHead,
    check_width,
)
from avalanche_peftcl.registry.ranges import FeatureWidth


@exportable
class RidgeHead(RegressionHead):
    r"""Ridge regression of one-hot targets on features, summed over all experiences.

    .. math:: W = \Bigl(\sum h h^\top + \lambda I\Bigr)^{-1} \sum h y^\top

    It is the same for every order of the stream and moves with features. :class:`RegressionHead`
    says more, memory and time included.

    Args:
        in_features: ``D``, at most 16,384: the Gram then takes 2 GiB.
        penalty: How :math:`\lambda` is chosen: ``"scale_free"``, ``"gcv"``, or a number.
        penalty_factor: Multiplies what was chosen by a criterion.

    Raises:
        ConfigError: If the features are too wide.

    Source:
        Hoerl and Kennard, Technometrics 1970; the sum over tasks: Zhuang et al., ACIL, NeurIPS
        2022. Differs: no intercept; the penalty is chosen from the sums.

    Example:
        >>> head = RidgeHead(2, penalty=1.0)
        >>> head.grow(2)
        >>> head.observe(torch.tensor([[3.0, 0.0], [0.0, 3.0]]), torch.tensor([0, 1]))
        >>> head.settle()
        >>> head(torch.tensor([[1.0, 0.0]]))
        tensor([[0.3000, 0.0000]])
    """

    def __init__(
        self, in_features: int, *, penalty: Penalty = "scale_free", penalty_factor: float = 1.0
    ) -> None:
        check_width(
            in_features,
            WIDEST,
            "take head 'random_ridge' or 'kernel_ridge', whose memory does not grow with them, or "
            "features of fewer blocks",
        )
        super().__init__(in_features, in_features, penalty=penalty, penalty_factor=penalty_factor)

    @torch.no_grad()
    def move(self, drift: Drift) -> None:
        """Move the sums; exact where the drift is linear."""
        self._move_sums(drift)


@exportable
def build_ridge(
    *,
    in_features: FeatureWidth,
    penalty: Penalty = "scale_free",
    penalty_factor: PenaltyFactor = 1.0,
) -> RidgeHead:
    """Build a :class:`RidgeHead`.

    Args:
        in_features: ``D``.
        penalty: ``scale_free``, ``gcv``, or the penalty itself.
        penalty_factor: Multiplies what was chosen by a criterion.

    Raises:
        ConfigError: If the features are too wide.
    """
    return RidgeHead(in_features, penalty=penalty, penalty_factor=penalty_factor)
