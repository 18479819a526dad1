"""What a run is made of: each component of a configuration looked up, checked, completed, once."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from avalanche_peftcl.config.run_config import ComponentConfig, RunConfig
from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.registry import Registry
from avalanche_peftcl.registry.component import SCENARIOS
from avalanche_peftcl.registry.kinds import KINDS, Kind, kind_of
from avalanche_peftcl.registry.packages import Entry
from avalanche_peftcl.registry.registry import schema_of
from avalanche_peftcl.registry.schema import Schema
from avalanche_peftcl.registry.wording import show


@dataclass(frozen=True, slots=True)
class Part:
    """One component of a plan; made by :func:`make_plan`.

    Args:
        kind: Its kind.
        asked: Its name and options as the configuration has them.
        entry: The component, and who offers it.
        schema: What its builder takes.
        arguments: The options that were given, checked and converted.
        idle: Options that say nothing in this run, and are in no settings.
    """

    kind: Kind
    asked: ComponentConfig
    entry: Entry
    schema: Schema
    arguments: Mapping[str, Any]
    idle: tuple[str, ...] = ()

    def option(self, name: str) -> Any:
        """Return an option as given, or its default; ``None`` where there is no such option."""
        return self.settings.get(name)

    @property
    def settings(self) -> dict[str, Any]:
        """Name and options as plain values: defaults that a file can hold, and what was given."""
        defaults = {
            name: list(value) if isinstance(value, tuple) else value
            for name, option in self.schema.options.items()
            if name not in self.idle and _is_plain(value := option.default)
        }
        return {"name": self.asked.name} | defaults | self.asked.options

    def build(self, **given: Any) -> Any:
        """Build it and check what was built.

        Args:
            **given: What the run hands in; what is ``None`` is not handed in, and whatever the
                builder does not name is not either.

        Raises:
            ConfigError: The builder needs what is not handed in, raises, or returns what is not of
                its kind.
            PEFTCLError: Whatever else of this kind the builder raises, as it is.
        """
        there = {name: value for name, value in given.items() if value is not None}
        built = self.schema.build(self.arguments, there)
        self.kind.check(built, self.schema.title)
        return built


@dataclass(frozen=True, slots=True)
class Plan:
    """A configuration whose every component is known and fits; made by :func:`make_plan`.

    Args:
        config: The configuration, its benchmark seeded.
        parts: Its components in the order of the kinds, those of one kind in the order given.
    """

    config: RunConfig
    parts: tuple[Part, ...]

    def of(self, kind: str) -> tuple[Part, ...]:
        """Return the components of ``kind``.

        Raises:
            ConfigError: If there is no such kind.
        """
        wanted = kind_of(kind)
        return tuple(part for part in self.parts if part.kind is wanted)

    def build(self, kind: str, **given: Any) -> Any:
        """Return the one component of ``kind``, built; ``None`` where the configuration has none.

        Args:
            kind: Name of the kind.
            **given: What the run hands in, see :meth:`Part.build`.

        Raises:
            ConfigError: See :meth:`Part.build`.
        """
        for part in self.of(kind):
            return part.build(**given)
        return None

    def build_all(self, kind: str, **given: Any) -> list[Any]:
        """Return every component of ``kind``, built, in the order of the configuration."""
        return [part.build(**given) for part in self.of(kind)]

    def head(self, backbone: Any) -> Callable[[int], Any] | None:
        """Return what builds the head for a width of features; ``None`` if there is none.

        Args:
            backbone: The frozen network, for a head that reads more of it than features.
        """
        for part in self.of("head"):
            return lambda in_features: part.build(in_features=in_features, backbone=backbone)
        return None

    @property
    def entries(self) -> list[Entry]:
        """Every component with who offers it, for a record."""
        return [part.entry for part in self.parts]

    @property
    def settings(self) -> dict[str, Any]:
        """The configuration as plain values, the defaults of the options filled in."""
        settings: dict[str, Any] = self.config.model_dump(mode="json")
        for kind in KINDS.values():
            own = [part.settings for part in self.of(kind.name)]
            several = isinstance(settings[kind.key], list)
            settings[kind.key] = own if several else own[0] if own else None
        return settings

    @property
    def scenario(self) -> str | None:
        """What the benchmark will be, where its options or its component say so."""
        (benchmark,) = self.of("benchmark")
        served = benchmark.entry.component.scenarios
        asked = benchmark.option("scenario") or (served[0] if len(served) == 1 else None)
        return asked if asked in SCENARIOS else None

    def with_option(self, kind: str, name: str, value: Any) -> "Plan":
        """Return the plan with one option of the only component of ``kind`` changed.

        Raises:
            ConfigError: If it does not take the option, or not that value.
        """
        (old,) = self.of(kind)
        asked = ComponentConfig.model_validate(old.asked.model_dump() | {name: value})
        new = replace(old, asked=asked, arguments=old.schema.check(asked.options))
        config = self.config.model_copy(update={old.kind.key: asked})
        return Plan(config, tuple(new if part is old else part for part in self.parts))


def make_plan(config: RunConfig, registry: Registry) -> Plan:
    """Look up, check and complete every component of a configuration; nothing is built.

    The benchmark gets the run's seed if it takes one and has none of its own.

    Args:
        config: What to run.
        registry: Components to choose from.

    Returns:
        The plan, from which seeds, settings, record and everything built are taken.

    Raises:
        ConfigError: ``config`` stands for several runs, an option is wrong, the strategy has no use
            for a key, an option has no effect beside the module, or a component does not serve the
            scenario.
        UnknownComponentError: A component that nobody offers.
        AmbiguousComponentError: A component that several packages offer.

    Example:
        >>> from avalanche_peftcl.registry import discover
        >>> config = RunConfig(
        ...     output="runs/a", backbone="vit_glyph", benchmark="digits", strategy="ntk_cl", seed=3
        ... )
        >>> plan = make_plan(config, discover())
        >>> plan.settings["benchmark"]["seed"], plan.scenario
        (3, 'class')
        >>> [entry.component.name for entry in plan.entries]
        ['vit_glyph', 'digits', 'ntk_cl']
    """
    if config.seeds is not None:
        raise ConfigError(
            f"the configuration names several seeds, {show(config.seeds)}, one run each: use "
            "avalanche_peftcl.sweeps.sweep.run_sweep, or run one of them, config.for_seed(...)"
        )
    parts: list[Part] = []
    for kind in KINDS.values():
        asked = getattr(config, kind.key)
        for each in asked if isinstance(asked, list) else [] if asked is None else [asked]:
            entry = registry.get(kind.name, each.name)
            schema = schema_of(entry)
            if kind.name == "benchmark" and "seed" in schema.options:
                each = ComponentConfig.model_validate({"seed": config.seed} | each.model_dump())
                config = config.model_copy(update={kind.key: each})
            parts.append(Part(kind, each, entry, schema, schema.check(each.options)))
    plan = _without_idle(Plan(config, tuple(parts)))
    _check_strategy(plan)
    _check_scenario(plan)
    return plan


def resolved_settings(config: RunConfig, registry: Registry) -> dict[str, Any]:
    """Return a configuration as plain values with the defaults of all options.

    Args:
        config: A run, or several seeds of it; of these the benchmark keeps no seed of its own.
        registry: Components to choose from.

    Raises:
        PEFTCLError: As :func:`make_plan`.
    """
    if config.seeds is None:
        return make_plan(config, registry).settings
    settings = make_plan(config.for_seed(config.seeds[0]), registry).settings
    if "seed" not in config.benchmark.options:
        settings["benchmark"].pop("seed", None)
    settings["output"] = str(config.output)
    return {
        ("seeds" if k == "seed" else k): config.seeds if k == "seed" else v
        for k, v in settings.items()
    }


def _without_idle(plan: Plan) -> Plan:
    """Take out what the strategy says of a module that it does not make; refuse what is asked."""
    (old,) = plan.of("strategy")
    idle, given = old.entry.component.own_module, old.asked.options
    if not (idle and plan.of("module")):
        return plan
    wanted = [
        f"{name}={show(given[name])}"
        for name in idle
        if name in given and old.arguments[name] != old.schema.options[name].default
    ]
    if wanted:
        (module,) = plan.of("module")
        raise ConfigError(
            f"{old.schema.title} makes no module where the run has one, so {' and '.join(wanted)} "
            f"would have no effect: give module {module.asked.name!r} its own options and leave "
            f"these out, or leave out the key 'module'"
        )
    kept = {"name": old.asked.name} | {k: v for k, v in given.items() if k not in idle}
    asked = ComponentConfig.model_validate(kept)
    new = replace(old, asked=asked, arguments=old.schema.check(asked.options), idle=idle)
    config = plan.config.model_copy(update={old.kind.key: asked})
    return Plan(config, tuple(new if part is old else part for part in plan.parts))


def _check_strategy(plan: Plan) -> None:
    """Refuse what the strategy has no use for, and a strategy that cannot be measured."""
    (strategy,) = plan.of("strategy")
    fields = type(plan.config).model_fields
    taken, title = strategy.schema.given, strategy.schema.title
    for part in plan.parts:
        key = part.kind.key
        optional = not fields[key].is_required()
        if optional and key in strategy.kind.given and key not in taken:
            raise ConfigError(f"{title} takes no {key}; leave out the key {key!r}")
    if "evaluator" not in taken:
        raise ConfigError(f"{title} takes no evaluator, without which no run is measured")


def _check_scenario(plan: Plan) -> None:
    if (scenario := plan.scenario) is None:
        return
    for part in plan.parts:
        served = part.entry.component.scenarios
        if scenario not in served:
            ways = " or ".join(filter(None, (", ".join(served[:-1]), served[-1])))
            raise ConfigError(
                f"{part.kind.name} {part.asked.name!r} cannot serve scenario {scenario!r}; use "
                f"scenario {ways}"
            )


def _is_plain(value: Any) -> bool:
    """Whether a configuration file can hold ``value``."""
    if isinstance(value, tuple | list):
        return all(map(_is_plain, value))
    if isinstance(value, float):
        return math.isfinite(value)
    return value is None or isinstance(value, bool | int | str)
