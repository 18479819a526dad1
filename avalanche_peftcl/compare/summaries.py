"""What metrics told in runs' records, typed: kernels and accuracies at any time.

A metric may be anybody's, so what does not fit is left out with its reason.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Generic, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from avalanche_peftcl.compare.comparison import Comparison
from avalanche_peftcl.compare.methods import Method
from avalanche_peftcl.runs.names import full_names, numbered
from avalanche_peftcl.runs.reading import problem
from avalanche_peftcl.runs.record import RunRecord
from avalanche_peftcl.runs.schema import Count, Fraction

_LARGE = 1e100  # squares of what is smaller can be added up
Number = Annotated[float, Field(ge=-_LARGE, le=_LARGE)]
Size = Annotated[float, Field(ge=0, le=_LARGE)]
Overlap = Annotated[float, Field(ge=0, le=100)]


class Summary(BaseModel):
    """What a metric told; what is not drawn is left alone."""

    model_config = ConfigDict(frozen=True, strict=True, allow_inf_nan=False)

    @property
    def experiences(self) -> int:
        """Those that it tells of."""
        raise NotImplementedError


class Forgetting(Summary):
    """What training on one experience did to an earlier one.

    Args:
        experience: The earlier one, from 0.
        after: The one that was trained.
        predicted: Before its training.
        measured: After it.
    """

    experience: Count
    after: Count
    predicted: Number | None
    measured: Number | None


class Kernels(Summary):
    """See ``NTKMetric.summary``.

    Args:
        form: Which of the outputs the kernel is of.
        probe_images: Of each experience.
        kernel_map: How much the kernels of two experiences overlap, ``(T, T)``.
        drift_from_first: How far the kernel moved since the first experience, one an experience.
        drift_across_switch: How far it moved in each experience.
        forgetting: Predicted and measured.
    """

    form: str | None = None
    probe_images: Count | None = None
    kernel_map: list[list[Overlap | None]]
    drift_from_first: list[Size | None]
    drift_across_switch: list[Size | None]
    forgetting: list[Forgetting]

    @property
    def experiences(self) -> int:
        """Those that it tells of."""
        pairs = [max(pair.experience, pair.after) + 1 for pair in self.forgetting]
        drifts = len(self.drift_from_first), len(self.drift_across_switch)
        return max([len(self.kernel_map), *drifts, *pairs])

    @model_validator(mode="after")
    def _is_square(self) -> Self:
        if any(len(row) != len(self.kernel_map) for row in self.kernel_map):
            raise ValueError("kernel_map is not square")
        return self


class AnyTime(Summary):
    """See ``AnyTimeMetric.summary``.

    Args:
        iterations: Of training, at each point.
        experience: The one that trained there.
        accuracy: On what was seen, there.
        area: Under that curve.
        minimum: Of the accuracy on each experience since it was learned.
        average_minimum: Their mean.
        worst_case: See :func:`.functional.any_time.worst_case_accuracy`.
    """

    iterations: list[Count]
    experience: list[Count]
    accuracy: list[Fraction | None]
    area: Fraction | None
    minimum: list[Fraction | None]
    average_minimum: Fraction | None
    worst_case: Fraction | None

    @property
    def experiences(self) -> int:
        """Those that it tells of."""
        return max([len(self.minimum), *(number + 1 for number in self.experience)])

    @model_validator(mode="after")
    def _is_a_curve(self) -> Self:
        if not len(self.iterations) == len(self.experience) == len(self.accuracy):
            raise ValueError("iterations, experience and accuracy are not of as many points")
        steps = zip(self.iterations, self.iterations[1:], strict=False)
        if any(later <= one for one, later in steps):
            raise ValueError("iterations do not rise")
        return self


S = TypeVar("S", bound=Summary)


@dataclass(frozen=True)
class Told(Generic[S]):
    """What the runs of a comparison tell of one thing.

    Args:
        by_method: Of each method that tells it, one summary a seed, and the seeds.
        left_out: A line for each that could not be used.
    """

    by_method: dict[Method, dict[int, S]]
    left_out: tuple[str, ...]

    def __bool__(self) -> bool:
        """Whether there is anything to say."""
        return bool(self.by_method or self.left_out)


def told(comparison: Comparison, metric: str, kind: type[S]) -> Told[S]:
    """Read what the metrics of one class told.

    Args:
        comparison: Whose runs.
        metric: Name of the class.
        kind: What it is read as.
    """
    found: dict[Method, dict[int, S]] = {}
    left: list[str] = []
    for method in comparison.methods:
        for run in method.runs:
            if metric not in run.record.metric_summaries:
                continue
            try:
                summary = _read(run, metric, kind)
            except ValueError as error:
                left.append(f"Left out: what {metric} told in {run.folder}: {error}.")
            else:
                found.setdefault(method, {})[run.record.seed] = summary
    return Told(found, tuple(left))


def experience_names(runs: Sequence[RunRecord], *, longest: int = 14) -> list[str]:
    """Return number and name of each experience, where all runs agree, else the numbers.

    The name is that of its domain, or those of its classes.

    Args:
        runs: Of a comparison.
        longest: Characters of a name; the rest is cut off.
    """
    streams = [full_names(run.record.protocol) for run in runs]
    size = max(map(len, streams))
    if any(names != streams[0] for names in streams):
        return [str(number) for number in range(1, size + 1)]
    return numbered(streams[0], longest=longest)


def _read(run: RunRecord, metric: str, kind: type[S]) -> S:
    """Return a summary; a ``ValueError`` says in words why it is none."""
    try:
        summary = kind.model_validate(run.record.metric_summaries[metric])
    except ValidationError as error:
        raise ValueError(problem(error)) from error
    total = run.record.experiences.total
    if summary.experiences > total:
        raise ValueError(f"it is of {summary.experiences} experiences, and the run has {total}")
    return summary
