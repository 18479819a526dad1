"""The record of a run, typed, as it lies in ``metrics.json``; no torch."""

import re
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, WrapValidator, model_validator

from avalanche_peftcl.config import RunConfig

RECORD = "metrics.json"
FLOORS = "floors"  # folder of further runs in a run's folder, which no other run touches
SEED_FOLDER = re.compile(r"seed[0-9]+")  # of a run of a sweep, which no other run touches
FORMAT = 2  # of the records that are written
FORMATS = (1, 2)  # that can be read; 1 has the accuracy matrix in this file

_ROUNDING = 1e-9
Fraction = Annotated[float, Field(ge=-_ROUNDING, le=1 + _ROUNDING)]
Change = Annotated[float, Field(ge=-1 - _ROUNDING, le=1 + _ROUNDING)]
Count = Annotated[int, Field(ge=0)]
Seconds = Annotated[float, Field(ge=0)]
Passes = Annotated[float, Field(ge=0)]  # for each training image
Row = list[Fraction | None]


def _unless_it_grows(value: Any, check: Callable[[Any], list[Row]]) -> Any:
    """Check rows that were read; those of a run that goes on are made when they are asked for."""
    return check(value) if isinstance(value, list) or not isinstance(value, Sequence) else value


class _Part(BaseModel):
    """A part of a record; what this version has no use for is left alone."""

    model_config = ConfigDict(frozen=True, strict=True, allow_inf_nan=False)


class Settings(RunConfig):
    """The configuration as recorded; that of another version may have further keys."""

    model_config = ConfigDict(extra="allow")


class Provided(_Part):
    """Where a component came from."""

    kind: str
    name: str
    provider: str
    version: str
    source: str = ""


class Experience(_Part):
    """One training experience, and the test images of the same number."""

    classes: list[int]
    class_names: list[str]
    train_images: Count
    test_images: Count


class Stream(_Part):
    """The data: what a run that goes on must find again.

    Args:
        scenario: What the benchmark says of itself.
        split_sha256: Hash of the images' names and sizes, classes, domains and splits.
        manifest_sha256: Hash of their contents too; ``None`` unless a manifest was checked.
        domains: Names of the domains, in the order of the experiences.
        class_order: Original class of each class id.
        normalisation: What the backbone expects of an image.
        tested_on: ``"test images"`` or ``"held-out training images"``.
        test_images: All of them.
        experiences: Of an online stream, those that it was cut from.
    """

    scenario: str | None
    split_sha256: str | None = None
    manifest_sha256: str | None = None
    domains: list[str] | None = None
    class_order: list[int] | None
    normalisation: dict[str, Any]
    tested_on: str | None = None
    test_images: Count | None = None
    experiences: list[Experience]


class Protocol(Stream):
    """What an evaluation depends on besides the method.

    Args:
        task_label_at_test: Whether a prediction may lean on a task label.
        batch_independence: Whether one leans on the other images of its minibatch:
            ``"tested"``, ``"stated"``, ``"dependent"`` or ``"not stated"``.
        precision: In words.
        left_out: Images of the data set that are in no experience, by split; ``None`` of a
            benchmark that leaves out none.
    """

    task_label_at_test: bool
    batch_independence: str | None = None
    precision: str | None = None
    left_out: dict[str, Count] | None = None


class Progress(_Part):
    """How far the run came, in experiences."""

    total: Count
    finished: Count


class Parameter(_Part):
    """A parameter that trained."""

    name: str
    shape: list[Count]


class Accuracy(_Part):
    """Numbers that follow from the accuracy matrix, as fractions; ``None`` where undefined.

    Their formulas are in :mod:`avalanche_peftcl.functional.accuracy_matrix`.
    """

    average_accuracy: Fraction | None = None
    average_incremental_accuracy: Fraction | None
    last_accuracy: Fraction | None
    forgetting: Change | None
    clipped_forgetting: Change | None = None
    backward_transfer: Change | None = None
    forward_transfer: Change | None = None
    learning_accuracy: Fraction | None = None
    accuracy_curve: list[Fraction | None]
    per_task: list[Fraction | None] = []
    forgetting_by_experience: list[Change | None] = []

    def headlines(self) -> dict[str, float | None]:
        """Return the numbers that are shown first, by their names in words."""
        return {name: getattr(self, key) for key, name in HEADLINES.items()}


HEADLINES = {
    "average_incremental_accuracy": "average accuracy",
    "last_accuracy": "last accuracy",
    "forgetting": "forgetting",
}


class Cost(_Part):
    """What the run cost; see :meth:`.CostMetric.summary`."""

    trainable_parameters: Count
    total_parameters: Count | None = None
    trainable_share: Fraction | None = None
    stored_floats: Count | None = None
    forward_passes: Count | None = None
    training_passes: list[Passes] = []
    training_steps: list[Count] = []
    training_seconds: list[Seconds]
    evaluation_seconds: list[Seconds] = []
    peak_memory_bytes: Count | None = None

    def passes_per_image(self, train_images: Sequence[int]) -> float | None:
        """Return the passes that training took for each training image of the stream.

        Args:
            train_images: Of each experience.

        Returns:
            ``None`` of a record of a version that counted none.

        Example:
            >>> cost = Cost(trainable_parameters=1, training_seconds=[], training_passes=[1.0, 4.0])
            >>> cost.passes_per_image([20, 10])
            2.0
        """
        counted, total = self.training_passes, sum(train_images[: len(self.training_passes)])
        if not total:
            return None
        return sum(p * n for p, n in zip(counted, train_images, strict=False)) / total


class Overlap(_Part):
    """Which classes of the stream the backbone's pre-training had labels for.

    Args:
        pretrained_on: Sets of labels; empty of random weights.
        classes: How many the stream has.
        known: Those that are labels there, by name or by WordNet's id.
        kinds: Further ones of which there are labels for kinds: "dog" of "Eskimo dog".
    """

    pretrained_on: list[str]
    classes: Count
    known: list[str]
    kinds: list[str]

    def said(self, *, most: int = 10) -> str:
        """Return it in words.

        Args:
            most: Names that are listed of each.

        Example:
            >>> Overlap(pretrained_on=["imagenet-1k"], classes=4, known=["hen"], kinds=[]).said()
            'of 4 classes, labels of imagenet-1k name 1 (hen), and kinds of 0 others'
        """
        if not self.pretrained_on:
            return "none: its weights are random"
        known, kinds = (
            f" ({', '.join(names[:most])}{', ...' * (len(names) > most)})" if names else ""
            for names in (self.known, self.kinds)
        )
        return (
            f"of {self.classes} classes, labels of {' and '.join(self.pretrained_on)} name "
            f"{len(self.known)}{known}, and kinds of {len(self.kinds)} others{kinds}"
        )


class Record(_Part):
    """Everything that a run recorded.

    Args:
        format: Version of the layout.
        seed: The run's seed.
        config: Its settings, with every default.
        components: What it was made of.
        weights_sha256: Hash of the backbone's weights.
        model_name: timm's name of the backbone.
        platform: What it computed on.
        versions: Of Python and the packages.
        resume_obstacles: Why it could not be resumed.
        joint: Whether it trained on all experiences at once: only the last row of the accuracy
            matrix is there, and no number that needs another is defined.
        files: Names in its folder that are its own.
        started_at: When it began, as ISO 8601, like the next two.
        resumed_at: When it went on from a checkpoint.
        written_at: When this was written.
        complete: Whether all experiences are finished.
        experiences: How many are.
        protocol: What its evaluation depends on besides the method.
        overlap: What of the classes the backbone's pre-training knew; ``None`` where nobody knows.
        trainable: What trained in the last experience.
        accuracy: Numbers that follow from the accuracy matrix.
        per_domain: Last accuracy on each domain by name; ``None`` of other streams.
        cost: What it cost.
        further_metrics: By name the values of all further metrics, one an experience, ``None``
            where there was none.
        metric_summaries: What further metrics tell beside their values, by their class.
        plugins: What plugins tell, by their class.
        notes: What they said after each experience.
        not_exported: Why its network was not kept.
        test_images: Of each experience.
        baseline: Accuracy on each experience before any training.
        accuracy_matrix: Row by row; in a file of its own, see :class:`.MatrixFile`.
    """

    format: int
    seed: Count
    config: Settings
    components: list[Provided]
    weights_sha256: str
    model_name: str | None = None
    platform: dict[str, str | int | None]
    versions: dict[str, str]
    resume_obstacles: list[str] = []
    joint: bool = False
    files: list[str] = []
    started_at: str | None = None
    resumed_at: list[str] = []
    written_at: str
    complete: bool
    experiences: Progress
    protocol: Protocol
    overlap: Overlap | None = None
    trainable: list[Parameter] = []
    accuracy: Accuracy
    per_domain: dict[str, Fraction | None] | None = None
    cost: Cost
    further_metrics: dict[str, list[float | None]] = {}
    metric_summaries: dict[str, Any] = {}
    plugins: dict[str, Any] = {}
    notes: list[list[str]] = []
    not_exported: str | None = None
    test_images: list[Count] = []
    baseline: list[Fraction | None] = []
    accuracy_matrix: Annotated[Sequence[Row], WrapValidator(_unless_it_grows)] = Field(exclude=True)

    @property
    def ended(self) -> bool:
        """Whether all that the run was asked for is finished, which may be less than all."""
        asked = self.config.stop_after or self.experiences.total
        return self.complete or self.experiences.finished >= asked

    @model_validator(mode="before")
    @classmethod
    def _last_values_alone(cls, given: Any) -> Any:
        """Take the last values of further metrics, all that records had once, for what they are."""
        further = given.get("further_metrics") if isinstance(given, dict) else None
        if not isinstance(further, dict) or not any(map(_is_number, further.values())):
            return given
        done = len(given["notes"]) if isinstance(given.get("notes"), list) else 1
        earlier = [None] * (done - 1)
        return given | {
            "further_metrics": {
                k: [*earlier, v] if _is_number(v) else v for k, v in further.items()
            }
        }

    @model_validator(mode="after")
    def _fits(self) -> Self:
        total = self.experiences.total
        if self.complete and not (
            total
            == len(self.protocol.experiences)
            == len(self.accuracy.accuracy_curve)
            == len(self.accuracy_matrix)
            and all(len(row) == total for row in self.accuracy_matrix)
        ):
            raise ValueError(f"accuracy matrix, curve and protocol are not of {total} experiences")
        return self


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)
