"""The kinds of component, each declared once; every list of kinds is read from here."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.registry.wording import did_you_mean, join, show

_CALLBACKS = ("before_", "after_")


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of component.

    A new kind is a hook in :mod:`.hookspecs`, an entry of :data:`KINDS` and a contract in
    :mod:`avalanche_peftcl.testing`. To be named in configurations it also needs its key in
    ``RunConfig``, and its turn in :mod:`avalanche_peftcl.runs.build`.

    Args:
        name: Its name in messages, in records and for ``peftcl list``.
        hook: Name of the hook that offers it.
        key: Key of a configuration under which it stands.
        what: What its builders return, in words, without an article.
        fits: Whether a thing may be one, asked of what a builder returned.
        given: Keyword arguments that a run hands to its builders; never options.
        watches: Whether it looks on, so that training and predictions are the same without it.
    """

    name: str
    hook: str
    key: str
    what: str
    fits: Callable[[Any], bool]
    given: frozenset[str] = frozenset()
    watches: bool = False

    def check(self, part: Any, title: str) -> None:
        """Refuse what is not of this kind, before anything is trained.

        Args:
            part: What a builder returned.
            title: Name of the component with its package.

        Raises:
            ConfigError: With what was returned.

        Example:
            >>> KINDS["logger"].check(3, "logger 'x' of a 1.0")
            Traceback (most recent call last):
            avalanche_peftcl.errors.ConfigError: logger 'x' of a 1.0 built 3, which is no ...
        """
        if not self.fits(part):
            raise ConfigError(
                f"{title} built {show(part)}, which is no {self.what}, as its hook {self.hook} asks"
            )


def _has(*names: str) -> Callable[[Any], bool]:
    return lambda part: all(hasattr(part, name) for name in names)


def _listens(part: Any) -> bool:
    return any(name.startswith(_CALLBACKS) for name in dir(part))


def _measures(part: Any) -> bool:
    metrics = part if isinstance(part, list | tuple) else [part]
    return bool(metrics) and all(map(_has("result", "reset"), metrics))


_is_module = _has("parameters", "state_dict")

KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind("backbone", "peftcl_backbones", "backbone", "module of torch", _is_module),
        Kind(
            "module",
            "peftcl_modules",
            "module",
            "module of torch",
            _is_module,
            given=frozenset({"backbone"}),
        ),
        Kind(
            "head",
            "peftcl_heads",
            "head",
            "head (avalanche_peftcl.models.Head)",
            _has("parameters", "state_dict", "grow", "forward"),
            given=frozenset({"in_features", "backbone"}),
        ),
        Kind(
            "benchmark",
            "peftcl_benchmarks",
            "benchmark",
            "Avalanche benchmark",
            _has("train_stream", "test_stream"),
            given=frozenset({"input_config", "backbone"}),
        ),
        Kind(
            "strategy",
            "peftcl_strategies",
            "strategy",
            "Avalanche strategy",
            _has("train", "eval", "model", "plugins"),
            given=frozenset({"backbone", "module", "head", "device", "plugins", "evaluator"}),
        ),
        Kind("strategy_plugin", "peftcl_strategy_plugins", "plugins", "Avalanche plugin", _listens),
        Kind(
            "metric",
            "peftcl_metrics",
            "metrics",
            "Avalanche plugin metric and no list of them",
            _measures,
            watches=True,
        ),
        Kind(
            "logger",
            "peftcl_loggers",
            "loggers",
            "Avalanche logger",
            _has("log_single_metric"),
            given=frozenset({"output", "resume", "settings", "listed"}),
            watches=True,
        ),
    )
}


_SPELLINGS = {name: name for name in KINDS}
_SPELLINGS |= {kind.hook.removeprefix("peftcl_"): name for name, kind in KINDS.items()}
_SPELLINGS |= {"plugin": "strategy_plugin", "plugins": "strategy_plugin"}  # as configurations say


def kind_of(name: str) -> Kind:
    """Return the kind of that name, in the singular or plural, or as configurations call it.

    Raises:
        ConfigError: If there is none.

    Example:
        >>> kind_of("strategies").name, kind_of("plugins").name
        ('strategy', 'strategy_plugin')
        >>> kind_of("strategie")
        Traceback (most recent call last):
        avalanche_peftcl.errors.ConfigError: unknown kind 'strategie' (did you mean 'strategy'?)...
    """
    name = _SPELLINGS.get(name.replace("-", "_"), name)
    if name not in KINDS:
        raise ConfigError(
            f"unknown kind {name!r}{did_you_mean(name, KINDS)}; the kinds are {join(KINDS)}"
        )
    return KINDS[name]
