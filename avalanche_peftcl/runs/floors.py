"""The floors of a run: classifiers that train nothing, on the same frozen network and stream."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from avalanche_peftcl.config import ComponentConfig, RunConfig
from avalanche_peftcl.config.plan import make_plan
from avalanche_peftcl.errors import ConfigError, RecordError
from avalanche_peftcl.registry import Registry
from avalanche_peftcl.runs.folder import check_output
from avalanche_peftcl.runs.identity import settings_of
from avalanche_peftcl.runs.reading import read_record
from avalanche_peftcl.runs.schema import FLOORS, Record, Stream
from avalanche_peftcl.training.feature_cache import shared_features

_FLOORS: dict[str, tuple[str, str | None]] = {  # folder: strategy and head
    "nearest_class_mean": ("nearest_class_mean", None),
    "ridge": ("closed_form", "ridge"),
    "zero_shot": ("closed_form", "zero_shot"),
}
_TEXTS = ("class_words", "templates")  # options of a head that reads the names of classes
_WITHOUT_CLASSES = ("image_text",)
_CARRIED = ("eval_mb_size", "mixed_precision")  # options of the run's strategy, if it has them


def floor_runs(config: RunConfig, registry: Registry) -> list[RunConfig]:
    """Return the runs of the floors of a configuration, each in ``floors/NAME`` of its output.

    They have its backbone, benchmark, seed or seeds, device and precision, no budget, and are
    marked as floors. One that is the run itself is left out; zero-shot is one where the run's head
    reads the names of classes too, in the same words.

    Args:
        config: A run, or several seeds of it.
        registry: Components to choose from.

    Raises:
        ConfigError: If a folder of theirs cannot be used, the benchmark has no classes, or as
            :func:`.make_plan`.

    Example:
        >>> from avalanche_peftcl.registry import discover
        >>> config = RunConfig(
        ...     output="runs/a", backbone="vit_glyph", benchmark="digits", strategy="ntk_cl", seed=3
        ... )
        >>> first = floor_runs(config, discover())[0]
        >>> first.output.as_posix(), first.strategy.name, first.seed, first.floor
        ('runs/a/floors/nearest_class_mean', 'nearest_class_mean', 3, True)
    """
    if config.benchmark.name.rpartition("/")[2] in _WITHOUT_CLASSES:
        raise ConfigError(
            f"the floors classify, and benchmark {config.benchmark.name!r} has no classes; leave "
            "them out; with evaluate=all the record has what the frozen network finds (baseline)"
        )
    whole = _settings(config.model_copy(update={"budget": None}), registry)
    carried = {k: v for k in _CARRIED if (v := whole["strategy"].get(k)) is not None}
    texts: dict[str, Any] | None = None
    if config.head is not None and set(_TEXTS) <= set(registry.options("head", config.head.name)):
        texts = {k: v for k, v in config.head.options.items() if k in _TEXTS}
    runs = []
    for name, (strategy, head) in _FLOORS.items():
        if head == "zero_shot" and texts is None:
            continue
        told = (texts or {}) if head == "zero_shot" else {}
        floor = config.model_copy(
            update={
                "output": config.output / FLOORS / name,
                "floor": True,
                "tuned": None,
                "budget": None,  # it takes no step
                "checkpoint_every": None,
                "module": None,
                "head": None
                if head is None
                else ComponentConfig.model_validate({"name": head} | told),
                "strategy": ComponentConfig.model_validate({"name": strategy} | carried),
                "plugins": [],
                "metrics": [],
                "loggers": [],
            }
        )
        if _settings(floor, registry) != whole:
            check_output(floor.output, overwrite=True, resume=True)
            runs.append(floor)
    return runs


def floors_of(
    config: RunConfig, record: Record, registry: Registry
) -> Iterator[tuple[RunConfig, bool]]:
    """Yield the floors of a run that is complete, and whether what is there of each goes on.

    While they are run they share features, see :func:`.shared_features`.

    Args:
        config: Of the run.
        record: Its record, which says what ``auto`` came to.
        registry: Components to choose from.
    """
    as_run = config.model_copy(update={"strategy": record.config.strategy})
    with shared_features():
        for floor in floor_runs(as_run, registry):
            yield floor, _of_the_same(floor.output, record)


def _of_the_same(folder: Path, record: Record) -> bool:
    """Whether an earlier floor in a folder, if there is one, saw what a run saw.

    Settings are compared where a run goes on; here the weights and the stream.
    """
    try:
        there = read_record(folder)
    except RecordError:
        return True  # there is none, or none that would be taken as it is
    return there.weights_sha256 == record.weights_sha256 and all(
        getattr(there.protocol, name) == getattr(record.protocol, name)
        for name in Stream.model_fields
    )


def _settings(config: RunConfig, registry: Registry) -> dict[str, Any]:
    one = config if config.seeds is None else config.for_seed(config.seeds[0])
    return settings_of(make_plan(one, registry).settings)
