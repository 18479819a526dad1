"""Where options are searched: ranges from annotations or as they were asked for, and points."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, get_args, get_origin

from scipy.stats import qmc

from avalanche_peftcl.config.plan import Part, Plan
from avalanche_peftcl.config.yaml_text import parse_yaml
from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.registry.ranges import Searched
from avalanche_peftcl.registry.wording import did_you_mean, join, show

_KINDS = ("strategy", "module", "head", "strategy_plugin")  # what a method is made of
_RANGE = re.compile(r"\s*([^\s.]*(?:\.[^\s.]+)?)\s*\.\.\s*(\S+)\s*")
_BY_RATIOS = 10.0  # from this quotient of the ends on a range is searched by ratios
_MOST = 1000  # trials


@dataclass(frozen=True, slots=True)
class Range:
    """Numbers between two ends, which belong to it.

    Args:
        low: The smallest.
        high: The largest.
        log: Whether equal ratios are equally likely, not equal differences.
        whole: Whether they are whole numbers.

    Example:
        >>> Range(0.01, 1.0, log=True).at(0.5), Range(2, 5, whole=True).at(0.99)
        (0.1, 5)
    """

    low: float
    high: float
    log: bool = False
    whole: bool = False

    def at(self, share: float) -> float | int:
        """Return the number at a share from 0 to 1, of three digits."""
        low, high = (self.low, self.high) if not self.whole else (self.low - 0.5, self.high + 0.5)
        if self.log:
            value = math.exp(math.log(low) + share * (math.log(high) - math.log(low)))
        else:
            value = low + share * (high - low)
        if self.whole:
            return int(min(max(round(value), self.low), self.high))
        return min(max(float(f"{value:.3g}"), self.low), self.high)

    def __str__(self) -> str:
        low, high = (f"{int(v)}" if self.whole else f"{v:g}" for v in (self.low, self.high))
        return f"{low} to {high}" + (", log" if self.log else "")


@dataclass(frozen=True, slots=True)
class Choice:
    """Some values.

    Example:
        >>> Choice(("a", "b")).at(0.7), str(Choice((True, False)))
        ('b', 'true, false')
    """

    values: tuple[Any, ...]

    def at(self, share: float) -> Any:
        """Return the value at a share from 0 to 1."""
        return self.values[min(int(share * len(self.values)), len(self.values) - 1)]

    def __str__(self) -> str:
        return ", ".join(str(v).lower() if isinstance(v, bool) else str(v) for v in self.values)


Space = Mapping[str, Range | Choice]


def search_space(plan: Plan, asked: Sequence[str]) -> Space:
    """Return what is searched of a configuration, by option.

    Args:
        plan: The configuration.
        asked: ``"strategy.lr"`` searches the range of its annotation, around the value that is
            there; ``"strategy.lr=1e-3..0.1"`` between two numbers, by ratios where the larger is at
            least ten times the smaller; ``"head.temperature=[1, 10]"`` among values. None: every
            option of strategy, module, head and plugins that is annotated with
            :class:`.Searched` and not 0.

    Raises:
        ConfigError: If an option is not there, has no range, or cannot have a value.

    Example:
        >>> from avalanche_peftcl.config import RunConfig
        >>> from avalanche_peftcl.config.plan import make_plan
        >>> from avalanche_peftcl.registry import discover
        >>> parts = {"backbone": "vit_glyph", "benchmark": "digits", "strategy": "pegp"}
        >>> plan = make_plan(RunConfig(output="runs/a", **parts), discover())
        >>> {key: str(value) for key, value in search_space(plan, ["strategy.lr"]).items()}
        {'strategy.lr': '0.00028125 to 0.028125, log'}
    """
    options = _options(plan)
    if asked:
        space = dict(_asked(each, options) for each in asked)
        if len(space) < len(asked):
            raise ConfigError(f"an option is named twice: {join(asked)}")
        return space
    found = {key: _annotated(*where) for key, where in options.items()}
    space = {key: value for key, value in found.items() if value is not None}
    if not space:
        raise ConfigError(
            f"there is nothing to search: no option of {join(_titles(plan))} is annotated with "
            "Searched and has a value above 0; name one, such as --search strategy.NAME=LOW..HIGH"
        )
    return space


def points(space: Space, trials: int, seed: int) -> list[dict[str, Any]]:
    """Return the values of each trial but the first, which has those that are there.

    They are a scrambled Halton sequence: further trials change none of those before, and none
    depends on what others gave, on their number at a time, or on an interruption.

    Source:
        Halton, "On the efficiency of certain quasi-random sequences", 1960; scrambled as
        ``scipy.stats.qmc.Halton``.

    Raises:
        ConfigError: If there are too many or none.

    Example:
        >>> space = {"strategy.lr": Range(0.01, 1.0, log=True)}
        >>> points(space, 3, 0) == points(space, 5, 0)[:2]
        True
    """
    if not 1 <= trials <= _MOST:
        raise ConfigError(f"trials={show(trials)} is not from 1 to {_MOST}")
    shares = qmc.Halton(len(space), rng=seed).random(trials - 1)
    return [
        {
            key: where.at(float(share))
            for (key, where), share in zip(space.items(), row, strict=True)
        }
        for row in shares
    ]


def _options(plan: Plan) -> dict[str, tuple[Part, str]]:
    """Return every option of the method by its key in the configuration."""
    found = {}
    for kind in _KINDS:
        for index, part in enumerate(plan.of(kind)):
            several = part.kind.key == "plugins"
            where = f"{part.kind.key}.{index}" if several else part.kind.key
            for name in part.schema.options:
                if name not in part.idle:
                    found[f"{where}.{name}"] = part, name
    return found


def _titles(plan: Plan) -> list[str]:
    return [part.schema.title for kind in _KINDS for part in plan.of(kind)]


def _asked(text: str, options: Mapping[str, tuple[Part, str]]) -> tuple[str, Range | Choice]:
    key, given, said = (part.strip() for part in text.partition("="))
    if key not in options:
        near = did_you_mean(key, options)
        raise ConfigError(
            f"there is no option {show(key)} to search{near}; there are {join(options)}"
        )
    part, name = options[key]
    if not given:
        found = _annotated(part, name)
        if found is None:
            raise ConfigError(
                f"nothing says where to search {key}, which is {show(part.option(name))}; give "
                f"{key}=LOW..HIGH or {key}=[A, B]"
            )
        return key, found
    where = _range(said, f"{key}={said}") if ".." in said else _choice(said, f"{key}={said}")
    ends = where.values if isinstance(where, Choice) else (where.at(0.0), where.at(1.0))
    for value in ends:
        part.schema.check(part.asked.options | {name: value})
    return key, where


def _range(said: str, title: str) -> Range:
    found = _RANGE.fullmatch(said)
    ends = [parse_yaml(end, title) for end in found.groups()] if found else []
    numbers = [end for end in ends if isinstance(end, int | float) and not isinstance(end, bool)]
    if len(numbers) != 2 or not numbers[0] < numbers[1]:
        raise ConfigError(f"{title} is not LOW..HIGH with two numbers, such as 1e-3..0.1")
    low, high = numbers
    log = low > 0 and high / low >= _BY_RATIOS
    return Range(low, high, log=log, whole=all(isinstance(end, int) for end in numbers))


def _choice(said: str, title: str) -> Choice:
    values = parse_yaml(said, title)
    if not isinstance(values, list) or len(values) < 2:
        raise ConfigError(f"{title} is neither LOW..HIGH nor a list of values, such as [4, 8, 16]")
    return Choice(tuple(values))


def _annotated(part: Part, name: str) -> Range | None:
    """Return the range that the annotation of an option gives around its value."""
    value, marks = part.option(name), _marks(part.schema.options[name].annotation)
    numeric = isinstance(value, int | float) and not isinstance(value, bool)
    if not marks or not numeric or value <= 0:
        return None
    factor = marks[0].factor
    return Range(float(f"{value / factor:.6g}"), float(f"{value * factor:.6g}"), log=True)


def _marks(annotation: Any) -> list[Searched]:
    if get_origin(annotation) is Annotated:
        inner, *metadata = get_args(annotation)
        return [m for m in metadata if isinstance(m, Searched)] + _marks(inner)
    return [mark for inner in get_args(annotation) for mark in _marks(inner)]
