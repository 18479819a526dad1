"""Find run records in folders and read those that can be read; the others with their reason."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from avalanche_peftcl.errors import ConfigError, RecordError
from avalanche_peftcl.runs.reading import read_record
from avalanche_peftcl.runs.record import RunRecord
from avalanche_peftcl.runs.schema import FLOORS, RECORD, SEED_FOLDER


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
        Each record once: those of the first folder, sorted by path, then those of the next; then
        the floors of a sweep's runs, which lie beside these.

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
                f"there is no run record in {folder} or below it: no file {RECORD}; "
                "peftcl run writes one into its output folder"
            )
        for record in records:
            found.setdefault(record.resolve(), record)
    for record in list(found.values()):
        if SEED_FOLDER.fullmatch(record.name):
            for floor in sorted(record.parent.glob(f"{FLOORS}/*/{record.name}/{RECORD}")):
                found.setdefault(floor.parent.resolve(), floor.parent)
    return list(found.values())


def read_run(folder: Path) -> RunRecord | LeftOut:
    """Return the run in a folder, complete or not; with its reason, what cannot be read."""
    try:
        return RunRecord(folder, read_record(folder))
    except RecordError as error:
        return LeftOut(folder, str(error))


def _below(folder: Path) -> Iterator[Path]:
    """Yield every folder with a record, sorted; a folder that cannot be listed is an error."""

    def fail(error: OSError) -> None:
        raise ConfigError(f"{error.filename} cannot be read: {error.strerror}") from error

    for here, below, files in os.walk(folder, onerror=fail):
        below.sort()
        if RECORD in files:
            yield Path(here)
