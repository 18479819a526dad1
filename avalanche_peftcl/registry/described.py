"""What docstrings say of the options of builders."""

import inspect
import re
from collections.abc import Callable
from typing import Any

_ENTRY = re.compile(r"(\*{0,2}\w+)(?: \([^)]*\))?: ?(.*)")
_FIELD = re.compile(r":param (?:[\w.]+ )?(\w+): ?(.*)")  # as Avalanche writes
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
        for name, told in (*_under_args(text or ""), *_fields(text or "")):
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


def _under_args(text: str) -> list[tuple[str, str]]:
    """Return the entries under ``Args``."""
    head = re.search(r"^Args:[ \t]*\n", text, re.MULTILINE)
    return [] if head is None else _entries(text[head.end() :].splitlines(), _ENTRY, margin=True)


def _fields(text: str) -> list[tuple[str, str]]:
    lines = text.splitlines()
    first = next((i for i, line in enumerate(lines) if _FIELD.match(line.strip())), len(lines))
    return _entries(lines[first:], _FIELD, margin=False)


def _entries(lines: list[str], entry: re.Pattern[str], *, margin: bool) -> list[tuple[str, str]]:
    """Return entries whose further lines stand deeper; with a ``margin`` they end where it does."""
    found: list[tuple[str, str]] = []
    depth = None
    for line in lines:
        if not line.strip():
            continue
        indent = len(line) - len(line.lstrip())
        depth = indent if depth is None else depth
        if margin and (indent == 0 or indent < depth):
            break
        match = entry.match(line.strip()) if indent == depth else None
        if match:
            found.append((match[1], match[2]))
        elif indent > depth and found:
            found[-1] = found[-1][0], f"{found[-1][1]} {line.strip()}"
        elif not margin:
            break
    return found


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
