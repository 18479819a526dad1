"""Settings as text: YAML in and out, ``key=value`` overrides, and nothing but plain values."""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from avalanche_peftcl.config.yaml_text import MAX_DEPTH, MAX_VALUES, parse_yaml, write_yaml
from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.registry.kinds import KINDS
from avalanche_peftcl.registry.wording import clip, show

_COMPONENTS = {kind.key for kind in KINDS.values()}
_LONGEST = 2**20  # letters of a file; the longest that anyone writes has some thousands


def read_settings(path: Path) -> Any:
    """Return what a YAML file holds.

    Raises:
        ConfigError: The file cannot be read, is not YAML, or gives a key twice.

    Example:
        >>> read_settings(Path("no/such.yaml"))
        Traceback (most recent call last):
        avalanche_peftcl.errors.ConfigError: there is no file no/such.yaml in the working directory
    """
    return parse_yaml(_read(path), str(path))


def override_setting(settings: dict[str, Any], override: str) -> None:
    """Set one ``a.b=value`` in ``settings``, the value being YAML.

    A component that is there by its name alone gets its options beside it.

    Raises:
        ConfigError: If ``override`` is not of that form or goes into what is no mapping or list.

    Example:
        >>> settings = {"strategy": {"name": "naive"}, "plugins": [{"name": "replay"}]}
        >>> override_setting(settings, "strategy.lr=0.1")
        >>> override_setting(settings, "plugins.0.mem_size=20")
        >>> settings
        {'strategy': {'name': 'naive', 'lr': 0.1}, 'plugins': [{'name': 'replay', 'mem_size': 20}]}
        >>> settings = {"strategy": "naive"}
        >>> override_setting(settings, "strategy.lr=0.1")
        >>> settings
        {'strategy': {'name': 'naive', 'lr': 0.1}}
    """
    dotted, sign, text = override.partition("=")
    keys = dotted.strip().split(".")
    if not sign or not all(keys):
        raise ConfigError(
            f"the override {show(override)} is not of the form key=value, such as strategy.lr=0.1"
        )
    value, here = parse_yaml(text, f"the value of the override {show(override)}"), settings
    for depth, key in enumerate(keys):
        path, last = ".".join(keys[:depth]), depth == len(keys) - 1
        if isinstance(here, list):
            if not key.isdecimal() or int(key) >= len(here):
                raise ConfigError(
                    f"the override {show(override)} names {show(key)} in {clip(path, 200)}, a list "
                    f"of {len(here)}; give the number of an entry, counted from 0"
                )
            index: Any = int(key)
        elif isinstance(here, dict):
            index = key
            if not last and here.get(key) is None:
                here[key] = {}
        else:
            raise ConfigError(
                f"the override {show(override)} goes into {clip(path, 200)}, which is "
                f"{show(here)}, not a mapping"
            )
        if last:
            here[index] = value
            return
        component = keys[0] in _COMPONENTS and depth == (1 if isinstance(here, list) else 0)
        if component and isinstance(here[index], str):
            here[index] = {"name": here[index]}
        here = here[index]


def check_plain(settings: Any) -> None:
    """Refuse what a record could not hold: dates, nan, keys that are no strings, loops.

    Raises:
        ConfigError: With the path of the first such value.
    """
    stack: list[tuple[Any, tuple[str, ...], tuple[int, ...]]] = [(settings, (), ())]
    for _ in range(MAX_VALUES):
        if not stack:
            return
        value, path, above = stack.pop()
        where = clip(".".join(path), 200) or "the file"
        if isinstance(value, dict | list):
            if id(value) in above or len(above) > MAX_DEPTH:
                raise ConfigError(f"{where} contains itself or is nested too deeply")
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
    raise ConfigError(f"the settings hold more than {MAX_VALUES} values")


def _printable(text: str) -> bool:
    return "\0" not in text and not any("\ud800" <= letter <= "\udfff" for letter in text)


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
    return write_yaml(settings)


def _read(path: Path) -> str:
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(_LONGEST + 1)
    except FileNotFoundError as error:
        where = "" if path.is_absolute() else " in the working directory"
        raise ConfigError(f"there is no file {path}{where}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not a text file in UTF-8") from error
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    if len(text) > _LONGEST:
        raise ConfigError(f"{path} is longer than any configuration: over {_LONGEST} letters")
    return text
