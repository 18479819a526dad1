"""What the metrics of images and texts told: a line over the experiences and a table for each."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from avalanche_peftcl.compare.comparison import Comparison
from avalanche_peftcl.compare.methods import estimate_of
from avalanche_peftcl.compare.plots import PERCENT, Plot, Section, listed, over_experiences
from avalanche_peftcl.compare.sheets import Scale, cell
from avalanche_peftcl.compare.statistics import Estimate
from avalanche_peftcl.compare.summaries import Number, Summary, experience_names, told
from avalanche_peftcl.runs.schema import Fraction
from avalanche_peftcl.runs.tables import Sheet

_POINTS = Scale(100.0, "points", 1)
_PLAIN = Scale(1.0, "", 3)
_TOLD = 20  # sets whose accuracies are listed


class ImageSet(Summary):
    """Accuracy on a set that is never trained on, ``before`` the stream and ``after`` each."""

    before: Fraction | None
    after: list[Fraction | None]


class ZeroShot(Summary):
    """See ``ZeroShotRetentionMetric.summary``."""

    sets: dict[str, ImageSet]
    change: list[Number | None]

    @property
    def experiences(self) -> int:
        """Those that it tells of."""
        return max([len(self.change), *(len(each.after) for each in self.sets.values())])


class Found(Summary):
    """What is found between images and captions."""

    image_to_text_r1: Fraction | None
    text_to_image_r1: Fraction | None
    modality_gap: Number | None


class Retrieved(Summary):
    """See ``RetrievalMetric.summary``."""

    before: Found | None
    after: list[Found]

    @property
    def experiences(self) -> int:
        """Those that it tells of."""
        return len(self.after)


class WrongMatches(Summary):
    """See ``WrongMatchesMetric.summary``: after each experience a value of every earlier one."""

    rate: list[list[Fraction | None]]
    auc: list[list[Fraction | None]]
    frozen_rate: list[list[Fraction | None]]
    frozen_auc: list[list[Fraction | None]]

    @property
    def experiences(self) -> int:
        """Those that it tells of."""
        return max(map(len, (self.rate, self.auc, self.frozen_rate, self.frozen_auc)))


class Released(Summary):
    """See ``ReleasedAccuracyMetric.summary``."""

    with_leaked_task: list[Fraction | None]
    over_all_seen: list[Fraction | None]

    @property
    def experiences(self) -> int:
        """Those that it tells of."""
        return max(len(self.with_leaked_task), len(self.over_all_seen))


S = TypeVar("S", bound=Summary)
Column = tuple[Callable[[S], float | None], Scale]


@dataclass(frozen=True)
class _Kind(Generic[S]):
    """How what one metric told is shown.

    Args:
        metric: Name of its class.
        read: What it is read as.
        title: The heading.
        line: What is drawn, one value an experience.
        drawn: What that is called, and how it is shown.
        columns: Of the table, after the seeds.
        note: What it means.
    """

    metric: str
    read: type[S]
    title: str
    line: Callable[[S], Sequence[float | None]]
    drawn: tuple[str, Scale]
    columns: Callable[[Sequence[S]], Mapping[str, Column[S]]]
    note: str


def image_text_sections(comparison: Comparison) -> list[Section]:
    """Draw what metrics of images and texts told; nothing if no run tells it."""
    return [section for kind in _KINDS for section in _sections(comparison, kind)]


def _sections(comparison: Comparison, kind: _Kind[Any]) -> list[Section]:
    found = told(comparison, kind.metric, kind.read)
    if not found:
        return []
    if not found.by_method:
        return [Section(kind.title, (), found.left_out)]
    lines, words = {}, []
    name, scale = kind.drawn
    for method, summaries in found.by_method.items():
        each = [kind.line(summary) for summary in summaries.values()]
        values = [estimate_of([_at(one, i) for one in each]) for i in range(max(map(len, each)))]
        if any(value is not None for value in values):
            lines[method] = values
            words.append(f"{method.label} ends with {_last(values, scale)}")
    plots: tuple[Plot, ...] = ()
    if lines:
        axis = f"change ({scale.unit})" if scale is _POINTS else f"{name.lower()} ({scale.unit})"
        plots = (
            over_experiences(
                comparison,
                name,
                f"{name}: {listed(words)}.",
                lines,
                ("experiences trained", axis),
                scale=scale,
                names=experience_names(comparison.runs),
            ),
        )
    every = [s for summaries in found.by_method.values() for s in summaries.values()]
    columns = kind.columns(every)
    rows = tuple(
        (
            method.label,
            str(len(summaries)),
            *(
                cell(estimate_of([value(s) for s in summaries.values()]), scale)
                for value, scale in columns.values()
            ),
        )
        for method, summaries in found.by_method.items()
    )
    sheet = Sheet(kind.title, ("method", "seeds", *columns), rows)
    return [Section(kind.title, plots, (kind.note, *found.left_out), sheet)]


def _at(values: Sequence[float | None], place: int) -> float | None:
    return values[place] if -len(values) <= place < len(values) else None


def _last(values: Sequence[Estimate | None], scale: Scale) -> str:
    last = values[-1]
    return f"{scale.number(None if last is None else last.mean)} {scale.unit}".rstrip()


def _mean(row: Sequence[float | None]) -> float | None:
    defined = [value for value in row if value is not None]
    return sum(defined) / len(defined) if defined else None


def _of_sets(summaries: Sequence[ZeroShot]) -> dict[str, Column[ZeroShot]]:
    names = list(dict.fromkeys(name for s in summaries for name in s.sets))[:_TOLD]
    columns: dict[str, Column[ZeroShot]] = {}
    for name in names:
        columns[f"{name} before"] = (_set_of(name, lambda each: each.before), PERCENT)
        columns[f"{name} last"] = (_set_of(name, lambda each: _at(each.after, -1)), PERCENT)
    return columns | {"mean change": (lambda s: _at(s.change, -1), _POINTS)}


def _set_of(
    name: str, value: Callable[[ImageSet], float | None]
) -> Callable[[ZeroShot], float | None]:
    return lambda s: value(s.sets[name]) if name in s.sets else None


def _of_retrieval(_: Sequence[Retrieved]) -> dict[str, Column[Retrieved]]:
    columns: dict[str, Column[Retrieved]] = {}
    for title, name, scale in (
        ("image to text", "image_to_text_r1", PERCENT),
        ("text to image", "text_to_image_r1", PERCENT),
        ("gap", "modality_gap", _PLAIN),
    ):
        columns[f"{title} before"] = (_before(name), scale)
        columns[f"{title} last"] = (_after(name), scale)
    return columns


def _before(name: str) -> Callable[[Retrieved], float | None]:
    return lambda s: None if s.before is None else getattr(s.before, name)


def _after(name: str) -> Callable[[Retrieved], float | None]:
    return lambda s: getattr(s.after[-1], name) if s.after else None


def _of_matches(_: Sequence[WrongMatches]) -> dict[str, Column[WrongMatches]]:
    def last(name: str) -> Callable[[WrongMatches], float | None]:
        return lambda s: _mean(getattr(s, name)[-1]) if getattr(s, name) else None

    return {
        "wrong matches": (last("rate"), PERCENT),
        "of the frozen network": (last("frozen_rate"), PERCENT),
        "true from swapped (AUC)": (last("auc"), _PLAIN),
        "AUC of the frozen network": (last("frozen_auc"), _PLAIN),
    }


def _of_released(_: Sequence[Released]) -> dict[str, Column[Released]]:
    return {
        "over all classes seen": (lambda s: _at(s.over_all_seen, -1), PERCENT),
        "with the leaked task": (lambda s: _at(s.with_leaked_task, -1), PERCENT),
    }


_KINDS: tuple[_Kind[Any], ...] = (
    _Kind(
        "ZeroShotRetentionMetric",
        ZeroShot,
        "Zero-shot accuracy that is left",
        lambda s: s.change,
        ("Mean change of zero-shot accuracy", _POINTS),
        _of_sets,
        "By class names, on images that are never trained on, in percent: before the stream and "
        "after its last experience; the mean change is in points.",
    ),
    _Kind(
        "RetrievalMetric",
        Retrieved,
        "Retrieval of captioned images",
        lambda s: [each.image_to_text_r1 for each in s.after],
        ("Image-to-text recall at 1", PERCENT),
        _of_retrieval,
        "Recall at 1 in percent, before the stream and after its last experience; gap: between the "
        "mean image and the mean text.",
    ),
    _Kind(
        "WrongMatchesMetric",
        WrongMatches,
        "Old images that match later texts",
        lambda s: [_mean(row) for row in s.rate],
        ("Wrong matches of old images", PERCENT),
        _of_matches,
        "Share of earlier experiences' test images whose best text is of a later class, in "
        "percent, and how well true pairs are told from swapped ones; after the last experience, "
        "mean over earlier ones. The protocol is this package's own.",
    ),
    _Kind(
        "ReleasedAccuracyMetric",
        Released,
        "Accuracy as a release counts it",
        lambda s: s.with_leaked_task,
        ("Accuracy with the leaked task", PERCENT),
        _of_released,
        "In percent, after the last experience. With the leaked task classes are cut by the tasks "
        "of a minibatch: for comparison with published tables, and no accuracy.",
    ),
)
