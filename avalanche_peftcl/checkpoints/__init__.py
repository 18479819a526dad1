"""What a strategy remembers, and how it lies on disk."""

from importlib import import_module
from typing import Any

__all__ = ["maybe_load_checkpoint", "save_checkpoint"]


def __getattr__(name: str) -> Any:
    """Import what is heavy when it is first asked for; a look at a folder needs no Avalanche."""
    if name in __all__:
        return getattr(import_module("avalanche_peftcl.checkpoints.script"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
