"""Options that several builders share: written once, taken by each as if they were its own."""

import functools
import inspect
import re
from collections.abc import Callable
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any, TypeVar, get_type_hints

from avalanche_peftcl.errors import ConfigError

_NAME = "options"
_Built = TypeVar("_Built")


def takes(shared: type[Any]) -> Callable[[Callable[..., _Built]], Callable[..., _Built]]:
    """Let a builder take the fields of a dataclass as its own keyword arguments.

    The builder has one keyword-only argument ``options``, which is handed an instance of
    ``shared``. To callers, and to ``peftcl list``, each field stands in its place: annotation,
    default, errors and all; in the docstring the fields' entries follow the builder's own. What one
    builder wants otherwise it says in a subclass of the dataclass: another default, or a value that
    nobody may choose, ``field(default=..., init=False)``. ``vars(options)`` are all values by name.

    Args:
        shared: A dataclass, without slots, whose fields are annotated as options are and described
            under ``Args`` or ``Attributes`` of its docstring or a parent's.

    Returns:
        A decorator for a builder. It raises a :class:`ConfigError` where the builder has no
        keyword-only ``options``, or an argument called like one of the fields.

    Raises:
        ConfigError: If ``shared`` is no dataclass, or an annotation of it cannot be resolved.

    Example:
        >>> from dataclasses import dataclass
        >>> from typing import Annotated
        >>> from pydantic import Field
        >>> @dataclass(frozen=True, kw_only=True)
        ... class TrainingOptions:
        ...     lr: Annotated[float, Field(gt=0)] = 0.1
        ...     train_epochs: Annotated[int, Field(ge=1)] = 5
        >>> @dataclass(frozen=True, kw_only=True)
        ... class SlowOptions(TrainingOptions):
        ...     train_epochs: Annotated[int, Field(ge=1)] = 50
        >>> @takes(SlowOptions)
        ... def build_slowly(*, backbone, options: SlowOptions, r: int = 4):
        ...     return backbone, r, vars(options)
        >>> build_slowly(backbone="vit", lr=0.2)
        ('vit', 4, {'lr': 0.2, 'train_epochs': 50})
        >>> from avalanche_peftcl.registry.schema import Schema
        >>> Schema.of(build_slowly, given=frozenset({"backbone"}), title="it").describe()
        [('lr', 'float (> 0)', '0.1'), ('train_epochs', 'int (>= 1)', '50'), ('r', 'int', '4')]
    """
    if not (isinstance(shared, type) and is_dataclass(shared)):
        raise ConfigError(f"takes() needs a dataclass of options, got {shared!r}")
    try:
        types = get_type_hints(shared, include_extras=True)
    except NameError as error:
        raise ConfigError(f"the annotations of {shared.__name__} name what is not there") from error
    parameters = [_parameter(field, types[field.name]) for field in fields(shared) if field.init]
    fixed = {f.name: f.default for f in fields(shared) if not f.init and f.default is not MISSING}
    names = [parameter.name for parameter in parameters]

    def decorate(build: Callable[..., _Built]) -> Callable[..., _Built]:
        own = inspect.signature(build)
        signature = own.replace(parameters=_flat(build, own, parameters))

        @functools.wraps(build)
        def taking(*args: Any, **kwargs: Any) -> _Built:
            signature.bind(*args, **kwargs)  # says what is missing or unknown in Python's words
            options = shared(**{k: v for k, v in kwargs.items() if k in names})
            vars(options).update(fixed)  # else they are attributes of the class alone
            mine = {k: v for k, v in kwargs.items() if k not in names}
            return build(*args, options=options, **mine)

        taking.__doc__ = _document(build, shared, names)
        taking.__signature__ = signature  # type: ignore[attr-defined]  # what inspect looks for
        taking.__annotations__ = {
            name: p.annotation
            for name, p in signature.parameters.items()
            if p.annotation is not p.empty
        }
        return taking

    return decorate


def _parameter(field: "Field[Any]", annotation: Any) -> inspect.Parameter:
    default = field.default
    if field.default_factory is not MISSING:
        default = field.default_factory()
    return inspect.Parameter(
        field.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=inspect.Parameter.empty if default is MISSING else default,
        annotation=annotation,
    )


def _flat(
    build: Callable[..., Any], own: inspect.Signature, parameters: list[inspect.Parameter]
) -> list[inspect.Parameter]:
    """Return the arguments of ``build`` with ``parameters`` in the place of ``options``."""
    title = getattr(build, "__qualname__", repr(build))
    place = own.parameters.get(_NAME)
    if place is None or place.kind is not place.KEYWORD_ONLY:
        raise ConfigError(f"{title} takes no keyword-only argument {_NAME!r}; give it one")
    twice = [p.name for p in parameters if p.name in own.parameters]
    if twice:
        raise ConfigError(
            f"{title} has arguments of its own that its options hold too: {', '.join(twice)}; to "
            "change a default, subclass the dataclass"
        )
    flat: list[inspect.Parameter] = []
    for parameter in own.parameters.values():
        flat += parameters if parameter is place else [parameter]
    return flat


def _document(build: Callable[..., Any], shared: type[Any], names: list[str]) -> str | None:
    """Return the builder's docstring, what it does not say of ``names`` added to its ``Args``."""
    text = build.__doc__
    margin, own = _entries(text)
    if text is None:
        return text
    described: dict[str, str] = {}
    for each in reversed(shared.__mro__):
        theirs, entries = _entries(each.__doc__)
        described |= {k: entry.replace(theirs, margin or theirs) for k, entry in entries.items()}
    shown = {name: entry for name, entry in own.items() if name != _NAME}
    shown |= {name: described[name] for name in names if name in described and name not in own}
    if own:
        return text.replace("".join(own.values()), "".join(shown.values()))
    told = inspect.cleandoc("\n" + "".join(shown.values())).replace("\n", "\n    ")
    return f"{inspect.cleandoc(text)}\n\nArgs:\n    {told}\n" if shown else text


def _entries(text: str | None) -> tuple[str, dict[str, str]]:
    """Return the entries under ``Args`` (``Attributes``) by name, and the margin they stand at."""
    head = re.search(r"^( *)(?:Args|Attributes):\n", text or "", re.MULTILINE)
    if text is None or head is None:
        return "", {}
    margin, found, at = head[1] + "    ", dict[str, str](), head.end()
    entry = re.compile(rf"{margin}(\w+): .*\n(?:{margin} +.*\n)*")
    while match := entry.match(text, at):
        found[match[1]], at = match[0], match.end()
    return margin, found
