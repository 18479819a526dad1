"""Which classes an Avalanche experience holds, whatever kind of benchmark it comes from."""

from collections.abc import Sequence
from typing import Any

from avalanche.benchmarks import OnlineCLExperience
from avalanche.training.utils import _at_task_boundary

from avalanche_peftcl.models.networks.dynamic import class_counts as class_counts
from avalanche_peftcl.models.networks.dynamic import class_names as class_names
from avalanche_peftcl.models.networks.dynamic import class_pairs as class_pairs
from avalanche_peftcl.models.networks.dynamic import offers_of_benchmark


def captions(experience: Any) -> Sequence[Sequence[str]] | None:
    """Return the texts of each target, where the experience is of captioned images."""
    return offers_of_benchmark(experience).captions


def is_chunk(experience: Any) -> bool:
    """Whether ``experience`` is a chunk of an online stream, of which each image is seen once."""
    return isinstance(experience, OnlineCLExperience)


def knows_boundaries(experience: Any) -> bool:
    """Whether it is known where the experience begins that ``experience`` is, or is a chunk of."""
    return not is_chunk(experience) or bool(experience.access_task_boundaries)


def whole_experience(experience: Any) -> Any:
    """Return the experience that an online chunk was cut from, where its boundaries are known."""
    if is_chunk(experience) and knows_boundaries(experience):
        return experience.origin_experience
    return experience


def number_of(experience: Any) -> int:
    """Return the number of the whole experience in its stream, from 1."""
    return int(whole_experience(experience).current_experience) + 1


def starts_experience(experience: Any) -> bool:
    """Whether training on ``experience`` begins a new one: false within a cut experience."""
    return bool(_at_task_boundary(experience, before=True))


def ends_experience(experience: Any) -> bool:
    """Whether training on ``experience`` ends one: false before the last chunk of a cut one."""
    return bool(_at_task_boundary(experience, before=False))


def stream_length(experience: Any) -> int | None:
    """Return the number of experiences in the stream, ``None`` where it has no length."""
    stream = getattr(whole_experience(experience), "origin_stream", None)
    try:
        return None if stream is None else len(stream)
    except TypeError:
        return None
