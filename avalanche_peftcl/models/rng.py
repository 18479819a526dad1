"""The global random generators, taken down and set back."""

import random
from typing import Any

import numpy as np
import torch


def random_state(device: torch.device) -> dict[str, Any]:
    """Return the states of the generators of Python, NumPy and torch.

    Args:
        device: Its generator is included if it has one of its own.

    Example:
        >>> state = random_state(torch.device("cpu"))
        >>> first = random.random(), float(np.random.rand()), float(torch.rand(()))
        >>> set_random_state(state, torch.device("cpu"))
        >>> first == (random.random(), float(np.random.rand()), float(torch.rand(())))
        True
    """
    version, words, gauss = random.getstate()
    numpy: Any = np.random.get_state(legacy=False)
    state = {
        "python": (version, torch.tensor(words), gauss),
        "numpy": numpy | {"state": numpy["state"] | {"key": _words(numpy["state"]["key"])}},
        "torch": torch.get_rng_state(),
    }
    if device.type in ("cuda", "mps"):
        state[device.type] = _of(device).get_rng_state(device)
    return state


def set_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Set the generators to what :func:`random_state` returned."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words.tolist()), gauss))
    numpy = state["numpy"]
    key = np.array(numpy["state"]["key"].tolist(), dtype=np.uint32)
    np.random.set_state(numpy | {"state": numpy["state"] | {"key": key}})
    torch.set_rng_state(state["torch"])
    if device.type in state:
        _of(device).set_rng_state(state[device.type], device)


def _of(device: torch.device) -> Any:
    return torch.cuda if device.type == "cuda" else torch.mps


def _words(key: Any) -> torch.Tensor:
    return torch.tensor(key.tolist())
