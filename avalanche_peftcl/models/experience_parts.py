"""A part an experience: those of earlier ones as they were, and one that trains."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from avalanche_peftcl.models.heads.rows import Growing


class ExperienceParts(Growing):
    """Tensors of which each experience has its own; those of the latest train.

    For modules that grow with a stream, whose number of experiences nobody has to know. A module
    says in :meth:`.Branch.start_experience` that one begins.

    Args:
        first: The tensors of the first experience, by name.

    Attributes:
        begun: Number of the experience begun last, 0 before the first.

    Example:
        >>> parts = ExperienceParts({"key": torch.ones(2)})
        >>> parts.start(1), parts.start(1), parts.start(2)
        (False, False, True)
        >>> len(parts), parts.every("key").shape, [name for name, _ in parts.named_parameters()]
        (2, torch.Size([2, 2]), ['key'])
    """

    begun: Tensor

    def __init__(self, first: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.register_buffer("begun", torch.zeros((), dtype=torch.long))
        for name, tensor in first.items():
            self.register_parameter(name, nn.Parameter(tensor.detach().clone()))
            self.register_buffer(f"past_{name}", tensor.new_zeros(0, *tensor.shape))
        self.row_tensors = tuple(f"past_{name}" for name in first)
        self._names = tuple(first)

    def __len__(self) -> int:
        """Number ``T`` of parts, the one that trains among them."""
        return 1 + len(self.past(self._names[0]))

    def start(self, number: int) -> bool:
        """Begin the part of an experience, if it is another one than begun last.

        The new part starts as a copy of the one before; it is a new parameter, so that nothing of
        an optimizer's state acts on it.

        Args:
            number: Of the experience in its stream, from 1.

        Returns:
            Whether there is a new part beside older ones, to draw anew what is not to be copied.
        """
        known = int(self.begun)
        if number == known:
            return False
        self.begun.fill_(number)
        if known == 0:
            return False
        for name in self._names:
            old = self.get_parameter(name).detach()
            setattr(self, f"past_{name}", torch.cat([self.past(name), old[None]]))
            setattr(self, name, nn.Parameter(old.clone()))
        return True

    def past(self, name: str) -> Tensor:
        """Return a tensor of all earlier experiences, ``(T - 1, ...)``, without gradient."""
        return self.get_buffer(f"past_{name}")

    def every(self, name: str) -> Tensor:
        """Return a tensor of all experiences, ``(T, ...)``; gradients reach the last one."""
        return torch.cat([self.past(name), self.get_parameter(name)[None]])
