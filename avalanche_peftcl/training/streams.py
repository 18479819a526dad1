"""Which classes an Avalanche experience holds, whatever kind of benchmark it comes from."""

from typing import Any

from avalanche.training.utils import _at_task_boundary

from avalanche_peftcl.models.networks.dynamic import class_counts as class_counts
from avalanche_peftcl.models.networks.dynamic import class_pairs as class_pairs


def whole_experience(experience: Any) -> Any:
    """Return the experience that an online chunk was cut from, where its boundaries are known."""
    if getattr(experience, "access_task_boundaries", False):
        return experience.origin_experience
    return experience


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
