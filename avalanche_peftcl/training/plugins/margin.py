"""A margin between the classes at hand, for heads whose logits are cosines."""

from collections.abc import Callable
from typing import Any

import torch
from avalanche.core import SupervisedPlugin
from torch import Tensor

from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.functional.losses import less_margin
from avalanche_peftcl.models import CosineHead, DynamicModel
from avalanche_peftcl.registry.ranges import Margin, Scale
from avalanche_peftcl.training.feature_pass import network_of


class MarginLossPlugin(SupervisedPlugin, supports_distributed=False):  # type: ignore[call-arg]  # the host's keyword
    r"""Ask in training that the cosine to the own class is the largest by a margin.

    .. math:: \text{logits}_{bc} = s\,(\cos\theta_{bc} - m\,[c = y_b])

    goes into the strategy's criterion, over the classes that its loss compares: those at hand with
    ``loss="local"``. What metrics and plugins see of the logits has no margin, and evaluation has
    none.

    Works with any Avalanche strategy whose model is a
    :class:`~avalanche_peftcl.models.DynamicModel` with a trained
    :class:`~avalanche_peftcl.models.CosineHead`, NTK-CL's proxies among them.

    Args:
        margin: :math:`m`, in [0, 0.5].
        scale: :math:`s`: the head's factor is set to it and stays there. ``None`` leaves the factor
            as the head trains it.

    Raises:
        ConfigError: If an argument is out of range; while training, if what trains is not a head
            of cosines.

    Source:
        Wang et al., "CosFace: Large Margin Cosine Loss", CVPR 2018, eq. (4).
        Differs: over the classes at hand where the strategy compares these; the factor can train.

    Example:
        >>> MarginLossPlugin(0.2).scale
        20.0
    """

    remembers: tuple[str, ...] = ()  # the factor is in the model

    def __init__(self, margin: float = 0.1, *, scale: float | None = 20.0) -> None:
        super().__init__()
        if not 0 <= margin <= 0.5:
            raise ConfigError(f"margin must be in [0, 0.5], not {margin}")
        if scale is not None and not 0 < scale < float("inf"):
            raise ConfigError(
                f"scale must be positive, or None for the factor that the head trains, not {scale}"
            )
        self.margin, self.scale = margin, scale
        self._head: CosineHead | None = None
        self._plain: Callable[..., Tensor] | None = None  # the criterion, while ours stands there

    @torch.no_grad()
    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Look up the head, and set its factor."""
        self._head = _trained_head(network_of(strategy))
        if self.scale is not None:
            self._head.sigma.fill_(self.scale)

    def after_forward(self, strategy: Any, **kwargs: Any) -> None:
        """Put the margin before the criterion, which is computed next."""
        if self._plain is None:
            self._plain = strategy._criterion
        strategy._criterion = self._with_margin

    def before_backward(self, strategy: Any, **kwargs: Any) -> None:
        """Leave the criterion as it was: what evaluation computes has no margin."""
        self._restore(strategy)

    def before_eval(self, strategy: Any, **kwargs: Any) -> None:
        """Leave it so after a step that was broken off, too."""
        self._restore(strategy)

    def before_update(self, strategy: Any, **kwargs: Any) -> None:
        """Hold a given factor: no optimizer moves what has no gradient."""
        if self.scale is not None and self._head is not None:
            self._head.sigma.grad = None

    def _restore(self, strategy: Any) -> None:
        if self._plain is not None:
            strategy._criterion, self._plain = self._plain, None

    def _with_margin(self, logits: Tensor, targets: Tensor) -> Tensor:
        if self._head is None or self._plain is None:
            raise ConfigError("the margin belongs to a training minibatch; there is none")
        margin = self._head.sigma.float() * self.margin
        return self._plain(less_margin(logits, targets, margin=margin), targets)


def _trained_head(network: Any) -> CosineHead:
    """Return the one head of ``network`` that trains."""
    heads = network.heads if isinstance(network, DynamicModel) else ()
    trained = [head for head in heads if not head.fitted]
    if len(trained) == 1 and isinstance(trained[0], CosineHead):
        return trained[0]
    there = ", ".join(type(head).__name__ for head in trained) or "none that is known here"
    raise ConfigError(
        "a margin is one of cosines and needs a trained CosineHead; the trained head of "
        f"{type(network).__name__} is: {there}. Take head: cosine, or ntk_cl, whose proxies are "
        "one, or leave the margin out"
    )


def build_margin(*, margin: Margin = 0.1, scale: Scale | None = 20.0) -> MarginLossPlugin:
    """Build a :class:`MarginLossPlugin`."""
    return MarginLossPlugin(margin, scale=scale)
