"""YAML as settings need it: plain values only, and nothing that two readers read differently.

YAML 1.1, which most tools in Python read, and YAML 1.2, whose core schema is close to JSON, differ:
``010`` is 8 or 10, ``1:30`` is 90 or text, ``yes`` is true or text. Such text is refused with both
readings. ``1e-3`` is a number, as everywhere but in YAML 1.1.
"""

import datetime
import re
from collections.abc import Mapping
from typing import Any

import yaml

from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.registry.wording import clip, show

MAX_VALUES = 100_000
MAX_DEPTH = 50
_TAG = "tag:yaml.org,2002:"
_INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_WORDS: dict[str, Any] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}


def parse_yaml(text: str, where: str) -> Any:
    """Return what ``text`` holds.

    Args:
        text: YAML, of one line or several.
        where: What messages call it.

    Raises:
        ConfigError: It is not YAML, gives a key twice, has tags, can be read in two ways, contains
            itself or holds too much.

    Example:
        >>> parse_yaml("{lr: 1e-3, scenario: class}", "this")
        {'lr': 0.001, 'scenario': 'class'}
        >>> parse_yaml("010", "this")
        Traceback (most recent call last):
        avalanche_peftcl.errors.ConfigError: this: 010 can be read as 8 or as 10; ...
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        line = f" in line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = clip(str(error.problem), 300)
        raise ConfigError(f"{where} is not valid YAML: {problem}{line}") from error
    except RecursionError as error:
        raise ConfigError(f"{where} is nested too deeply") from error
    except (yaml.YAMLError, ValueError, OverflowError, TypeError, LookupError) as error:
        said = clip(" ".join(str(error).split()), 300)
        raise ConfigError(f"{where} is not valid YAML: {said}") from error


def write_yaml(values: Mapping[str, Any]) -> str:
    """Return plain values as YAML that :func:`parse_yaml` reads back unchanged."""
    return yaml.dump(dict(values), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=10**6)


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, for plain values that have one reading."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._lines = "\n" in stream
        self._depth = self._count = 0
        self._sizes: dict[int, int] = {}  # values in each node, those of aliases counted again

    def compose_node(self, parent: Any, index: Any) -> Any:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call] # PyYAML's stubs have none
        alias = isinstance(event, yaml.AliasEvent)
        if getattr(event, "tag", None) is not None:
            self._refuse(
                event, f"the tag {show(event.tag)} is not allowed; leave it out, quote text"
            )
        self._depth, before = self._depth + 1, self._count
        if self._depth > MAX_DEPTH:
            self._refuse(event, "it is nested too deeply")
        node = super().compose_node(parent, index)
        self._depth -= 1
        if alias and id(node) not in self._sizes:
            self._refuse(event, f"the alias {show(event.anchor)} stands within what it names")
        self._count += self._sizes[id(node)] if alias else 1
        if self._count > MAX_VALUES:
            self._refuse(event, f"the settings hold more than {MAX_VALUES} values")
        if not alias:
            self._sizes[id(node)] = self._count - before
        return node

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        lines: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            line, name = key.start_mark.line + 1, (key.tag, key.value)
            if name in lines:
                raise ConfigError(
                    f"the key {show(key.value)} is given twice, in lines {lines[name]} and {line}; "
                    "keep one"
                )
            lines[name] = line
        return node

    def compose_scalar_node(self, anchor: Any) -> yaml.ScalarNode:
        node: yaml.ScalarNode = super().compose_scalar_node(anchor)
        if node.style is None and node.value != "<<":  # plain; a merge key is one to all readers
            self._settle(node)
        return node

    def _settle(self, node: yaml.ScalarNode) -> None:
        """Give a plain scalar the type that YAML 1.2 gives it, if YAML 1.1 reads the same."""
        text: str = node.value
        if len(text) > 40 and _INT.fullmatch(text):
            self._refuse(node, f"{clip(text)} is a whole number of more than 64 bits")
        now, before = _core(text), _before(node)
        number = isinstance(now, float) and before == text  # 1e-3
        if not number and (type(now), str(now)) != (type(before), str(before)):
            readings = [value for value in (before, now) if value != text]
            plain = [_write(v) for v in readings if v is None or isinstance(v, bool | int | float)]
            ways = [*plain, f"{text!r} if text is meant"]
            read = " or as ".join(_write(v) if v != text else "text" for v in (before, now))
            self._refuse(node, f"{clip(text)} can be read as {read}; write {' or '.join(ways)}")
        node.tag = f"{_TAG}{_KINDS[type(now)]}"

    def _refuse(self, what: Any, text: str) -> None:
        line = f" (line {what.start_mark.line + 1})" if self._lines else ""
        raise ConfigError(f"{text}{line}")


_KINDS = {str: "str", bool: "bool", int: "int", float: "float", type(None): "null"}


def _core(text: str) -> Any:
    """Return what a plain scalar is to YAML 1.2."""
    if text in _WORDS:
        return _WORDS[text]
    if _INT.fullmatch(text):
        return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))
    if _FLOAT.fullmatch(text) or _NOT_FINITE.fullmatch(text):
        return float(text.replace(".", "") if _NOT_FINITE.fullmatch(text) else text)
    return text


def _before(node: yaml.ScalarNode) -> Any:
    """Return what a plain scalar is to YAML 1.1, as PyYAML resolved it."""
    if node.tag == f"{_TAG}str":
        return node.value
    try:
        return yaml.constructor.SafeConstructor().construct_object(node)
    except (yaml.YAMLError, ValueError, OverflowError):
        return _Wrong()


class _Wrong:
    """What YAML 1.1 takes for a value and cannot make one of."""


def _write(value: Any) -> str:
    """Return a value as a configuration has it, or as one says it."""
    if isinstance(value, datetime.date):
        return "a date"
    if isinstance(value, _Wrong):
        return "nothing at all"
    return "null" if value is None else str(value).lower()


class _Dumper(yaml.SafeDumper):
    """PyYAML's safe dumper, which quotes what either version takes for no text; no anchors."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_Dumper.add_implicit_resolver(
    f"{_TAG}int", re.compile(f"(?:{_INT.pattern})$"), list("-+0123456789")
)
_Dumper.add_implicit_resolver(
    f"{_TAG}float", re.compile(f"(?:{_FLOAT.pattern})$"), list("-+.0123456789")
)
