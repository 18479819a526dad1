"""Parameter-efficient continual learning for Avalanche."""

from importlib import import_module
from importlib.metadata import version
from typing import Any

from avalanche_peftcl.registry.component import Component
from avalanche_peftcl.registry.costs import Costs
from avalanche_peftcl.registry.hookspecs import hookimpl
from avalanche_peftcl.registry.ranges import Searched
from avalanche_peftcl.registry.takes import takes

__version__ = version("avalanche-peftcl")
__all__ = [
    "NTKCL",
    "PEGP",
    "Component",
    "Costs",
    "PEFTTemplate",
    "Searched",
    "__version__",
    "compare",
    "hookimpl",
    "load",
    "load_run",
    "run",
    "takes",
    "tune",
]

_LAZY = dict.fromkeys(("NTKCL", "PEGP", "PEFTTemplate"), "avalanche_peftcl.training")
_LAZY |= {"load": "avalanche_peftcl.export.load", "run": "avalanche_peftcl.runs.run"}
_LAZY |= {"load_run": "avalanche_peftcl.runs.result", "tune": "avalanche_peftcl.sweeps.tune"}


def __getattr__(name: str) -> Any:
    """Import what is heavy when it is first asked for; Avalanche takes seconds to import."""
    if name == "compare":  # a room that is called like a function
        return import_module("avalanche_peftcl.compare")
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
