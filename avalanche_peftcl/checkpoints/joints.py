"""What a part of a strategy may offer so that a checkpoint knows what it remembers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, runtime_checkable

from avalanche_peftcl.models.frozen import Frozen


class Remembers(Protocol):
    """A plugin, metric, strategy or part of one that names the attributes a checkpoint keeps.

    Each class names those that it adds; those of its base classes count too, and ``()`` says that
    there are none. A value is plain (numbers, text, ``None``, tensors, NumPy arrays, and lists,
    tuples, sets, mappings of these), a module of torch, or an object that itself
    :class:`Remembers`, is :class:`Stateful` or is one of Avalanche's metrics. Containers and
    tensors are set anew, into modules and objects their state is loaded; so attributes are there
    once ``__init__`` has run. A property with a setter is an attribute too.

    Without ``remembers`` an object is kept by all its attributes, settings included, as long as
    these are such values; functions are left out, it is built with them.

    Example:
        >>> from avalanche.core import SupervisedPlugin
        >>> class FeatureNorm(SupervisedPlugin):
        ...     remembers = ("total", "count")
        ...
        ...     def __init__(self, watched):
        ...         super().__init__()
        ...         self.watched = watched  # a module: not ours to keep
        ...         self.total, self.count = 0.0, 0
        ...
        ...     def after_training_iteration(self, strategy, **kwargs):
        ...         self.total += float(self.watched(strategy.mb_x).norm())
        ...         self.count += 1
    """

    remembers: ClassVar[tuple[str, ...]]


@runtime_checkable
class Stateful(Protocol):
    """What hands its state out itself, where names of attributes are not enough.

    Both methods count beside ``remembers``. A state is of mappings, lists, tuples, sets, numbers,
    text, ``None`` and tensors.
    """

    def state_dict(self) -> Any:
        """Return what a checkpoint keeps."""

    def load_state_dict(self, state: Any) -> Any:
        """Take over what :meth:`state_dict` returned."""


@dataclass(frozen=True)
class Surroundings:
    """What the state of a part may refer to.

    Args:
        strategy: The strategy that it is a part of.
        frozen: The tensors that no checkpoint holds.
        trained: The training experiences visited so far, in order, the current one included.
    """

    strategy: Any
    frozen: Frozen = field(default_factory=Frozen)
    trained: Sequence[Any] = ()


State = Mapping[str, Any]
