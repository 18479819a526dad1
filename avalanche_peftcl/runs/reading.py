"""The one reader of run records; no torch."""

import json
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ValidationError

from avalanche_peftcl.errors import RecordError
from avalanche_peftcl.runs.matrix_file import MATRIX_FILE, read_matrix
from avalanche_peftcl.runs.schema import FORMATS, RECORD, Record

_DEEP = 50  # levels


def _texts(value: Any) -> list[str]:
    return [each for each in value if isinstance(each, str)] if isinstance(value, list) else []


Texts = Annotated[list[str], BeforeValidator(_texts)]


class Claim(BaseModel):
    """What a record of any version says of its folder: that a run of ours is there, and which.

    Args:
        format: Version of the record's layout.
        config: Settings of the run.
        experiences: How many are finished, of how many.
        complete: Whether all are.
        files: Names in the folder that are its own.
        started_at: When the run began.
        resumed_at: When it went on.
        resume_obstacles: Why it cannot go on.
    """

    format: Any
    config: dict[str, Any]
    experiences: dict[str, Any]
    complete: Annotated[bool, BeforeValidator(lambda value: value is True)] = False
    files: Texts = []
    started_at: Any = None
    resumed_at: Texts = []
    resume_obstacles: Texts = []

    @property
    def finished(self) -> int:
        """Experiences that are finished."""
        found = self.experiences.get("finished")
        return found if isinstance(found, int) else 0


def read_claim(folder: Path) -> Claim | None:
    """Return whose run is in a folder, whatever version wrote it; ``None`` if no record tells."""
    path = folder / RECORD
    try:
        if not path.is_file():  # a pipe would be waited for
            return None
        return Claim.model_validate(json.loads(path.read_bytes()))
    except (OSError, ValueError, RecursionError):
        return None


def read_record(folder: Path) -> Record:
    """Read the record in a run's folder, complete or not.

    Args:
        folder: The folder.

    Raises:
        RecordError: With the reason; the folder is not named.
    """
    content = _content(folder / RECORD)
    if not isinstance(content, dict) or "format" not in content:
        raise RecordError(f"{RECORD} is not that of a run: it has no key 'format'")
    if content["format"] not in FORMATS:
        raise RecordError(
            f"the record has format {content['format']!r:.40}; this version reads formats "
            f"{' and '.join(map(str, FORMATS))}"
        )
    try:
        if content["format"] != 1:
            content["accuracy_matrix"] = read_matrix(folder, content["experiences"]["finished"])
    except OSError as error:
        raise RecordError(f"{MATRIX_FILE} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise RecordError(str(error)) from error
    except (LookupError, TypeError) as error:
        raise RecordError(f"{RECORD} is not as it should be: {error!r}") from error
    try:
        return Record.model_validate(content)
    except ValidationError as error:
        raise RecordError(f"{RECORD} is not as it should be: {problem(error)}") from error


def _content(path: Path) -> Any:
    if not (path.is_file() or path.is_dir()):  # a pipe would be waited for
        raise RecordError(f"{RECORD} is no file")
    try:
        content = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse)
        _check_plain(content)
    except UnicodeError as error:
        raise RecordError(f"{RECORD} is not a text file in UTF-8") from error
    except OSError as error:
        raise RecordError(f"{RECORD} cannot be read: {error.strerror or error}") from error
    except json.JSONDecodeError as error:
        raise RecordError(
            f"{RECORD} is not valid JSON, cut off perhaps: {error.msg} in line {error.lineno}, "
            f"column {error.colno}"
        ) from error
    except (ValueError, RecursionError) as error:
        raise RecordError(f"{RECORD} is not valid JSON: {' '.join(str(error).split())}") from error
    return content


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


def problem(error: ValidationError) -> str:
    """Say the first of pydantic's errors in plain words."""
    details = error.errors()[0]
    where = ".".join(map(str, details["loc"]))
    said = details["msg"].removeprefix("Value error, ")
    if details["type"] == "missing":
        return f"the key {where!r} is missing"
    return f"{where}: {said}" if where else said
