"""What two runs must share for their numbers to stand side by side, and where runs differ in it."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from avalanche_peftcl.runs.record import RunRecord
from avalanche_peftcl.runs.schema import Record

_LONG = 60  # characters of a value in a message
ORDERING = "ordering of the classes"
NO_LIMIT = "no limit"  # of a budget
_FEW = 2  # runs that a message names for each value


@dataclass(frozen=True)
class Difference:
    """A point of the protocol in which runs differ.

    Args:
        key: What it is, in words.
        values: Each value, shortened, and the runs that have it.
        seed: For what depends on the seed, the seed of these runs; else ``None``.
    """

    key: str
    values: tuple[tuple[str, tuple[RunRecord, ...]], ...]
    seed: int | None = None

    @property
    def title(self) -> str:
        """The key, with its seed where it has one."""
        return self.key if self.seed is None else f"{self.key}, seed {self.seed}"

    def __str__(self) -> str:
        return f"{self.title}: " + "; ".join(
            f"{value} in {_folders(runs)}" for value, runs in self.values
        )


def dataset(metrics: Record) -> str:
    """Return the name of the data set: the benchmark's, its folder's root's, or its own."""
    benchmark = metrics.config.benchmark
    if benchmark.name.rpartition("/")[2] == "hf_dataset":
        return folder_name(str(benchmark.options.get("dataset")))
    root = str(benchmark.options.get("root") or "")
    name = benchmark.name.rpartition("/")[2]
    return folder_name(root) or name if _is_folder(name) else name


def _is_folder(benchmark: str) -> bool:
    return benchmark.rpartition("/")[2] in ("image_folder", "image_list")


def folder_name(path: str) -> str:
    r"""Return the last part of a path of any system.

    Example:
        >>> folder_name("../data/cifar10/"), folder_name("C:\\data\\pacs")
        ('cifar10', 'pacs')
    """
    return re.split(r"[/\\]", path.rstrip("/\\"))[-1]


def _classes(metrics: Record) -> set[int]:
    return {label for experience in metrics.protocol.experiences for label in experience.classes}


def tested_on(metrics: Record) -> str | None:
    """Return what the run was tested on; of a record that does not state it, as it was set."""
    held = metrics.config.benchmark.options.get("validation_per_class")
    if metrics.protocol.tested_on is not None or held is None:
        return metrics.protocol.tested_on
    return "held-out training images" if held else "test images"


def _ordering(metrics: Record) -> str | None:
    """Return whether the class order was drawn or natural; ``None`` of a list and of domains."""
    options = metrics.config.benchmark.options
    given = options.get("class_order")
    if "class_order" not in options or isinstance(given, list):
        return None
    return given or (None if metrics.protocol.scenario == "domain" else "drawn")


def _images(metrics: Record, part: str) -> list[int]:
    return [getattr(experience, part) for experience in metrics.protocol.experiences]


def _budget(name: str) -> Callable[[Record], Any]:
    """Return what takes a limit from a record: what ends no run of a kind says nothing of it."""

    def limit(metrics: Record) -> Any:
        if metrics.config.floor or (name != "stored_floats" and takes_no_step(metrics)):
            return None
        given = getattr(metrics.config.budget, name, None)
        return NO_LIMIT if given is None else given

    return limit


def takes_no_step(metrics: Record) -> bool:
    """Whether nothing was trained by gradients, as is counted: passes and seconds end no such run.

    A record of a version that counted no steps is taken for one of a run that took some.
    """
    cost = metrics.cost
    return bool(cost.training_steps) and not any(cost.training_steps) and not metrics.trainable


def _epochs(metrics: Record) -> Any:
    """Return how many epochs there are, unless a budget says how much training there is."""
    budget = metrics.config.budget
    if budget is not None and budget.limits.keys() & {"passes", "seconds"}:
        return None
    return metrics.config.strategy.options.get("train_epochs")


BUDGETS = {
    "budget of passes": _budget("passes"),
    "budget of seconds": _budget("seconds"),
    "budget of stored floats": _budget("stored_floats"),
}
# Whatever the seed. A value of None says nothing and is compared with nothing.
_ALWAYS: dict[str, Callable[[Record], Any]] = {
    "data set": dataset,
    "scenario": lambda m: m.protocol.scenario,
    "experiences": lambda m: m.experiences.total,
    "classes": lambda m: len(_classes(m)),
    "training images": lambda m: sum(_images(m, "train_images")),
    "test images": lambda m: sum(_images(m, "test_images")),
    "tested on": tested_on,
    ORDERING: _ordering,
    "hash of the split": lambda m: m.protocol.split_sha256,
    "hash of the manifest": lambda m: m.protocol.manifest_sha256,
    "weights of the backbone": lambda m: m.weights_sha256,
    "normalisation": lambda m: m.protocol.normalisation,
    "task label at test": lambda m: "used" if m.protocol.task_label_at_test else "not used",
    "precision": lambda m: m.protocol.precision,
    "training epochs": _epochs,
    **BUDGETS,
}
# A folder may have any name where the hash of the split says what is in it.
_COMPARED = _ALWAYS | {
    "data set": lambda m: (
        None if m.protocol.split_sha256 and _is_folder(m.config.benchmark.name) else dataset(m)
    )
}
# Of runs with the same seed.
_SEEDED: dict[str, Callable[[Record], Any]] = {
    "class order": lambda m: m.protocol.class_order,
    "class names": lambda m: [experience.class_names for experience in m.protocol.experiences],
    "training images of each experience": lambda m: _images(m, "train_images"),
    "test images of each experience": lambda m: _images(m, "test_images"),
    "seed of the benchmark": lambda m: m.config.benchmark.options.get("seed"),
}
# what pairs must share
_STREAM = (
    "data set",
    "scenario",
    "experiences",
    "tested on",
    "hash of the split",
    "hash of the manifest",
)


def protocol_of(run: RunRecord) -> dict[str, Any]:
    """Return the points of a run's protocol that do not depend on its seed, by name."""
    return {key: value(run.record) for key, value in _ALWAYS.items()}


def protocol_differences(runs: Sequence[RunRecord]) -> tuple[Difference, ...]:
    """Return where ``runs`` do not share one protocol.

    Data set (of a folder of images the hash of the split, if known, not its name), scenario,
    number of experiences, classes and images, what was tested on, whether the
    class order is drawn, manifest, weights, normalisation, use of a task label at test, precision,
    training epochs and budget are compared among all; class order, class names, images of each
    experience and seed of the benchmark (of subsets and chunks) among runs of the same seed. What a
    run does not have (a manifest, epochs of a method that does not train) is compared with nothing,
    nor are epochs under a budget of passes or seconds, nor is a budget of floors, and one of passes
    or seconds of what takes no step of an optimizer.

    Args:
        runs: Runs that could be read.

    Returns:
        One difference a key, and a seed where it depends on that; none if the protocol is one.
    """
    differences = [_difference(key, value, runs) for key, value in _COMPARED.items()]
    for seed in sorted({run.record.seed for run in runs}):
        differences += _of_one_seed(seed, runs)
    return tuple(found for found in differences if found is not None)


def same_streams(runs: Sequence[RunRecord]) -> bool:
    """Whether runs with the same seed saw the same stream, so that they can be paired."""
    shared = (_difference(key, _COMPARED[key], runs) for key in _STREAM)
    seeds = {run.record.seed for run in runs}
    return not any(shared) and not any(_of_one_seed(seed, runs) for seed in seeds)


def shorten(value: Any) -> str:
    """Return a value of the protocol as text of at most 60 characters.

    Example:
        >>> shorten([3, 1, 2]), shorten({"img_size": 32, "std": [0.5]}), shorten("0" * 64)
        ('3, 1, 2', 'img_size 32, std (0.5)', '000000000000...')
    """
    if isinstance(value, str):
        digest = re.fullmatch(r"[0-9a-f]{64}", value)
        text = value[:12] + "..." if digest else value
    elif isinstance(value, Mapping):
        text = ", ".join(f"{key} {_inner(inner)}" for key, inner in value.items())
    elif isinstance(value, list):
        text = ", ".join(map(_inner, value))
    else:
        text = str(value)
    return text if len(text) <= _LONG else text[: _LONG - 3].rstrip(", ") + "..."


def _of_one_seed(seed: int, runs: Sequence[RunRecord]) -> list[Difference]:
    """Return the first difference between the runs of ``seed``; the later ones follow from it."""
    same = [run for run in runs if run.record.seed == seed]
    found = (_difference(key, value, same, seed) for key, value in _SEEDED.items())
    first = next((difference for difference in found if difference is not None), None)
    return [] if first is None else [first]


def _difference(
    key: str, value: Callable[[Record], Any], runs: Sequence[RunRecord], seed: int | None = None
) -> Difference | None:
    by_value: dict[str, list[RunRecord]] = {}
    shown: dict[str, str] = {}
    for run in runs:
        found = value(run.record)
        if found is not None:
            token = json.dumps(found, sort_keys=True)
            by_value.setdefault(token, []).append(run)
            shown[token] = shorten(found)
    if len(by_value) < 2:
        return None
    return Difference(
        key, tuple((shown[token], tuple(those)) for token, those in by_value.items()), seed
    )


def _folders(runs: Sequence[RunRecord]) -> str:
    named = ", ".join(str(run.folder) for run in runs[:_FEW])
    more = len(runs) - _FEW
    return named if more <= 0 else f"{named} and {more} more"


def _inner(value: Any) -> str:
    if isinstance(value, list):
        return "(" + ", ".join(map(_inner, value)) + ")"
    return str(value)
