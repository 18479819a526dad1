"""Annotations of builders: what they name, and how one says them."""

import functools
import inspect
import types
import typing
from collections.abc import Callable, Mapping
from pathlib import PurePath
from typing import Annotated, Any, Literal

_SIGNS = {"gt": ">", "ge": ">=", "lt": "<", "le": "<=", "multiple_of": "multiple of"}
_SIGNS |= {"min_length": "length >=", "max_length": "length <="}


def resolved(
    builder: Callable[..., Any], parameters: Mapping[str, inspect.Parameter]
) -> dict[str, inspect.Parameter]:
    """Replace annotations written as strings by what they name where the builder is defined.

    Raises:
        NameError: If one names what is not there; whatever else an annotation raises, as it is.
    """
    while isinstance(builder, functools.partial):
        builder = builder.func
    function = builder.__init__ if isinstance(builder, type) else builder  # type: ignore[misc]
    scope = getattr(inspect.unwrap(function), "__globals__", None)
    scope = scope or getattr(type(builder).__call__, "__globals__", {})
    written = {k: p.annotation for k, p in parameters.items() if p.annotation is not p.empty}
    holder = types.SimpleNamespace(__annotations__=written)
    hints = typing.get_type_hints(holder, globalns=scope, include_extras=True)
    return {k: p.replace(annotation=hints.get(k, p.empty)) for k, p in parameters.items()}


def takes_path(annotation: Any) -> bool:
    """Return whether a path is among what ``annotation`` allows.

    Example:
        >>> takes_path(list[PurePath] | None)
        True
    """
    arguments = typing.get_args(annotation)
    return any(map(takes_path, arguments)) or (
        isinstance(annotation, type) and issubclass(annotation, PurePath)
    )


def say_type(annotation: Any) -> str:
    """Write a type as one would say it.

    Example:
        >>> say_type(Literal["a", "b"] | None)
        "'a' | 'b' | None"
    """
    if annotation is inspect.Parameter.empty or annotation is Any:
        return "any"
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        metadata = [m for a in arguments[1:] for m in (getattr(a, "metadata", None) or [a])]
        limits = [
            f"{sign} {value:g}" if isinstance(value, float) else f"{sign} {value}"
            for m in metadata
            for key, sign in _SIGNS.items()
            if (value := getattr(m, key, None)) is not None
        ]
        return say_type(arguments[0]) + (f" ({', '.join(limits)})" if limits else "")
    if origin is Literal:
        return " | ".join(repr(a) for a in arguments)
    if origin in (typing.Union, types.UnionType):
        return " | ".join(say_type(a) for a in arguments)
    if annotation is types.NoneType or annotation is None:
        return "None"
    if annotation is Ellipsis:
        return "..."
    if origin is not None and arguments and isinstance(origin, type):
        return f"{origin.__name__}[{', '.join(say_type(a) for a in arguments)}]"
    return getattr(annotation, "__name__", str(annotation))
