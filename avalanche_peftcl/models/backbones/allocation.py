"""How much memory a network that a file describes may ask for while it is built."""

from collections.abc import Mapping
from math import prod
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

from avalanche_peftcl.errors import CheckpointError

_LEAST = 256  # numbers that a tensor counts as, at least: many small ones are refused too


class AllocationLimit(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's has no types
    """While active, refuses tensors beyond a number of entries before they are made.

    Args:
        entries: How many entries all new tensors may have together.
        what: What is built.

    Raises:
        CheckpointError: While active, if more is asked for.

    Example:
        >>> import torch
        >>> with AllocationLimit(10**6, "a network"):
        ...     torch.zeros(10**12)
        Traceback (most recent call last):
        avalanche_peftcl.errors.CheckpointError: a network asks for a tensor of 1,000,000,000,000 \
entries while it is built, more than a file of this size can fill
    """

    def __init__(self, entries: int, what: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # as above
        self._left, self._what = entries, what

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Count what a function that makes a tensor asks for, then call it."""
        kwargs = kwargs or {}
        names = [argument.name for argument in func._schema.arguments]
        given = dict(zip(names, args, strict=False)) | kwargs
        if asked := _entries(func, given):
            self._left -= max(asked, _LEAST)
            if self._left < 0:
                raise CheckpointError(
                    f"{self._what} asks for a tensor of {asked:,} entries while it is built, more "
                    "than a file of this size can fill"
                )
        return func(*args, **kwargs)


def _entries(func: Any, given: Mapping[str, Any]) -> int:
    """Return how many entries a new tensor would have, 0 if none is made from numbers alone."""
    name = func._schema.name.removeprefix("aten::")
    if name in ("expand", "view", "_unsafe_view", "reshape"):  # no memory of their own
        return 0
    if isinstance(size := given.get("size"), list | tuple):
        return int(prod(size))
    if name == "arange":
        steps = (given["end"] - given.get("start", 0)) / given.get("step", 1)
        return max(0, int(-(-steps // 1)))
    if name in ("linspace", "logspace"):
        return int(given["steps"])
    if name == "eye":
        return int(given["n"] * given.get("m", given["n"]))
    if name == "repeat":
        return int(given["self"].numel() * prod(given["repeats"]))
    return 0
