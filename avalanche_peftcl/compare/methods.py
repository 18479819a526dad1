"""Runs gathered into methods: what only differs in the seed belongs together and has one label."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from avalanche_peftcl.compare.alike import BUDGETS, ORDERING, folder_name, protocol_of
from avalanche_peftcl.compare.labels import named
from avalanche_peftcl.compare.statistics import Estimate, estimate
from avalanche_peftcl.config import ComponentConfig
from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.registry.kinds import KINDS
from avalanche_peftcl.runs.earlier_settings import idle_options, named_now
from avalanche_peftcl.runs.record import RunRecord
from avalanche_peftcl.runs.schema import HEADLINES, Record

# a label tells the strategy first, and last what it ran on
_PLACES = {"strategy": 0, "benchmark": 2, "backbone": 3}
_KINDS = sorted(
    (kind for kind in KINDS.values() if not kind.watches),
    key=lambda kind: _PLACES.get(kind.name, 1),
)
# of the run, not the method
_ASIDE = {"output", "seed", "device", "num_threads", "num_workers", "checkpoint_every", "floor"}
_ASIDE |= {"stop_after", "tuned"}
_ASIDE |= {kind.key for kind in KINDS.values()}  # told by the kinds, but for those that watch


@dataclass(frozen=True)
class Quantity:
    """A number of a run that methods are compared by.

    Args:
        key: Its name in files.
        title: Its name in tables.
        unit: ``"fraction"``, ``"passes"``, ``"seconds"`` or ``"parameters"``; empty where nobody
            knows it.
        value: Takes it from a run's record; ``None`` where it is undefined.
    """

    key: str
    title: str
    unit: str
    value: Callable[[Record], float | None]


def _headline(name: str) -> Callable[[Record], float | None]:
    return lambda record: record.accuracy.headlines()[name]


def _last(name: str) -> Callable[[Record], float | None]:
    return lambda record: (record.further_metrics.get(name) or [None])[-1]


def _passes(record: Record) -> float | None:
    if record.config.floor:  # features that floors share are the work of the first of them
        return None
    images = [each.train_images for each in record.protocol.experiences]
    if record.joint:  # all of them were trained on with the last
        return record.cost.training_passes[-1] if record.cost.training_passes else None
    return record.cost.passes_per_image(images)


def _seconds(record: Record) -> float | None:
    return None if record.config.floor else sum(record.cost.training_seconds)


QUANTITIES = (
    *(Quantity(key, name, "fraction", _headline(name)) for key, name in HEADLINES.items()),
    Quantity("training_passes", "passes a training image", "passes", _passes),
    Quantity("training_seconds", "training time", "seconds", _seconds),
    Quantity(
        "trainable_parameters",
        "trainable parameters",
        "parameters",
        lambda record: record.cost.trainable_parameters,
    ),
)


def further_quantities(runs: Iterable[RunRecord]) -> tuple[Quantity, ...]:
    """Return the further metrics of ``runs``, each by its value after the last experience."""
    names = dict.fromkeys(name for run in runs for name in run.record.further_metrics)
    return tuple(Quantity(name, name, "", _last(name)) for name in names)


@dataclass(frozen=True, eq=False)
class Method:
    """Runs that differ in nothing but the seed.

    Args:
        label: Name of the strategy and what tells it from the other methods.
        runs: Sorted by seed, one a seed.
        settings: Components and options in which it differs from others, see :class:`.Named`.
        untold: Those that no label tells, as text.
    """

    label: str
    runs: tuple[RunRecord, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)
    untold: tuple[str, ...] = ()

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds, sorted."""
        return tuple(run.record.seed for run in self.runs)

    @property
    def joint(self) -> bool:
        """Whether it trained on all experiences at once: only the end of a run is known."""
        return any(run.record.joint for run in self.runs)

    def by_seed(self, quantity: Quantity) -> dict[int, float]:
        """Return the values of ``quantity`` that are defined, by seed."""
        values = {run.record.seed: quantity.value(run.record) for run in self.runs}
        return {seed: value for seed, value in values.items() if value is not None}

    def estimate(self, quantity: Quantity) -> Estimate | None:
        """Return mean and spread over the seeds; ``None`` if a run has no such number."""
        return estimate_of([quantity.value(run.record) for run in self.runs])

    def curve(self) -> list[Estimate | None]:
        """Return the accuracy on all images seen so far, after each experience."""
        curves = [run.record.accuracy.accuracy_curve for run in self.runs]
        return [estimate_of(values) for values in zip(*curves, strict=True)]

    def matrix(self) -> list[list[Estimate | None]]:
        """Return the accuracy matrix; ``None`` where a run was not evaluated."""
        matrices = [run.record.accuracy_matrix for run in self.runs]
        return [
            [estimate_of(values) for values in zip(*rows, strict=True)]
            for rows in zip(*matrices, strict=True)
        ]

    def forgetting_by_experience(self) -> list[Estimate | None]:
        """Return how far each experience but the last fell from its best earlier accuracy."""
        drops = [run.record.accuracy.forgetting_by_experience for run in self.runs]
        if len(set(map(len, drops))) > 1:  # records of a version that had none
            return []
        return [estimate_of(values) for values in zip(*drops, strict=True)]


def each_floor_once(runs: Sequence[RunRecord]) -> list[RunRecord]:
    """Return ``runs`` without floors that are there already: several methods may have the same.

    A floor is left out where a run of the same method and seed is none, or comes first.
    """
    kept: list[RunRecord] = []
    there = {_whose(run) for run in runs if not run.record.config.floor}
    for run in runs:
        if run.record.config.floor:
            if (whose := _whose(run)) in there:
                continue
            there.add(whose)
        kept.append(run)
    return kept


def _whose(run: RunRecord) -> tuple[str, int]:
    return _token(_identity(run)), run.record.seed


def gather(runs: Sequence[RunRecord]) -> list[Method]:
    """Gather complete runs into methods.

    Two runs are of one method if their recorded configurations agree in everything but seed,
    output folder, device, threads, workers, checkpoints, metrics, loggers, and the benchmark's seed
    and list of classes; of the path to an image folder its last name counts, of weights their hash.
    The label is the name of the strategy, of components and data set that differ between all
    methods, and options that tell methods with the same components apart, no more than that takes,
    see :func:`.labels.named`; behind it, whether it is a floor.

    Args:
        runs: Complete runs.

    Returns:
        Methods in the order of their first run.

    Raises:
        ConfigError: If two runs are of one method and one seed.
    """
    gathered: dict[str, list[RunRecord]] = {}
    for run in runs:
        gathered.setdefault(_token(_identity(run)), []).append(run)
    twice = [
        f"seed {seed}: {' and '.join(str(run.folder) for run in same)}"
        for those in gathered.values()
        for seed in sorted({run.record.seed for run in those})
        if len(same := [run for run in those if run.record.seed == seed]) > 1
    ]
    if twice:
        raise ConfigError(
            "the same method was run more than once with the same seed, and only one can count; "
            "name the folders to compare, or move the others away:\n  " + "\n  ".join(twice)
        )
    groups = list(gathered.values())
    methods = []
    for name, those in zip(named([_identity(those[0]) for those in groups]), groups, strict=True):
        floor = " (floor)" * all(run.record.config.floor for run in those)
        runs_by_seed = tuple(sorted(those, key=lambda run: run.record.seed))
        methods.append(Method(name.label + floor, runs_by_seed, name.settings, name.untold))
    return methods


def _identity(run: RunRecord) -> dict[str, Any]:
    """Return everything that makes the method of ``run``, flat, in the order of its label.

    An option that is ``None`` is left out: a record of a version that had no such option is alike.
    """
    record, config = run.record, run.record.config
    providers = {(part.kind, part.name): part.provider for part in record.components}
    flat: dict[str, Any] = {}
    for kind in _KINDS:
        key = kind.key
        part: ComponentConfig | list[ComponentConfig] | None = getattr(config, key)
        if isinstance(part, list):
            flat[key] = [_bare(each) for each in part]
            flat[f"provider.{key}"] = [providers.get((kind.name, _bare(each))) for each in part]
            for i, each in enumerate(part):
                again = sum(_bare(other) == _bare(each) for other in part[:i])
                whose = f"{key}.{_bare(each)}" + (f" {again + 1}" if again else "")
                flat |= {f"{whose}.{option}": value for option, value in each.options.items()}
        elif part is not None:
            flat[key] = _bare(part)
            flat[f"provider.{key}"] = providers.get((kind.name, _bare(part)))
            options = part.options
            if key == "strategy":
                options = named_now(part.name, options)
            if "root" in options:
                flat[f"{key}.root"] = folder_name(str(options.pop("root")))
            flat |= {f"{key}.{option}": value for option, value in options.items()}
    idle = idle_options(config.strategy.name) if "module" in flat else ()  # of older records
    unsaid = "benchmark.seed", "backbone.checkpoint"  # the hash tells the weights
    for option in (*unsaid, *(f"strategy.{each}" for each in idle)):
        flat.pop(option, None)
    if isinstance(flat.get("benchmark.class_order"), list):  # of a seed; "natural" is of a method
        del flat["benchmark.class_order"]
    told = config.model_dump(mode="json", exclude=_ASIDE)
    flat |= {f"budget.{name}": limit for name, limit in (told.pop("budget") or {}).items()}
    flat |= told
    protocol = protocol_of(run)
    del protocol[ORDERING]  # the option tells it
    for key in BUDGETS:  # as does the configuration, of what they say nothing of too
        del protocol[key]
    flat |= {f"protocol.{key}": value for key, value in protocol.items()}
    return {key: value for key, value in flat.items() if value is not None}


def _bare(component: ComponentConfig) -> str:
    return component.name.rpartition("/")[2]


def _token(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def estimate_of(values: Sequence[float | None]) -> Estimate | None:
    """Return mean and spread of one value a seed; ``None`` unless all are defined."""
    defined = [value for value in values if value is not None]
    return estimate(defined) if defined and len(defined) == len(values) else None
