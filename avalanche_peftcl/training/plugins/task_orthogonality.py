"""Push features of new classes out of the span of old prototypes."""

from typing import Any

import torch
from avalanche.core import SupervisedPlugin
from torch import Tensor
from torch.nn import functional as F

from avalanche_peftcl.functional.losses import (
    released_direction,
    released_orthogonality,
    span_energy,
)
from avalanche_peftcl.functional.subspace import orthonormal_basis
from avalanche_peftcl.training.losses import add_loss
from avalanche_peftcl.training.streams import starts_experience


class TaskOrthogonalityPlugin(SupervisedPlugin, supports_distributed=False):  # type: ignore[call-arg]  # the host's keyword
    r"""Add :math:`\upsilon \sum_v \sum_b \lVert B^\top \hat z_{v,b} \rVert^2` to the loss.

    :math:`B` spans the prototypes of classes that are not in the experience, as many columns as
    their rank; it is computed once when the experience begins. :math:`z_v` are the strategy's
    ``mb_features`` except the last, or the only one.

    Args:
        weight: :math:`\upsilon`.

    Source:
        Liu et al., arXiv 2407.17120, abstract ("task-level feature orthogonality").
        Differs: the paper's own formula could not be read; for the release see
        :class:`ReleasedOrthogonalityPlugin`.
    """

    remembers: tuple[str, ...] = ("basis",)

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.weight = weight
        self.basis: Tensor | None = None

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Compute what stays constant within an experience."""
        if starts_experience(strategy.experience):
            with torch.no_grad():
                self.basis = self.prepare(strategy)

    def before_backward(self, strategy: Any, **kwargs: Any) -> None:
        """Add the term to the loss."""
        if self.basis is None:
            return
        features = strategy.mb_features[:-1] or strategy.mb_features
        terms = [self.term(z, self.basis) for z in features]
        add_loss(strategy, "orthogonality", self.weight * sum(terms[1:], terms[0]))

    def prepare(self, strategy: Any) -> Tensor | None:
        """Return the basis, ``(D, K)``; ``None`` where there are no old classes."""
        head = strategy.model.prototypes
        old = head.counts > 0
        old[strategy.current_rows] = False
        basis = orthonormal_basis(F.normalize(head.prototypes[old], dim=1).T)
        return basis if basis.shape[1] else None

    def term(self, features: Tensor, basis: Tensor) -> Tensor:
        """Return the term of one view."""
        return span_energy(features, basis)


class ReleasedOrthogonalityPlugin(TaskOrthogonalityPlugin):
    """The term of the release: a signed sum outside the span of 40 left singular vectors.

    Args:
        weight: Factor of the term.
        columns: How many singular vectors.

    Source:
        Released NTK-CL code 24de712. Differs: one SVD an experience instead of one a step.
    """

    def __init__(self, weight: float, *, columns: int = 40) -> None:
        super().__init__(weight)
        self.columns = columns

    def prepare(self, strategy: Any) -> Tensor:
        """Return the constant direction, ``(D,)``."""
        return released_direction(strategy.model.prototypes.prototypes, columns=self.columns)

    def term(self, features: Tensor, basis: Tensor) -> Tensor:
        """Return the term of one view."""
        return released_orthogonality(features, basis)
