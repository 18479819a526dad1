"""What docstrings say of the options of builders."""

import inspect
import re
from collections.abc import Callable
from typing import Any

from docstring_parser import DocstringStyle, ParseError, parse

_FIELD = re.compile(r"^\s*:param ", re.MULTILINE)  # as Avalanche writes
_ROLE = re.compile(r":(?:\w+:)?\w+:`~?\.*([^`]*)`")
_TITLED = re.compile(r"([^`]*?) ?<[^`]*>")


def descriptions(builder: Callable[..., Any]) -> dict[str, str]:
    """Return by name what the docstring of a builder says of its arguments, in one line each.

    Read are entries under ``Args:``, as Google writes them, and ``:param name:``; of a class the
    docstrings of the class and of its ``__init__``. What a function does not say the class says
    that it returns.

    Args:
        builder: A function or class.

    Example:
        >>> def build(*, r: int = 4, **options):
        ...     '''Build it.
        ...
        ...     Args:
        ...         r: Width :math:`R` of the bottleneck, of
        ...             ``D``; see :class:`~a.b.Adapter`.
        ...         **options: All others.
        ...     '''
        >>> descriptions(build)
        {'r': 'Width R of the bottleneck, of D; see Adapter.', '**options': 'All others.'}
    """
    found: dict[str, str] = {}
    for text in map(inspect.getdoc, _speaking(builder)):
        for name, told in _arguments(text or ""):
            found.setdefault(name, _readable(told))
    return found


def _speaking(builder: Any) -> list[Any]:
    """Return what has docstrings to read, the first first."""
    if isinstance(builder, type):
        return [builder, builder.__init__]  # type: ignore[misc]  # of exactly this class
    function = inspect.unwrap(builder)
    returned = getattr(function, "__annotations__", {}).get("return")
    if isinstance(returned, str):
        returned = getattr(function, "__globals__", {}).get(returned)
    return [builder, *(_speaking(returned) if isinstance(returned, type) else [])]


def _arguments(text: str) -> list[tuple[str, str]]:
    """Return name and description of each argument, not of attributes."""
    style = DocstringStyle.GOOGLE
    if _FIELD.search(text):  # what stands in paragraphs of their own is part of no argument
        style = DocstringStyle.REST
        text = "\n".join(part for part in re.split(r"\n\s*\n", text) if _FIELD.search(part))
    try:
        entries = parse(text, style=style).params
    except ParseError:  # anybody's docstring
        return []
    return [(e.arg_name, e.description or "") for e in entries if e.args[0] == "param"]


def _readable(text: str) -> str:
    """Return text without the marks that only a page of documentation needs."""
    text = _ROLE.sub(lambda match: _short(match[0], match[1]), " ".join(text.split()))
    return text.replace("``", "")


def _short(role: str, text: str) -> str:
    """Return what a reader sees of a role: of a path its last part, of mathematics its letters."""
    if ":math:" in role:
        return text.replace("\\", "")
    if titled := _TITLED.fullmatch(text):
        return titled[1]
    return text.rsplit(".", 1)[-1] if role.partition("`")[2].startswith(("~", ".")) else text
