"""Nested plain values and tensors, taken apart into tensors and JSON, and put together again."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from avalanche_peftcl.errors import CheckpointError

Path = tuple[str, ...]
_REACH, _SPARE = 2**12, 2**20  # entries that a tensor may lie spread over: times its own, at least


def pack(state: Any) -> tuple[dict[str, Tensor], Any]:
    """Take ``state`` apart: its tensors, and a tree that JSON can hold.

    Args:
        state: Mappings (keys are text, numbers or ``None``), lists, tuples, sets, numbers, text,
            booleans, ``None`` and tensors, in each other to any depth.

    Returns:
        The tensors by name, contiguous copies on the CPU that share no memory, and the tree. In it
        lists, text, booleans, ``None`` and finite numbers stand for themselves; everything else is
        an object with one tag: ``dict``, ``items`` (a mapping whose keys are not all text),
        ``tuple``, ``set``, ``float`` (``nan``, ``inf``, ``-inf``) or ``tensor`` (a name; with
        ``stride`` unless contiguous, with ``device`` unless it was on the CPU).

    Raises:
        CheckpointError: If ``state`` holds anything else; the message says where.

    Example:
        >>> tensors, tree = pack({"w": torch.tensor([1.0, 2.0]), "steps": (3, float("inf"))})
        >>> tree["dict"]["steps"]
        {'tuple': [3, {'float': 'inf'}]}
        >>> tensors
        {'0 w': tensor([1., 2.])}
        >>> unpack(tensors, tree)
        {'w': tensor([1., 2.]), 'steps': (3, inf)}
    """
    tensors: dict[str, Tensor] = {}
    return tensors, _pack(state, tensors, ())


def unpack(tensors: Mapping[str, Tensor], tree: Any, *, device: str | torch.device = "cpu") -> Any:
    """Put together what :func:`pack` took apart.

    Args:
        tensors: Tensors by name.
        tree: The tree.
        device: Where tensors go that were not on the CPU.

    Returns:
        The state. Mappings come back as ``dict``, in the same order; tensors as copies with the
        strides they had, so that the same operations on them give the same bits; those that lay
        spread over far more memory than their own lie close.

    Raises:
        CheckpointError: If the tree is none that :func:`pack` makes of these tensors.
    """
    try:
        return _unpack(tensors, tree, torch.device(device))
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise CheckpointError(f"the tree does not belong to the tensors: {error!r}") from error


def _pack(value: Any, tensors: dict[str, Tensor], path: Path) -> Any:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str(value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        number = float(value)
        return number if math.isfinite(number) else {"float": str(number)}
    if isinstance(value, Tensor):
        return _pack_tensor(value.detach(), tensors, path)
    if isinstance(value, Mapping):
        if all(isinstance(key, str) for key in value):
            return {"dict": {str(k): _pack(v, tensors, (*path, k)) for k, v in value.items()}}
        pairs = [[_pack_key(k, path), _pack(v, tensors, (*path, str(k)))] for k, v in value.items()]
        return {"items": pairs}
    if isinstance(value, list | tuple | set | frozenset):
        parts = [_pack(v, tensors, (*path, str(i))) for i, v in enumerate(value)]
        if isinstance(value, list):
            return parts
        return {"tuple" if isinstance(value, tuple) else "set": parts}
    raise CheckpointError(
        f"{'.'.join(path) or 'the state'} is a {type(value).__name__}, which no checkpoint can "
        "hold; allowed are mappings, lists, tuples, sets, numbers, text, None and tensors"
    )


def _pack_key(key: Any, path: Path) -> Any:
    if key is None or isinstance(key, bool | int | float | str):
        return _pack(key, {}, path)
    raise CheckpointError(
        f"{'.'.join(path) or 'the state'} has a {type(key).__name__} as key, which no checkpoint "
        "can hold; use text or numbers"
    )


def _pack_tensor(value: Tensor, tensors: dict[str, Tensor], path: Path) -> dict[str, Any]:
    if value.layout != torch.strided or value.is_quantized or value.is_meta:
        raise CheckpointError(
            f"{'.'.join(path) or 'the state'} is a tensor without plain memory, which no "
            "checkpoint can hold"
        )
    name = f"{len(tensors)} {'.'.join(path)}"
    plain = value.resolve_conj().resolve_neg()
    tensors[name] = plain.to("cpu", copy=True).contiguous()
    packed: dict[str, Any] = {"tensor": name}
    if not value.is_contiguous() and _apart(value):
        packed["stride"] = list(value.stride())
    if value.device.type != "cpu":
        packed["device"] = True
    return packed


def _apart(value: Tensor) -> bool:
    """Whether no two entries of ``value`` lie in one place."""
    reach = 0
    for stride, size in sorted(zip(value.stride(), value.shape, strict=True)):
        if size > 1:
            if stride <= reach:
                return False
            reach += stride * (size - 1)
    return True


def _unpack(tensors: Mapping[str, Tensor], tree: Any, device: torch.device) -> Any:
    if isinstance(tree, list):
        return [_unpack(tensors, part, device) for part in tree]
    if not isinstance(tree, dict):
        return tree
    if "tensor" in tree:
        return _unpack_tensor(tensors[tree["tensor"]], tree, device)
    ((tag, inner),) = tree.items()
    if tag == "dict":
        return {key: _unpack(tensors, value, device) for key, value in inner.items()}
    if tag == "items":
        return {
            _unpack(tensors, key, device): _unpack(tensors, value, device) for key, value in inner
        }
    if tag == "tuple":
        return tuple(_unpack(tensors, part, device) for part in inner)
    if tag == "set":
        return {_unpack(tensors, part, device) for part in inner}
    if tag == "float":
        return float(inner)
    raise ValueError(f"unknown tag {tag!r}")


def _unpack_tensor(value: Tensor, tree: Mapping[str, Any], device: torch.device) -> Tensor:
    there = device if tree.get("device") else torch.device("cpu")
    stride = tree.get("stride")
    if stride is None or not _is_near(stride, value):
        return torch.empty(value.shape, dtype=value.dtype, device=there).copy_(value)
    return torch.empty_strided(value.shape, stride, dtype=value.dtype, device=there).copy_(value)


def _is_near(stride: list[int], value: Tensor) -> bool:
    """Whether memory of such strides is not much more than the entries need."""
    reach = sum(step * (size - 1) for step, size in zip(stride, value.shape, strict=True))
    return min(stride, default=0) >= 0 and reach < max(_REACH * value.numel(), _SPARE)
