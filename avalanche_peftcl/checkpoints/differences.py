"""Where two nested values differ, in words."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

_MOST = 5  # differences that one message lists
_ABSENT = object()


def comparable(value: Any) -> Any:
    """Return ``value`` as JSON reads it back, so that what was saved compares equal."""
    return json.loads(json.dumps(value, default=str))


def differences(was: Any, now: Any) -> str:
    """Return the first few keys under which two nested values differ, with what stands there.

    Example:
        >>> differences({"a": 1, "b": [1, 2]}, {"a": 1, "b": [1, 3], "c": 4})
        'b.1 was 2, is 3, c was not there, is 4'
    """
    old, new = dict(leaves(was)), dict(leaves(now))
    keys = [key for key in {**old, **new} if old.get(key, _ABSENT) != new.get(key, _ABSENT)]
    told = [f"{k or 'it'} was {_say(old, k)}, is {_say(new, k)}" for k in keys[:_MOST]]
    more = f" and {len(keys) - _MOST} more" if len(keys) > _MOST else ""
    return ", ".join(told) + more


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield what stands in nested mappings and lists, by its dotted path.

    Example:
        >>> dict(leaves({"a": {"b": [1, 2]}}))
        {'a.b.0': 1, 'a.b.1': 2}
    """
    if isinstance(value, dict | list) and value:
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, inner in items:
            yield from leaves(inner, f"{path}.{key}" if path else str(key))
    else:
        yield path, value


def _say(values: Mapping[str, Any], key: str) -> str:
    text = repr(values[key]) if key in values else "not there"
    return text if len(text) <= 80 else text[:77] + "..."
