"""What a strategy remembers, and how it lies on disk."""

from importlib import import_module
from typing import Any

_PLACES = {
    "script": ("maybe_load_checkpoint", "save_checkpoint"),
    "joints": ("Remembers", "Stateful", "Surroundings"),
    "remembered": ("host_state", "load_host_state", "load_state_of", "state_of"),
}
__all__ = sorted(name for names in _PLACES.values() for name in names)


def __getattr__(name: str) -> Any:
    """Import what is heavy when it is first asked for; a look at a folder needs no Avalanche."""
    for place, names in _PLACES.items():
        if name in names:
            return getattr(import_module(f"avalanche_peftcl.checkpoints.{place}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
