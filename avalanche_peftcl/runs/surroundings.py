"""What holds while a run runs: seeds, threads, determinism, one-line messages."""

import os
import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from avalanche_peftcl.errors import DataError
from avalanche_peftcl.models.rng import random_state, set_random_state


def seed_all(seed: int) -> None:
    """Seed the global random generators of Python, NumPy and torch."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


@contextmanager
def controlled(seed: int, device: torch.device, threads: int | None) -> Iterator[None]:
    """Seed the global generators, set threads and determinism; put all back in the end."""
    if device.type == "cuda":  # read once, when CUDA starts; needed for the same numbers twice
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    generators, before = random_state(device), torch.get_num_threads()
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    with warnings.catch_warnings():
        warnings.showwarning = _without_deprecations(warnings.showwarning)
        try:
            seed_all(seed)
            torch.set_num_threads(threads or before)
            torch.use_deterministic_algorithms(True, warn_only=True)
            yield
        finally:
            set_random_state(generators, device)
            torch.set_num_threads(before)
            torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)


def _without_deprecations(show: Any) -> Any:
    """Drop what the host says to itself about its next version; it overrides filters for that."""

    def filtered(message: Any, category: Any, filename: str, *more: Any, **named: Any) -> None:
        if category is not DeprecationWarning or "avalanche" not in Path(filename).parts:
            show(message, category, filename, *more, **named)

    return filtered


@contextmanager
def plain_data_errors() -> Iterator[None]:
    """Take the traceback out of the message of an error from a process that loads images."""
    try:
        yield
    except DataError as error:
        text, mark = str(error), f"\n{DataError.__module__}.{DataError.__qualname__}: "
        if mark not in text:
            raise
        raise DataError(text.rpartition(mark)[2].strip()) from error
