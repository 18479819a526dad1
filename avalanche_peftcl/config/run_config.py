"""The configuration of one run: a YAML file and ``key=value`` overrides, checked key by key.

Paths, such as ``output`` or a component's ``root`` and ``checkpoint``, are relative to the working
directory, not to the YAML file; a leading ``~`` is the home folder.
"""

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from avalanche_peftcl.config.budget import BudgetConfig
from avalanche_peftcl.config.settings import check_plain, override_setting, read_settings
from avalanche_peftcl.config.tuned import Tuned
from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.registry.ranges import Count, Seed
from avalanche_peftcl.registry.wording import clip, did_you_mean, join, show

_MOST_AT_A_TIME = 1024  # threads or processes; with millions torch ends without a message
_MOST_TOLD = 20  # problems in one message
_SEEDS = re.compile(r"\s*[0-9]{1,10}\s*(,\s*[0-9]{1,10}\s*)*")


class ComponentConfig(BaseModel):
    """A component by name, and its options beside the name; the name alone where it has none.

    Args:
        name: Name as ``peftcl list`` shows it, or ``package/name``.

    Example:
        >>> ComponentConfig(name="replay", mem_size=200).options
        {'mem_size': 200}
        >>> ComponentConfig.model_validate("vit_glyph")
        ComponentConfig(name='vit_glyph')
    """

    model_config = ConfigDict(frozen=True, extra="allow", strict=True)

    name: Annotated[str, Field(min_length=1)]

    @model_validator(mode="before")
    @classmethod
    def _name_alone(cls, given: Any) -> Any:
        return {"name": given} if isinstance(given, str) else given

    @property
    def options(self) -> dict[str, Any]:
        """The options that were given."""
        return dict(self.model_extra or {})


def _output(value: object) -> object:
    if not isinstance(value, str | Path) or not str(value).strip():
        raise ValueError("must name a folder")
    try:
        return Path(value).expanduser()
    except RuntimeError as error:
        raise ValueError(f"must name a folder; {error}") from error


def _each_once(seeds: list[int]) -> list[int]:
    if not seeds:
        raise ValueError("must name a seed, such as [0, 1, 2]")
    if twice := sorted(seed for seed, count in Counter(seeds).items() if count > 1):
        raise ValueError(f"must not name a seed twice: {join(map(str, twice))}")
    return seeds


class RunConfig(BaseModel):
    """Everything that one run depends on.

    Args:
        output: Folder that the run record is written to, relative to the working directory; ``~``
            is the home folder.
        seed: Seed of every random number generator, and of the benchmark unless it has its own.
        seeds: Several seeds instead, one run each, see
            :func:`~avalanche_peftcl.sweeps.sweep.run_sweep`; the record of a run does not hold
            them.
        device: ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ``"mps"`` (untried), ...; ``"auto"`` is CUDA
            where there is any, else the CPU.
        num_threads: Threads that torch computes with; ``None`` leaves torch's own choice.
        num_workers: Processes that load images; 0 loads them in the main process.
        checkpoint_every: Minibatches between two checkpoints inside an experience; ``None`` writes
            one after each experience only.
        evaluate: ``"seen"`` evaluates on the experiences trained so far; ``"all"`` on the whole
            test stream, and once before training (needed for forward transfer).
        stop_after: Experiences after which the run stops, to be gone on with; ``None`` runs all.
        budget: What the training of each experience may use beside its epochs, see
            :class:`.BudgetConfig`; ``None``: whatever it takes.
        floor: Whether it is a floor that other runs are held against; comparisons say so.
        tuned: How its options were searched for, as ``peftcl tune`` writes it.
        backbone: The frozen network.
        module: The PEFT module, for a strategy that takes one.
        head: What turns features into predictions, for a strategy that takes one.
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
    num_threads: Annotated[int, Field(ge=1, le=_MOST_AT_A_TIME)] | None = None
    num_workers: Annotated[int, Field(ge=0, le=_MOST_AT_A_TIME)] = 0
    checkpoint_every: Count | None = None
    evaluate: Literal["seen", "all"] = "seen"
    stop_after: Count | None = None
    budget: BudgetConfig | None = None
    floor: Annotated[bool | None, AfterValidator(lambda given: given or None)] = None
    tuned: Tuned | None = None
    backbone: ComponentConfig
    module: ComponentConfig | None = None
    head: ComponentConfig | None = None
    benchmark: ComponentConfig
    strategy: ComponentConfig
    plugins: list[ComponentConfig] = []
    metrics: list[ComponentConfig] = []
    loggers: list[ComponentConfig] = []

    @model_validator(mode="after")
    def _one_or_several(self) -> "RunConfig":
        if self.seeds is not None and "seed" in self.model_fields_set:
            raise ValueError(
                f"both seed and seeds are given ({self.seed} and {show(self.seeds)}); leave one "
                "out (seeds=null runs one seed)"
            )
        return self

    def for_seed(self, seed: int) -> "RunConfig":
        """Return the run of one seed, in the folder ``seed<seed>`` of the output."""
        output = self.output / f"seed{seed}"
        return self.model_copy(update={"seed": seed, "seeds": None, "output": output})


def load_config(
    path: str | Path,
    overrides: Sequence[str] = (),
    *,
    seeds: Sequence[int] | None = None,
    settings: Any = None,
) -> RunConfig:
    """Read a run's configuration.

    Args:
        path: YAML file; a relative path is relative to the working directory.
        overrides: Settings that replace those of the file, each ``"key=value"`` with the value as
            YAML. Dots go down: ``"strategy.lr=0.1"``, ``"plugins.0.mem_size=200"``.
        seeds: Seeds that replace the seed or the seeds of the file.
        settings: What is in the file, where it is known already.

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
    settings = read_settings(Path(path)) if settings is None else settings
    if not isinstance(settings, dict):
        keys = ", ".join(RunConfig.model_fields)
        raise ConfigError(f"{path} must hold a mapping with the keys {keys}; got {show(settings)}")
    if seeds is not None:
        settings.pop("seed", None)
        settings["seeds"] = list(seeds)
    for override in overrides:
        override_setting(settings, override)
    check_plain(settings)
    try:
        return RunConfig.model_validate(settings)
    except ValidationError as error:
        found = error.errors(include_url=False)
        problems = list(dict.fromkeys(_problem(details) for details in found[:_MOST_TOLD]))
        problems += [f"and {len(found) - _MOST_TOLD} more"] if len(found) > _MOST_TOLD else []
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
            f"seeds {show(text)} are not whole numbers from 0 with commas between them, as 0,1,2"
        )
    return [int(seed.strip()) for seed in text.split(",")]


def _problem(details: Any) -> str:
    """Say one of pydantic's errors in plain words, with the full path of the key."""
    location = [str(part) for part in details["loc"]]
    path, kind, given = clip(".".join(location), 200), details["type"], show(details["input"])
    if not location:
        return str(details["msg"].removeprefix("Value error, "))
    if kind == "extra_forbidden":
        keys = list((BudgetConfig if location[0] == "budget" else RunConfig).model_fields)
        near = did_you_mean(location[-1], keys)
        return f"unknown key {path!r}{near}; the keys are {', '.join(keys)}"
    if kind == "missing":
        return f"the key {path!r} is missing"
    if kind in ("model_type", "model_attributes_type") and location == ["budget"]:
        return f"{path} must be a mapping, such as {{passes: 2}}; got {given}"
    if kind in ("model_type", "model_attributes_type"):
        return f"{path} must be a name or a mapping with one, such as {{name: ...}}; got {given}"
    way_out = _way_out(location, kind, details["input"])
    if way_out:
        return f"{path} {way_out}; got {given}"
    said = details["msg"].removeprefix("Value error, ").replace("Input should", "must")
    said = said.replace("String should", "must")
    return f"{path} {said}, got {given}"


def _way_out(location: list[str], kind: str, given: Any) -> str:
    """Say what was meant where it can be told; empty where it cannot."""
    if location == ["seed"] and isinstance(given, str) and _SEEDS.fullmatch(given):
        return f"is one number; for several runs leave it out and take --seeds {given}"
    if kind == "list_type" and isinstance(given, str) and given.isidentifier():
        return f"is a list: {location[-1]}=[{given}], or [{{name: {given}, option: value}}]"
    return ""
