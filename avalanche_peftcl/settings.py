"""Settings as text: YAML in and out, ``key=value`` overrides, and nothing but plain values."""

import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from avalanche_peftcl.errors import ConfigError

_MAX_VALUES = 100_000
_FLOAT = re.compile(r"[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$")


def read_settings(path: Path) -> Any:
    """Return what a YAML file holds.

    Raises:
        ConfigError: The file cannot be read, is not YAML, or gives a key twice.

    Example:
        >>> read_settings(Path("no/such.yaml"))
        Traceback (most recent call last):
        avalanche_peftcl.errors.ConfigError: there is no file no/such.yaml in the working directory
    """
    return _parse(_read(path), str(path))


def override_setting(settings: dict[str, Any], override: str) -> None:
    """Set one ``a.b=value`` in ``settings``, the value being YAML.

    Raises:
        ConfigError: If ``override`` is not of that form or goes into what is no mapping or list.

    Example:
        >>> settings = {"strategy": {"name": "naive"}, "plugins": [{"name": "replay"}]}
        >>> override_setting(settings, "strategy.lr=0.1")
        >>> override_setting(settings, "plugins.0.mem_size=20")
        >>> settings
        {'strategy': {'name': 'naive', 'lr': 0.1}, 'plugins': [{'name': 'replay', 'mem_size': 20}]}
    """
    dotted, sign, text = override.partition("=")
    keys = dotted.strip().split(".")
    if not sign or not all(keys):
        raise ConfigError(
            f"the override {override!r} is not of the form key=value, such as strategy.lr=0.1"
        )
    value, here = _parse(text, f"the value of the override {override!r}"), settings
    for depth, key in enumerate(keys):
        path, last = ".".join(keys[:depth]), depth == len(keys) - 1
        if isinstance(here, list):
            if not key.isdecimal() or int(key) >= len(here):
                raise ConfigError(
                    f"the override {override!r} names {key!r} in {path}, a list of {len(here)}; "
                    "give the number of an entry, counted from 0"
                )
            index: Any = int(key)
        elif isinstance(here, dict):
            index = key
            if not last and here.get(key) is None:
                here[key] = {}
        else:
            raise ConfigError(
                f"the override {override!r} goes into {path}, which is {show(here)}, not a mapping"
            )
        if last:
            here[index] = value
        else:
            here = here[index]


def check_plain(settings: Any) -> None:
    """Refuse what a record could not hold: dates, nan, keys that are no strings, loops.

    Raises:
        ConfigError: With the path of the first such value.
    """
    stack: list[tuple[Any, tuple[str, ...], tuple[int, ...]]] = [(settings, (), ())]
    for _ in range(_MAX_VALUES):
        if not stack:
            return
        value, path, above = stack.pop()
        where = ".".join(path) or "the file"
        if isinstance(value, dict | list):
            if id(value) in above or len(above) > 50:
                raise ConfigError(f"{where[:200]} contains itself or is nested too deeply")
            items: Iterable[tuple[Any, Any]] = (
                value.items() if isinstance(value, dict) else enumerate(value)
            )
            for key, inner in items:
                if isinstance(value, dict) and not (isinstance(key, str) and _printable(key)):
                    raise ConfigError(f"{where} has the key {show(key)}; keys must be words")
                stack.append((inner, (*path, str(key)), (*above, id(value))))
        elif isinstance(value, str):
            if not _printable(value):
                raise ConfigError(f"{where} holds a character that no text file can: {show(value)}")
        elif isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"{where} must be a finite number, got {value}")
        elif isinstance(value, int) and abs(value) >= 2**63:
            raise ConfigError(f"{where} is a whole number of more than 64 bits")
        elif value is not None and not isinstance(value, bool | int | float):
            raise ConfigError(
                f"{where} is a {type(value).__name__}: {show(value)}; allowed are text, numbers, "
                "true, false, null, lists and mappings. Quote it if text is meant"
            )
    raise ConfigError(f"the settings hold more than {_MAX_VALUES} values")


def _printable(text: str) -> bool:
    return "\0" not in text and not any("\ud800" <= letter <= "\udfff" for letter in text)


def show(value: object) -> str:
    """Return ``repr(value)``, short.

    Example:
        >>> show("x" * 100)[-6:]
        'xxx...'
    """
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # a number too long to print; a list within itself
        text = f"a {type(value).__name__}"
    return text if len(text) <= 80 else text[:77] + "..."


def dump_settings(settings: Mapping[str, Any]) -> str:
    """Return ``settings`` as YAML that :func:`read_settings` reads back unchanged.

    Args:
        settings: Mappings, lists, strings, numbers, booleans and ``None``.

    Example:
        >>> print(dump_settings({"seed": 1, "backbone": {"name": "vit_glyph"}}), end="")
        seed: 1
        backbone:
          name: vit_glyph
    """
    return yaml.dump(
        dict(settings), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=10**6
    )


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader that refuses a key given twice and reads ``1e-3`` as a number."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        lines: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            line, name = key.start_mark.line + 1, (key.tag, key.value)
            if name in lines:
                raise ConfigError(
                    f"the key {key.value!r} is given twice, in lines {lines[name]} and {line}; "
                    "keep one"
                )
            lines[name] = line
        return node


class _Dumper(yaml.SafeDumper):
    """PyYAML's safe dumper, with numbers as :class:`_Loader` reads them and no anchors."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


for _kind in (_Loader, _Dumper):
    _kind.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789"))


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        where = "" if path.is_absolute() else " in the working directory"
        raise ConfigError(f"there is no file {path}{where}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not a text file in UTF-8") from error
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error


def _parse(text: str, where: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        line = f" in line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ConfigError(f"{where} is not valid YAML: {error.problem}{line}") from error
    except RecursionError as error:
        raise ConfigError(f"{where} is nested too deeply") from error
    except (yaml.YAMLError, ValueError, OverflowError, TypeError, LookupError) as error:
        raise ConfigError(f"{where} is not valid YAML: {' '.join(str(error).split())}") from error
