"""The configuration of one run: a YAML file and ``key=value`` overrides, checked key by key.

Paths, such as ``output`` or a component's ``root`` and ``checkpoint``, are relative to the working
directory, not to the YAML file.
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from avalanche_peftcl.errors import ConfigError

_MAX_VALUES = 100_000
_SEEDS = re.compile(r"\s*[0-9]{1,10}\s*(,\s*[0-9]{1,10}\s*)*")
_FLOAT = re.compile(r"[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$")


class ComponentConfig(BaseModel):
    """A component by name, and its options beside the name.

    Args:
        name: Name as ``peftcl list`` shows it, or ``package/name``.

    Example:
        >>> ComponentConfig(name="replay", mem_size=200).options
        {'mem_size': 200}
    """

    model_config = ConfigDict(frozen=True, extra="allow", strict=True)

    name: Annotated[str, Field(min_length=1)]

    @property
    def options(self) -> dict[str, Any]:
        """The options that were given."""
        return dict(self.model_extra or {})


def _output(value: object) -> object:
    if not isinstance(value, str | Path) or not str(value).strip():
        raise ValueError("must name a folder")
    return value


def _each_once(seeds: list[int]) -> list[int]:
    if not seeds:
        raise ValueError("must name a seed, such as [0, 1, 2]")
    if twice := sorted(seed for seed, count in Counter(seeds).items() if count > 1):
        raise ValueError(f"must not name a seed twice: {', '.join(map(str, twice))}")
    return seeds


Seed = Annotated[int, Field(ge=0, lt=2**32)]


class RunConfig(BaseModel):
    """Everything that one run depends on.

    Args:
        output: Folder that the run record is written to, relative to the working directory.
        seed: Seed of every random number generator, and of the benchmark unless it has its own.
        seeds: Several seeds instead, one run each, see :func:`~avalanche_peftcl.sweep.run_sweep`;
            the record of a run does not hold them.
        device: ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ``"mps"``, ...
        num_threads: Threads that torch computes with; ``None`` leaves torch's own choice.
        num_workers: Processes that load images; 0 loads them in the main process.
        checkpoint_every: Minibatches between two checkpoints inside an experience; ``None`` writes
            one after each experience only.
        evaluate: ``"seen"`` evaluates on the experiences trained so far; ``"all"`` on the whole
            test stream, and once before training (needed for forward transfer).
        backbone: The frozen network.
        module: The PEFT module, for a strategy that takes one.
        benchmark: The stream of experiences.
        strategy: The method.
        plugins: Avalanche plugins of the strategy, in this order.
        metrics: Metrics beyond the accuracy matrix and the cost.
        loggers: Avalanche loggers of all metrics, beside the run record.

    Example:
        >>> config = RunConfig(
        ...     output="runs/a",
        ...     backbone={"name": "vit_glyph"},
        ...     benchmark={"name": "digits"},
        ...     strategy={"name": "ntk_cl"},
        ... )
        >>> config.seed, config.evaluate
        (0, 'seen')
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    output: Annotated[Path, Field(strict=False), BeforeValidator(_output)]
    seed: Seed = 0
    seeds: Annotated[
        Annotated[list[Seed], AfterValidator(_each_once)] | None,
        Field(exclude=True),
    ] = None
    device: str = "cpu"
    num_threads: Annotated[int, Field(ge=1)] | None = None
    num_workers: Annotated[int, Field(ge=0)] = 0
    checkpoint_every: Annotated[int, Field(ge=1)] | None = None
    evaluate: Literal["seen", "all"] = "seen"
    backbone: ComponentConfig
    module: ComponentConfig | None = None
    benchmark: ComponentConfig
    strategy: ComponentConfig
    plugins: list[ComponentConfig] = []
    metrics: list[ComponentConfig] = []
    loggers: list[ComponentConfig] = []

    @model_validator(mode="after")
    def _one_or_several(self) -> "RunConfig":
        if self.seeds is not None and "seed" in self.model_fields_set:
            raise ValueError(
                f"both seed and seeds are given ({self.seed} and {self.seeds}); leave one out "
                "(seeds=null runs one seed)"
            )
        return self

    def for_seed(self, seed: int) -> "RunConfig":
        """Return the run of one seed, in the folder ``seed<seed>`` of the output."""
        output = self.output / f"seed{seed}"
        return self.model_copy(update={"seed": seed, "seeds": None, "output": output})


def load_config(
    path: str | Path, overrides: Sequence[str] = (), *, seeds: Sequence[int] | None = None
) -> RunConfig:
    """Read a run's configuration.

    Args:
        path: YAML file; a relative path is relative to the working directory.
        overrides: Settings that replace those of the file, each ``"key=value"`` with the value as
            YAML. Dots go down: ``"strategy.lr=0.1"``, ``"plugins.0.mem_size=200"``.
        seeds: Seeds that replace the seed or the seeds of the file.

    Returns:
        The configuration, every key checked. The options of a component are checked when it is
        built.

    Raises:
        ConfigError: The file cannot be read or is not YAML, or a key is unknown, missing, given
            twice, of the wrong type or out of range. The message names the key with its full path.

    Example:
        >>> load_config("no/such.yaml")
        Traceback (most recent call last):
        avalanche_peftcl.errors.ConfigError: there is no file no/such.yaml in the working directory
    """
    settings = _parse(_read(Path(path)), str(path))
    if not isinstance(settings, dict):
        keys = ", ".join(RunConfig.model_fields)
        raise ConfigError(f"{path} must hold a mapping with the keys {keys}; got {_show(settings)}")
    if seeds is not None:
        settings.pop("seed", None)
        settings["seeds"] = list(seeds)
    for override in overrides:
        _override(settings, override)
    _check_plain(settings)
    try:
        return RunConfig.model_validate(settings)
    except ValidationError as error:
        problems = dict.fromkeys(_problem(details) for details in error.errors())
        raise ConfigError(f"{path}: " + "\n".join(problems)) from error


def parse_seeds(text: str) -> list[int]:
    """Read seeds as they are written on the command line.

    Raises:
        ConfigError: If they are no whole numbers from 0 with commas between them.

    Example:
        >>> parse_seeds("0, 1,2")
        [0, 1, 2]
    """
    if not _SEEDS.fullmatch(text):
        raise ConfigError(
            f"seeds {_show(text)} are not whole numbers from 0 with commas between them, as 0,1,2"
        )
    return [int(seed) for seed in text.split(",")]


def dump_config(settings: Mapping[str, Any]) -> str:
    """Return ``settings`` as YAML that :func:`load_config` reads back unchanged.

    Args:
        settings: Mappings, lists, strings, numbers, booleans and ``None``.

    Example:
        >>> print(dump_config({"seed": 1, "backbone": {"name": "vit_glyph"}}), end="")
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


def _override(settings: dict[str, Any], override: str) -> None:
    """Set one ``a.b=value`` in ``settings``."""
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
                f"the override {override!r} goes into {path}, which is {_show(here)}, not a mapping"
            )
        if last:
            here[index] = value
        else:
            here = here[index]


def _check_plain(settings: Any) -> None:
    """Refuse what a record could not hold: dates, nan, keys that are no strings, loops."""
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
                    raise ConfigError(f"{where} has the key {_show(key)}; keys must be words")
                stack.append((inner, (*path, str(key)), (*above, id(value))))
        elif isinstance(value, str):
            if not _printable(value):
                raise ConfigError(
                    f"{where} holds a character that no text file can: {_show(value)}"
                )
        elif isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"{where} must be a finite number, got {value}")
        elif isinstance(value, int) and abs(value) >= 2**63:
            raise ConfigError(f"{where} is a whole number of more than 64 bits")
        elif value is not None and not isinstance(value, bool | int | float):
            raise ConfigError(
                f"{where} is a {type(value).__name__}: {_show(value)}; allowed are text, numbers, "
                "true, false, null, lists and mappings. Quote it if text is meant"
            )
    raise ConfigError(f"the settings hold more than {_MAX_VALUES} values")


def _printable(text: str) -> bool:
    return "\0" not in text and not any("\ud800" <= letter <= "\udfff" for letter in text)


def _show(value: object) -> str:
    """Return ``repr(value)``, short."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # a number too long to print; a list within itself
        text = f"a {type(value).__name__}"
    return text if len(text) <= 80 else text[:77] + "..."


def _problem(details: Any) -> str:
    """Say one of pydantic's errors in plain words, with the full path of the key."""
    location = [str(part) for part in details["loc"]]
    path, kind, given = ".".join(location), details["type"], _show(details["input"])
    if not location:
        return str(details["msg"].removeprefix("Value error, "))
    if kind == "extra_forbidden":
        keys = list(RunConfig.model_fields)
        near = get_close_matches(location[-1], keys, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ";"
        return f"unknown key {path!r}{hint} The keys are {', '.join(keys)}"
    if kind == "missing":
        return f"the key {path!r} is missing"
    if kind in ("model_type", "model_attributes_type"):
        return f"{path} must be a mapping with a name, such as {{name: ...}}; got {given}"
    said = details["msg"].removeprefix("Value error, ").replace("Input should", "must")
    said = said.replace("String should", "must")
    return f"{path} {said}, got {given}"
