"""Parameter-efficient continual learning for Avalanche."""

from importlib.metadata import version

from avalanche_peftcl.component import Component
from avalanche_peftcl.hookspecs import hookimpl

__version__ = version("avalanche-peftcl")
__all__ = ["Component", "__version__", "hookimpl"]
