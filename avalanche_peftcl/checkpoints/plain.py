"""What a checkpoint can hold: plain values and tensors, in each other to any depth."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from avalanche_peftcl.errors import CheckpointError

Path = tuple[str, ...]
_BITS = 2000  # of a whole number; torch.load reads no longer ones
_SPREAD, _SPARE = 16, 2**20  # entries that a tensor may lie spread over: times its own, at least


def plain_state(state: Any) -> Any:
    """Return ``state`` as it comes back from a file.

    Args:
        state: Mappings, lists, tuples, sets, numbers, text, booleans, ``None`` and tensors, in each
            other to any depth. Keys are text, numbers, booleans, ``None`` or tuples of these.

    Returns:
        The same in new containers: of mappings a ``dict`` in the same order, of subclasses the
        plain kind. No two tensors share memory, and none keeps memory beyond its own; they have the
        strides they had, so that the same operations on them give the same bits, unless entries
        overlap or lie far apart. What can be as it is is not copied.

    Raises:
        CheckpointError: If ``state`` holds anything else; the message says where.

    Example:
        >>> plain_state({"w": torch.zeros(2, requires_grad=True), "steps": (3, {1: None})})
        {'w': tensor([0., 0.]), 'steps': (3, {1: None})}
    """
    try:
        return _plain(state, (), set())
    except RecursionError:
        raise CheckpointError("the state is nested too deeply, or holds itself") from None


def check_plain(state: Any, *, most: int) -> Any:
    """Return ``state`` as read, its tensors detached.

    Args:
        state: What was read from a file.
        most: Bytes that its tensors may have together.

    Raises:
        ValueError: If :func:`plain_state` returns nothing such.
    """
    room = most

    def take(value: Tensor) -> Tensor:
        nonlocal room
        room -= value.numel() * value.element_size()
        held = value.untyped_storage().nbytes() // value.element_size()
        if room < 0 or (value.numel() and value.storage_offset() + _reach(value) >= held):
            raise ValueError("a tensor has more entries than are in the file")
        return value.detach()

    return _checked(state, take)


def _checked(value: Any, take: Callable[[Tensor], Tensor]) -> Any:
    kind = type(value)
    if value is None or kind in (bool, int, float, str):
        return value
    if kind is Tensor and value.layout == torch.strided:
        return take(value)
    if kind is dict:
        return {_key(key): _checked(inner, take) for key, inner in value.items()}
    if kind in (list, tuple, set):
        return kind(_checked(inner, take) for inner in value)
    raise ValueError(f"it holds a {kind.__name__}")


def _plain(value: Any, path: Path, held: set[int]) -> Any:
    if value is None or isinstance(value, bool | str | int | float):
        return _scalar(value, path)
    if isinstance(value, Tensor):
        return _tensor(value, path, held)
    if isinstance(value, Mapping):
        try:
            return {_key(k): _plain(v, (*path, str(k)), held) for k, v in value.items()}
        except TypeError as error:
            raise CheckpointError(
                f"{_named(path)} has {error} as key, use text or numbers"
            ) from None
    if isinstance(value, list | tuple | set | frozenset):
        parts = [_plain(v, (*path, str(i)), held) for i, v in enumerate(value)]
        if isinstance(value, list):
            return parts
        return tuple(parts) if isinstance(value, tuple) else set(parts)
    raise CheckpointError(
        f"{_named(path)} is a {type(value).__name__}, which no checkpoint can hold; allowed are "
        "mappings, lists, tuples, sets, numbers, text, None and tensors"
    )


def _scalar(value: Any, path: Path) -> Any:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str(value)
    if isinstance(value, float):
        return float(value)
    if value.bit_length() > _BITS:
        raise CheckpointError(
            f"{_named(path)} is a number of {value.bit_length()} bits, which no checkpoint can "
            f"hold; the most are {_BITS}"
        )
    return int(value)


def _key(key: Any) -> Any:
    """Return a key as it comes back; raise ``TypeError`` with its type if it does not."""
    if isinstance(key, tuple):
        return tuple(map(_key, key))
    if key is None or isinstance(key, bool | str | int | float):
        return _scalar(key, ("a key",))
    raise TypeError(f"a {type(key).__name__}")


def _tensor(value: Tensor, path: Path, held: set[int]) -> Tensor:
    value = value.detach()
    plain = type(value) is Tensor and value.layout == torch.strided and not value.is_quantized
    if not plain or value.is_meta:
        raise CheckpointError(
            f"{_named(path)} is a tensor without plain memory, which no checkpoint can hold"
        )
    if not value.numel():
        return torch.empty(value.shape, dtype=value.dtype, device=value.device)
    value = value.resolve_conj().resolve_neg()
    memory, apart = value.untyped_storage(), _apart(value)
    whole = memory.nbytes() == value.numel() * value.element_size()
    if whole and apart and memory.data_ptr() not in held:
        held.add(memory.data_ptr())
        return value
    reach = _reach(value)
    if not apart or reach >= max(_SPREAD * value.numel(), _SPARE):
        return value.clone(memory_format=torch.contiguous_format)
    new = torch.zeros(reach + 1, dtype=value.dtype, device=value.device)
    return new.as_strided(value.shape, value.stride()).copy_(value)


def _apart(value: Tensor) -> bool:
    """Whether no two entries of ``value`` lie in one place."""
    reach = 0
    for stride, size in sorted(zip(value.stride(), value.shape, strict=True)):
        if size > 1:
            if stride <= reach:
                return False
            reach += stride * (size - 1)
    return True


def _reach(value: Tensor) -> int:
    """Return how far behind the first entry of ``value`` the last one lies."""
    return sum(step * (size - 1) for step, size in zip(value.stride(), value.shape, strict=True))


def _named(path: Path) -> str:
    return ".".join(path) or "the state"
