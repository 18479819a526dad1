"""A configuration and what the registry offers, brought together before anything is built."""

import math
from typing import Any

from avalanche_peftcl.config import ComponentConfig, RunConfig
from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.registry import Registry
from avalanche_peftcl.registry.component import SCENARIOS
from avalanche_peftcl.registry.kinds import KINDS
from avalanche_peftcl.registry.wording import show


def components(config: RunConfig) -> list[tuple[str, ComponentConfig]]:
    """Return kind and settings of every component that ``config`` names."""
    found: list[tuple[str, ComponentConfig]] = []
    for kind in KINDS.values():
        asked = getattr(config, kind.key)
        several = asked if isinstance(asked, list) else [] if asked is None else [asked]
        found += [(kind.name, each) for each in several]
    return found


def seed_benchmark(config: RunConfig, registry: Registry) -> RunConfig:
    """Give the benchmark the run's seed if it takes one and has none of its own.

    Raises:
        ConfigError: If ``config`` stands for several runs.
    """
    if config.seeds is not None:
        raise ConfigError(
            f"the configuration names several seeds, {show(config.seeds)}, one run each: use "
            "avalanche_peftcl.sweeps.sweep.run_sweep, or run one of them, config.for_seed(...)"
        )
    options = registry.options("benchmark", config.benchmark.name)
    if "seed" not in options or "seed" in config.benchmark.options:
        return config
    given = config.benchmark.model_dump()
    benchmark = ComponentConfig.model_validate(given | {"seed": config.seed})
    return config.model_copy(update={"benchmark": benchmark})


def check_components(config: RunConfig, registry: Registry) -> None:
    """Refuse wrong names and options before anything is loaded or built.

    Raises:
        ConfigError: A wrong option, or a key that the strategy has no use for.
        UnknownComponentError: A component that nobody offers.
        AmbiguousComponentError: A component that several packages offer.
    """
    for kind, component in components(config):
        registry.schema(kind, component.name).check(component.options)
    schema = registry.schema("strategy", config.strategy.name)
    handed_in = {
        "module": config.module,
        "head": config.head,
        "plugins": config.plugins,
    }
    for key, wanted in handed_in.items():
        if wanted and key not in schema.given:
            raise ConfigError(f"{schema.title} takes no {key}; leave out the key {key!r}")
    scenario = config.benchmark.options.get("scenario")
    for kind, component in components(config):
        served = registry.get(kind, component.name).component.scenarios
        if scenario in SCENARIOS and scenario not in served:
            ways = " or ".join(filter(None, (", ".join(served[:-1]), served[-1])))
            raise ConfigError(
                f"{kind} {component.name!r} cannot serve scenario {scenario!r}; use scenario {ways}"
            )
    if "evaluator" not in schema.given:
        raise ConfigError(f"{schema.title} takes no evaluator, without which no run is measured")


def with_defaults(config: RunConfig, registry: Registry) -> dict[str, Any]:
    """Return ``config`` as plain values, the defaults of the components' options filled in."""

    def filled(kind: str, component: ComponentConfig) -> dict[str, Any]:
        defaults = {
            name: list(option.default) if isinstance(option.default, tuple) else option.default
            for name, option in registry.options(kind, component.name).items()
            if _is_plain(option.default)
        }
        return {"name": component.name} | defaults | component.options

    settings: dict[str, Any] = config.model_dump(mode="json")
    for kind in ("backbone", "module", "head", "benchmark", "strategy"):
        if (component := getattr(config, kind)) is not None:
            settings[kind] = filled(kind, component)
    settings["plugins"] = [filled("strategy_plugin", plugin) for plugin in config.plugins]
    settings["metrics"] = [filled("metric", metric) for metric in config.metrics]
    settings["loggers"] = [filled("logger", logger) for logger in config.loggers]
    return settings


def _is_plain(value: Any) -> bool:
    """Whether a configuration file can hold ``value``."""
    if isinstance(value, tuple | list):
        return all(map(_is_plain, value))
    if isinstance(value, float):
        return math.isfinite(value)
    return value is None or isinstance(value, bool | int | str)
