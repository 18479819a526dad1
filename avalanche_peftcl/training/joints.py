"""What an Avalanche plugin may offer beside its callbacks, and what it may find on a strategy.

Nothing here has to be inherited: a class that has the members has the joint. A plugin with all that
it may offer, to paste:

    >>> import torch
    >>> from avalanche.core import SupervisedPlugin
    >>> from avalanche_peftcl.training.losses import add_loss
    >>> class SmallFeatures(SupervisedPlugin):
    ...     remembers = ("n_steps", "mean")  # what a checkpoint keeps
    ...
    ...     def __init__(self, weight):
    ...         super().__init__()
    ...         self.weight, self.active = weight, True
    ...         self.n_steps, self.mean = 0, torch.zeros(())
    ...
    ...     def before_backward(self, strategy, **kwargs):
    ...         if self.active:
    ...             length = strategy.mb_features[-1].square().mean()
    ...             add_loss(strategy, "small_features", self.weight * length)
    ...             self.n_steps += 1
    ...             self.mean += (length.detach() - self.mean) / self.n_steps
    ...
    ...     @property
    ...     def stored_floats(self):
    ...         return 1
    ...
    ...     def summary(self):
    ...         return {"mean": float(self.mean)}
    ...
    ...     def headline(self):
    ...         return f"features of length {float(self.mean):.3g}" if self.n_steps else None
    >>> plugin = SmallFeatures(0.1)
    >>> offered = Remembers, Summarised, Headlined, Storing, Pausing
    >>> all(isinstance(plugin, joint) for joint in offered)
    True
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn


@runtime_checkable
class Remembers(Protocol):
    """State that a checkpoint keeps; metrics and strategies may state theirs alike.

    Attributes:
        remembers: Names of attributes: numbers, text, tensors, and lists and mappings of these.
            Where that is not enough, a class has ``state_dict()`` and ``load_state_dict(state)``.
    """

    remembers: tuple[str, ...]


@runtime_checkable
class Summarised(Protocol):
    """Something for the run record."""

    def summary(self) -> Mapping[str, Any]:
        """Return what ``metrics.json`` keeps under ``plugins``: plain values, lists, mappings."""


@runtime_checkable
class Headlined(Protocol):
    """Something to show while a run goes on."""

    def headline(self) -> str | None:
        """Return one line about the experience just trained; ``None`` says nothing."""


@runtime_checkable
class Storing(Protocol):
    """Memory that grows with the stream, which the cost of a method includes."""

    @property
    def stored_floats(self) -> int:
        """Floats kept from experience to experience."""


@runtime_checkable
class Pausing(Protocol):
    """A plugin that a strategy can let rest, as PEGP does in its second stage.

    Attributes:
        active: While false, the plugin changes nothing of training.
    """

    active: bool


@runtime_checkable
class Tuning(Protocol):
    """A strategy such as :class:`.PEFTTemplate`; Avalanche's own have none of these.

    Attributes:
        mb_features: Features of the current minibatch, each ``(B, D)``; the last is classified.
        mb_row_logits: Its logits by head row, ``(B, R)``; ``None`` for a network without rows.
        mb_rows: Head row of each target, ``(B,)``; ``None`` outside training.
        mb_losses: Weighted terms of the loss by name; see :func:`.add_loss`.
    """

    mb_features: tuple[Tensor, ...]
    mb_row_logits: Tensor | None
    mb_rows: Tensor | None
    mb_losses: dict[str, Tensor]

    @property
    def network(self) -> nn.Module:
        """The model, unwrapped."""

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the context in which the network runs."""


@runtime_checkable
class OnBackbone(Protocol):
    """A network around a frozen one, which no checkpoint needs to hold.

    Attributes:
        backbone: The frozen network, as it was given.
    """

    backbone: nn.Module
