"""What holds while a run runs: seeds, precision, threads, determinism, one-line messages."""

import os
import random
import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from avalanche_peftcl.config import ComponentConfig, RunConfig
from avalanche_peftcl.errors import DataError
from avalanche_peftcl.models.precision import WORDS, resolve_precision
from avalanche_peftcl.registry import Registry
from avalanche_peftcl.runs.schema import read_metrics
from avalanche_peftcl.training.rng import random_state, set_random_state


def seed_all(seed: int) -> None:
    """Seed the global random generators of Python, NumPy and torch."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def settle_precision(
    config: RunConfig, registry: Registry, *, device: torch.device | None, resume: bool
) -> RunConfig:
    """Put what it means in the place of ``mixed_precision: auto``, for the record and for good.

    Args:
        config: What to run, its options checked.
        registry: Components to choose from.
        device: Where to compute; ``None`` leaves what the record does not say.
        resume: Whether a run keeps the precision that the record in its output folder states,
            whatever units there are here.
    """
    option = registry.options("strategy", config.strategy.name).get("mixed_precision")
    asked = config.strategy.options.get("mixed_precision", option.default if option else None)
    if asked != "auto":
        return config
    metrics = (read_metrics(config.output) if resume else None) or {}
    try:
        found = metrics["config"]["strategy"]["mixed_precision"]
    except (KeyError, TypeError):
        found = None
    if found not in WORDS:
        if device is None:
            return config
        found = resolve_precision("auto", device)
    given = config.strategy.model_dump()
    strategy = ComponentConfig.model_validate(given | {"mixed_precision": found})
    return config.model_copy(update={"strategy": strategy})


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


def how_to_stop() -> str | None:
    """Say how this process is stopped where an interrupt does not; else return ``None``.

    A shell starts the background jobs of a script with interrupts ignored, so that Ctrl-C reaches
    the script alone; Python and every process started from here keep to that.
    """
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
        return None
    return (
        "interrupts are ignored, as in every background job of a script; kill "
        f"{os.getpid()} stops this one"
    )


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
