"""Published numbers, each with its source: quoted beside own runs, never mixed with them."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Annotated, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from avalanche_peftcl.compare.alike import dataset, tested_on
from avalanche_peftcl.registry.component import Scenario
from avalanche_peftcl.runs.record import RunRecord
from avalanche_peftcl.runs.schema import Record

Text = Annotated[str, Field(min_length=1)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)


class Stream(_Part):
    """A data set and how it is cut into experiences.

    Args:
        dataset: As the source calls it; ``None`` where it is not stated.
        names: Names it may have in a run record, see :func:`.alike.dataset`.
        experiences: How many; ``None`` where it is not stated.
        classes: New classes of each experience: one number if all have as many.
    """

    dataset: Text | None
    names: list[Text]
    experiences: Annotated[int, Field(ge=1)] | None
    classes: Annotated[int, Field(ge=1)] | list[Annotated[int, Field(ge=1)]] | None

    @property
    def title(self) -> str:
        """Data set and number of experiences."""
        return f"{self.dataset}, {self.experiences} experiences"

    @property
    def sizes(self) -> list[int] | None:
        """Classes of each experience; ``None`` where it is not stated."""
        if self.experiences is None or self.classes is None:
            return None
        return self.classes if isinstance(self.classes, list) else [self.classes] * self.experiences

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if isinstance(self.classes, list) and len(self.classes) != self.experiences:
            raise ValueError(f"{self.dataset}: classes are not of {self.experiences} experiences")
        return self


class Definition(_Part):
    """A number as its source defines it.

    Args:
        name: As the source calls it.
        definition: What it is.
        column: The quantity it stands beside, see :mod:`.methods`; ``None`` if beside none.
        unit: ``"percent"``, or ``"points"`` for a difference.
    """

    name: Text
    definition: Text
    column: Literal["average_incremental_accuracy", "last_accuracy", "forgetting"] | None
    unit: Literal["percent", "points"] = "percent"


def _as_list(value: object) -> object:
    return value if isinstance(value, list) else [value]


Numbers = Annotated[list[float], Field(min_length=1), BeforeValidator(_as_list)]


class Result(_Part):
    """What a table says of one method: by stream, by metric.

    Args:
        method: As the source calls it.
        venue: Where the method was published.
        values: A number; a number and its spread if the table has spreads; or one a task.
    """

    method: Text
    venue: Text | None = None
    values: dict[str, dict[str, Numbers]]


class Table(_Part):
    """A table of one source, or another place that numbers were read from.

    ``models`` are the names that timm has for its weights; empty if timm has none, ``None`` where
    the source does not state them.
    """

    id: Text
    paper: Text
    reference: Text | None = None
    place: Text
    read_from: Text
    backbone: Text | None = None
    weights: Text | None = None
    models: list[Text] | None = None
    scenario: Scenario
    class_order: Text | None = None
    spread: Text | None = None
    note: Text | None = None
    metrics: list[Text]
    results: Annotated[list[Result], Field(min_length=1)]

    @property
    def source(self) -> str:
        """Short: reference, or the paper without one, and place."""
        return f"{self.reference or self.paper}, {self.place}"


class Published(_Part):
    """The file: streams and definitions by name, and tables that use those names."""

    unit: Literal["percent"]
    streams: dict[str, Stream]
    metrics: dict[str, Definition]
    tables: list[Table]

    @model_validator(mode="after")
    def _fits(self) -> Self:
        for table in self.tables:
            for result in table.results:
                for stream, values in result.values.items():
                    where = f"{table.id}, {result.method}, {stream}"
                    if stream not in self.streams:
                        raise ValueError(f"{where}: unknown stream")
                    for metric, numbers in values.items():
                        self._check(table, metric, numbers, f"{where}, {metric}")
        return self

    def _check(self, table: Table, metric: str, numbers: list[float], where: str) -> None:
        if metric not in table.metrics or metric not in self.metrics:
            raise ValueError(f"{where}: unknown metric")
        definition = self.metrics[metric]
        if definition.column and len(numbers) != 1 + bool(table.spread):
            raise ValueError(f"{where}: {len(numbers)} numbers; a spread is stated or not")
        lowest = -100 if definition.unit == "points" else 0
        if not all(lowest <= number <= 100 for number in numbers):
            raise ValueError(f"{where}: {numbers} is not in percent")


@dataclass(frozen=True)
class Quoted:
    """What one source says of one method on one stream.

    Args:
        method: As the source calls it.
        table: Where it was read.
        stream: What it was measured on.
        values: By quantity: the number and its spread, or ``None``, as fractions.
        definitions: By quantity: the number as its source defines it.
    """

    method: str
    table: Table
    stream: Stream
    values: dict[str, tuple[float, float | None]]
    definitions: dict[str, Definition]


@cache
def published() -> Published:
    """Return the published numbers that ship with the package.

    Example:
        >>> ntk = published().tables[0].results[-1]
        >>> ntk.method, ntk.values["cifar100-10"]
        ('NTK-CL', {'average': [93.76, 0.35], 'last': [90.27, 0.2]})
    """
    text = files("avalanche_peftcl").joinpath("assets/published.json").read_text(encoding="utf-8")
    return Published.model_validate_json(text)


def quoted_beside(runs: Sequence[RunRecord]) -> tuple[Quoted, ...]:
    """Return the published numbers whose protocol is that of one of ``runs``.

    Data set, scenario, number of experiences and classes of each must agree; a source that does not
    state them all is never quoted. Weights, and whether the class order is natural, must agree
    where a source states them. Nothing is quoted beside a run that was trained on a subset of the
    images (``train_per_class``), or tested on one, or tested on held-out training images.

    Args:
        runs: Complete runs.

    Returns:
        In the order of the file.
    """
    whole = [run.record for run in runs if _is_whole(run.record)]
    book, quoted = published(), []
    for table in book.tables:
        for result in table.results:
            for key, values in result.values.items():
                stream = book.streams[key]
                sizes = tuple(stream.sizes or ())
                wanted = {(_plain(name), table.scenario, sizes) for name in stream.names}
                if any(_protocol(own) in wanted and _agrees(own, table) for own in whole):
                    quoted.append(_quote(book, table, result.method, stream, values))
    return tuple(one for one in quoted if one.values)


def _quote(
    book: Published, table: Table, method: str, stream: Stream, values: dict[str, list[float]]
) -> Quoted:
    shown: dict[str, tuple[float, float | None]] = {}
    definitions: dict[str, Definition] = {}
    for metric, numbers in values.items():
        definition = book.metrics[metric]
        if definition.column is not None:
            spread = numbers[1] / 100 if len(numbers) > 1 else None
            shown[definition.column] = (numbers[0] / 100, spread)
            definitions[definition.column] = definition
    return Quoted(method, table, stream, shown, definitions)


def _protocol(metrics: Record) -> tuple[str, str | None, tuple[int, ...]]:
    sizes = tuple(len(experience.classes) for experience in metrics.protocol.experiences)
    return _plain(dataset(metrics)), metrics.protocol.scenario, sizes


def _is_whole(metrics: Record) -> bool:
    """Whether a run trained on all training images and was tested on test images."""
    options = metrics.config.benchmark.options
    subset = options.get("train_per_class") or options.get("test_per_class")
    return subset is None and tested_on(metrics) in (None, "test images")


def _agrees(metrics: Record, table: Table) -> bool:
    """Whether a run has the weights and the kind of class order of a table, if it states them."""
    options, order = metrics.config.backbone.options, metrics.protocol.class_order
    pretrained = options.get("pretrained") or options.get("checkpoint")
    names = {options.get("model_name"), metrics.model_name} if pretrained else set()
    if table.models is not None and names.isdisjoint(table.models):
        return False
    if table.class_order is None or order is None:
        return True
    return (table.class_order == "natural") == (order == sorted(order))


def _plain(name: str) -> str:
    """Return a name without case and signs, so that imagenet-r is ImageNet_R."""
    return re.sub(r"[^a-z0-9]", "", name.lower())
