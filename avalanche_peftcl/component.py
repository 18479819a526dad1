"""What a plugin package hands over: a name, a way to build the thing, and its source."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from avalanche_peftcl.errors import ConfigError

_NAME = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")


@dataclass(frozen=True, slots=True)
class Component:
    """One thing that a package offers under a name.

    Args:
        name: Name in lower_snake_case.
        build: Callable that makes the thing, or its import path ``"package.module:attribute"``,
            which is imported at first use, so that offering a component costs no import. Its
            keyword arguments are the options, their annotations the types that are allowed.
        source: Paper or code that it follows.

    Raises:
        ConfigError: If the name is not lower_snake_case or the import path has no attribute.

    Example:
        >>> Component("counter", "collections:Counter", source="Python").load()
        <class 'collections.Counter'>
    """

    name: str
    build: Callable[..., Any] | str
    source: str

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ConfigError(
                f"component name {self.name!r} is not lower_snake_case (letters, digits and "
                "single underscores, starting with a letter)"
            )
        if isinstance(self.build, str) and self.build.count(":") != 1:
            raise ConfigError(
                f"component {self.name!r}: build={self.build!r} is not an import path of the "
                'form "package.module:attribute"'
            )

    def load(self) -> Callable[..., Any]:
        """Return the callable behind ``build``, importing it if it is given as a path."""
        if not isinstance(self.build, str):
            return self.build
        module, _, attribute = self.build.partition(":")
        target: Callable[..., Any] = getattr(import_module(module), attribute)
        return target
