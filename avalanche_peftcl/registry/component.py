"""What a plugin package hands over: a name, a way to build the thing, and its source."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal, get_args

from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.registry.costs import Costs
from avalanche_peftcl.registry.wording import join, show

_PATH = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")
Scenario = Literal["class", "task", "domain", "online"]
SCENARIOS: tuple[Scenario, ...] = get_args(Scenario)
_DISTRIBUTION = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")
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
        scenarios: Scenarios that it serves; a run in another is refused before anything is loaded.
        libraries: Names of further distributions that it computes with, such as ``"scipy"``. A run
            records their versions, where they are installed, and goes on with the same ones only;
            the one that offers it, torch, timm and peft are recorded in any case.
        own_module: Of a strategy, options that say which module it makes where the run has none.
            Beside a module they are refused, but for their defaults, and not recorded.
        costs: Of a strategy, passes and floats, see :class:`Costs`; ``None`` where it does not say.

    Raises:
        ConfigError: If the name is not lower_snake_case, ``build`` neither a callable nor an import
            path of that form, the source no text, a scenario none of the four, a library no name of
            a distribution, an option of ``own_module`` no text, or the costs no :class:`Costs`.

    Example:
        >>> Component("counter", "collections:Counter", source="Python").load()
        <class 'collections.Counter'>
    """

    name: str
    build: Callable[..., Any] | str
    source: str
    scenarios: tuple[Scenario, ...] = SCENARIOS
    libraries: tuple[str, ...] = ()
    own_module: tuple[str, ...] = ()
    costs: Costs | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not _NAME.fullmatch(self.name):
            raise ConfigError(
                f"component name {show(self.name)} is not lower_snake_case (letters, digits and "
                "single underscores, starting with a letter)"
            )
        if isinstance(self.build, str):
            if not _PATH.fullmatch(self.build):
                raise ConfigError(
                    f"component {self.name!r}: build={show(self.build)} is not an import path of "
                    'the form "package.module:attribute"'
                )
        elif not callable(self.build):
            raise ConfigError(
                f"component {self.name!r}: build={show(self.build)} is neither a callable nor an "
                "import path"
            )
        if not isinstance(self.source, str):
            raise ConfigError(
                f"component {self.name!r}: source={show(self.source)} is no text; name the paper "
                "or code that it follows"
            )
        served = self.scenarios
        if not isinstance(served, tuple) or not served or any(s not in SCENARIOS for s in served):
            raise ConfigError(
                f"component {self.name!r}: scenarios={show(served)} is not a tuple of some of "
                f"{join(map(repr, SCENARIOS))}"
            )
        named = self.libraries
        if not isinstance(named, tuple) or not all(
            isinstance(each, str) and _DISTRIBUTION.fullmatch(each) for each in named
        ):
            raise ConfigError(
                f"component {self.name!r}: libraries={show(named)} is not a tuple of names of "
                'distributions, such as ("scipy",)'
            )
        own = self.own_module
        if not isinstance(own, tuple) or not all(isinstance(each, str) for each in own):
            raise ConfigError(
                f"component {self.name!r}: own_module={show(own)} is not a tuple of names of "
                "options"
            )
        if not isinstance(self.costs, Costs | None):
            raise ConfigError(
                f"component {self.name!r}: costs={show(self.costs)} is no Costs(...) of "
                "avalanche_peftcl"
            )

    def load(self) -> Callable[..., Any]:
        """Return the callable behind ``build``, importing it if it is given as a path."""
        if not isinstance(self.build, str):
            return self.build
        module, _, attribute = self.build.partition(":")
        target: Callable[..., Any] = getattr(import_module(module), attribute)
        return target
