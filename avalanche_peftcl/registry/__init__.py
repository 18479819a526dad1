"""What is installed: components, the hooks that offer them, and the packages they come from."""

from avalanche_peftcl.registry.registry import Registry, discover

__all__ = ["Registry", "discover"]
