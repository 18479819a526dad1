"""Which tensors of a network are as they were built."""

from collections.abc import Iterable

from torch import Tensor, nn


class Frozen:
    """The tensors of networks that are built again as they are, so that no checkpoint holds them.

    A tensor that requires gradients or was changed since counts as frozen no more.

    Args:
        modules: The networks, as they were built.

    Example:
        >>> backbone, head = nn.Linear(2, 2).requires_grad_(False), nn.Linear(2, 1)
        >>> frozen = Frozen([backbone])
        >>> sorted(frozen.names(nn.Sequential(backbone, head)))
        ['0.bias', '0.weight']
    """

    def __init__(self, modules: Iterable[nn.Module] = ()) -> None:
        self._tensors = {
            id(value): (value, value._version)  # held, so that no other gets its id
            for module in modules
            for value in module.state_dict(keep_vars=True).values()
            if isinstance(value, Tensor)
        }

    def names(self, model: nn.Module) -> set[str]:
        """Return the names in the state dict of ``model`` that are frozen."""
        return {
            name
            for name, value in model.state_dict(keep_vars=True).items()
            if isinstance(value, Tensor) and self._is_frozen(value)
        }

    def _is_frozen(self, value: Tensor) -> bool:
        _, version = self._tensors.get(id(value), (None, None))
        return version == value._version and not value.requires_grad
