"""Named terms of a loss, beside that of classification."""

from itertools import islice
from typing import Any

from torch import Tensor

from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.training.joints import Tuning
from avalanche_peftcl.training.publishing import publish


class NamedLosses(dict[str, Tensor]):
    """The terms of a minibatch's loss, in the order in which they were put in.

    Example:
        >>> losses = NamedLosses()
        >>> losses["pull"] = Tensor([2.0])
        >>> losses["pull"] = Tensor([3.0])
        Traceback (most recent call last):
        avalanche_peftcl.errors.ConfigError: two terms of the loss are called 'pull'; ...
    """

    def __setitem__(self, name: str, term: Tensor) -> None:
        if name in self:
            raise ConfigError(
                f"two terms of the loss are called {name!r}; give one another name, or let "
                "add_loss() number them"
            )
        super().__setitem__(name, term)


class LossMeans:
    """Means of named terms over the minibatches of an epoch; nothing waits for the device.

    Attributes:
        sums: Sum of each term so far, and in how many minibatches it was there.
    """

    remembers: tuple[str, ...] = ("sums",)

    def __init__(self) -> None:
        self.sums: dict[str, tuple[Tensor, int]] = {}

    def begin_epoch(self) -> None:
        """Forget an epoch that did not end."""
        self.sums = {}

    def add(self, losses: dict[str, Tensor]) -> None:
        """Take in the terms of a minibatch."""
        for name, term in losses.items():
            value = term.detach().float().reshape(())
            old, count = self.sums.get(name, (None, 0))
            self.sums[name] = (value if old is None else old + value, count + 1)

    def publish(self, strategy: Any) -> None:
        """Hand the means of the epoch to the host's evaluator."""
        for name, (total, count) in self.sums.items():
            publish(strategy, self, f"Loss_{name}", float(total) / count)


def add_loss(strategy: Any, name: str, term: Tensor) -> None:
    """Add a weighted term to the loss of the current minibatch, before its backward pass.

    Args:
        strategy: Any Avalanche strategy in training. Where it is a :class:`.PEFTTemplate` the term
            goes into ``mb_losses`` and its mean is published once an epoch; for Avalanche's own
            it is added to ``strategy.loss``.
        name: Of the term; a second one of that name gets a number.
        term: A scalar.

    Example:
        >>> from types import SimpleNamespace
        >>> strategy = SimpleNamespace(loss=Tensor([1.0]))
        >>> add_loss(strategy, "pull", Tensor([2.0]))
        >>> strategy.loss
        tensor([3.])
    """
    if not isinstance(strategy, Tuning):
        strategy.loss = strategy.loss + term
        return
    same = sum(other == name or other.startswith(f"{name}_") for other in strategy.mb_losses)
    strategy.mb_losses[f"{name}_{same + 1}" if same else name] = term


def sum_of(loss: Tensor, losses: dict[str, Tensor], *, start: int) -> Tensor:
    """Return ``loss`` and, one after the other, the terms from number ``start`` on."""
    for term in islice(losses.values(), start, None):
        loss = loss + term
    return loss
