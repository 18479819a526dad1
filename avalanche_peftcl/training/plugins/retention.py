"""Keep parameters near their values at the start of the experience."""

from collections.abc import Callable
from typing import Any

from avalanche.core import SupervisedPlugin
from torch import Tensor

from avalanche_peftcl.registry.ranges import Weight
from avalanche_peftcl.training.losses import add_loss
from avalanche_peftcl.training.streams import starts_experience


class RetentionPlugin(SupervisedPlugin, supports_distributed=False):  # type: ignore[call-arg]  # the host's keyword
    r"""Add :math:`\lambda \sum_j (p_j - p_{0,j})^2` to the loss.

    :math:`p_0` are the values when training on the experience begins.

    Args:
        weight: :math:`\lambda`.
        select: Which trainable parameters, by name; all by default.

    Source:
        Liu et al., arXiv 2407.17120; released code 24de712. Differs: nothing, with the release's
        selection of names.

    Works with any Avalanche strategy.

    Example:
        >>> RetentionPlugin(0.1, select=lambda name: name.startswith("features.")).weight
        0.1
    """

    remembers: tuple[str, ...] = ("reference",)

    def __init__(self, weight: float, *, select: Callable[[str], bool] = lambda name: True) -> None:
        super().__init__()
        self.weight = weight
        self.select = select
        self.reference: dict[str, Tensor] = {}

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Remember the values at the start of an experience."""
        if starts_experience(strategy.experience):
            self.reference = {
                name: p.detach().clone()
                for name, p in strategy.model.named_parameters()
                if p.requires_grad and self.select(name)
            }

    def before_backward(self, strategy: Any, **kwargs: Any) -> None:
        """Add the term to the loss."""
        current = dict(strategy.model.named_parameters())
        moved = [(current[n] - p).square().sum() for n, p in self.reference.items()]
        if moved:
            add_loss(strategy, "retention", self.weight * sum(moved[1:], moved[0]))


def build_retention(*, weight: Weight) -> RetentionPlugin:
    """Build a :class:`RetentionPlugin` of every parameter that trains."""
    return RetentionPlugin(weight)
