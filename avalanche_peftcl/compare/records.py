"""Find run records in folders and read those that can be read; the others with their reason."""

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from avalanche_peftcl.config import ComponentConfig
from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.runs.matrix_file import MATRIX_FILE, read_matrix

FORMATS = (1, 2)  # of the records that can be read; 1 has the accuracy matrix in this file
FILE = "metrics.json"

_DEEP = 50
_ROUNDING = 1e-9
Fraction = Annotated[float, Field(ge=-_ROUNDING, le=1 + _ROUNDING)]
Count = Annotated[int, Field(ge=0)]
Seconds = Annotated[float, Field(ge=0)]


class _Part(BaseModel):
    """A part of ``metrics.json``; what comparison has no use for is left alone."""

    model_config = ConfigDict(frozen=True, strict=True, allow_inf_nan=False)


class Settings(_Part):
    """The configuration as recorded: the components, and whatever else there is beside them."""

    model_config = ConfigDict(frozen=True, strict=True, extra="allow")

    backbone: ComponentConfig
    module: ComponentConfig | None = None
    head: ComponentConfig | None = None
    benchmark: ComponentConfig
    strategy: ComponentConfig
    plugins: list[ComponentConfig] = []


class Provided(_Part):
    """Where a component came from."""

    kind: str
    name: str
    provider: str
    version: str


class Experience(_Part):
    """One experience of the stream."""

    classes: list[int]
    class_names: list[str]
    train_images: Count
    test_images: Count


class Protocol(_Part):
    """What an evaluation depends on besides the method."""

    scenario: str | None
    class_order: list[int] | None
    normalisation: dict[str, Any]
    experiences: list[Experience]
    task_label_at_test: bool
    tested_on: str | None = None
    precision: str | None = None
    split_sha256: str | None = None
    manifest_sha256: str | None = None


class Progress(_Part):
    """How far the run came."""

    total: Count
    finished: Count


class Accuracy(_Part):
    """Numbers that follow from the accuracy matrix, as fractions."""

    average_incremental_accuracy: Fraction | None
    last_accuracy: Fraction | None
    forgetting: Annotated[float, Field(ge=-1 - _ROUNDING, le=1 + _ROUNDING)] | None
    accuracy_curve: list[Fraction | None]


class Cost(_Part):
    """What the run cost."""

    trainable_parameters: Count
    training_seconds: list[Seconds]


class Metrics(_Part):
    """The part of ``metrics.json`` that comparison needs."""

    seed: Count
    complete: bool
    written_at: str
    experiences: Progress
    config: Settings
    components: list[Provided]
    weights_sha256: str
    model_name: str | None = None
    platform: dict[str, str | int | None]
    versions: dict[str, str]
    protocol: Protocol
    accuracy: Accuracy
    cost: Cost
    accuracy_matrix: list[list[Fraction | None]]

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


@dataclass(frozen=True)
class Run:
    """A run record that could be read.

    Args:
        folder: Where it is, as found.
        metrics: What it says.
    """

    folder: Path
    metrics: Metrics


@dataclass(frozen=True)
class LeftOut:
    """A run record that is not compared.

    Args:
        folder: Where it is, as found.
        reason: Why.
    """

    folder: Path
    reason: str


def find_records(folders: Sequence[Path]) -> list[Path]:
    """Return the folders that hold a run record.

    Args:
        folders: Run records, or folders with run records at any depth below them.

    Returns:
        Each record once: those of the first folder, sorted by path, then those of the next.

    Raises:
        ConfigError: If one of ``folders`` is no folder, cannot be read or holds no record.
    """
    found: dict[Path, Path] = {}
    for folder in folders:
        if not folder.is_dir():
            what = "is a file" if folder.exists() else "does not exist"
            raise ConfigError(
                f"{folder} {what}; give the folder of a run record or one that contains run records"
            )
        records = list(_below(folder))
        if not records:
            raise ConfigError(
                f"there is no run record in {folder} or below it: no file {FILE}; "
                "peftcl run writes one into its output folder"
            )
        for record in records:
            found.setdefault(record.resolve(), record)
    return list(found.values())


def read_record(folder: Path) -> Run | LeftOut:
    """Read one run record.

    Args:
        folder: Its folder.

    Returns:
        The run, complete or not; with its reason, what cannot be read.
    """
    path = folder / FILE
    if not (path.is_file() or path.is_dir()):  # a pipe would be waited for
        return LeftOut(folder, f"{FILE} is no file")
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text, parse_constant=_refuse)
        _check_plain(content)
    except UnicodeError:
        return LeftOut(folder, f"{FILE} is not a text file in UTF-8")
    except OSError as error:
        return LeftOut(folder, f"{FILE} cannot be read: {error.strerror or error}")
    except json.JSONDecodeError as error:
        return LeftOut(
            folder,
            f"{FILE} is not valid JSON, cut off perhaps: {error.msg} in line {error.lineno}, "
            f"column {error.colno}",
        )
    except (ValueError, RecursionError) as error:
        return LeftOut(folder, f"{FILE} is not valid JSON: {' '.join(str(error).split())}")
    if not isinstance(content, dict) or "format" not in content:
        return LeftOut(folder, f"{FILE} is not that of a run: it has no key 'format'")
    if content["format"] not in FORMATS:
        return LeftOut(
            folder,
            f"the record has format {content['format']!r:.40}; this version reads formats "
            f"{' and '.join(map(str, FORMATS))}",
        )
    try:
        if content["format"] != 1:
            content["accuracy_matrix"] = read_matrix(folder, content["experiences"]["finished"])
    except OSError as error:
        return LeftOut(folder, f"{MATRIX_FILE} cannot be read: {error.strerror or error}")
    except ValueError as error:
        return LeftOut(folder, str(error))
    except (LookupError, TypeError) as error:
        return LeftOut(folder, f"{FILE} is not as it should be: {error!r}")
    try:
        return Run(folder, Metrics.model_validate(content))
    except ValidationError as error:
        return LeftOut(folder, f"{FILE} is not as it should be: {_problem(error)}")


def _below(folder: Path) -> Iterator[Path]:
    """Yield every folder with a record, sorted; a folder that cannot be listed is an error."""

    def fail(error: OSError) -> None:
        raise ConfigError(f"{error.filename} cannot be read: {error.strerror}") from error

    for here, below, files in os.walk(folder, onerror=fail):
        below.sort()
        if FILE in files:
            yield Path(here)


def _check_plain(content: Any) -> None:
    """Refuse what could not be shown: half characters, and nesting without end."""
    stack = [(content, 0)]
    while stack:
        value, depth = stack.pop()
        if depth > _DEEP:
            raise ValueError(f"it is nested more than {_DEEP} levels deep")
        if isinstance(value, str):
            value.encode()
        elif isinstance(value, dict | list):
            inner = [*value, *value.values()] if isinstance(value, dict) else value
            stack += [(each, depth + 1) for each in inner]


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number")


def _problem(error: ValidationError) -> str:
    """Say the first of pydantic's errors in plain words."""
    details = error.errors()[0]
    where = ".".join(map(str, details["loc"]))
    said = details["msg"].removeprefix("Value error, ")
    if details["type"] == "missing":
        return f"the key {where!r} is missing"
    return f"{where}: {said}" if where else said
