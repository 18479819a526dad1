"""Which classes an Avalanche experience holds, whatever kind of benchmark it comes from."""

from typing import Any

from avalanche.training.utils import _at_task_boundary


def class_pairs(experience: Any) -> list[tuple[int, int]]:
    """Return the ``(task label, class)`` pairs of an experience's images, sorted.

    They are read from the dataset, so that streams without ``classes_in_this_experience`` or
    without task labels (then 0) work too.
    """
    dataset = experience.dataset
    targets = [int(y) for y in dataset.targets]
    labels = getattr(dataset, "targets_task_labels", None)
    tasks = [0] * len(targets) if labels is None else [int(t) for t in labels]
    return sorted(set(zip(tasks, targets, strict=True)))


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
