"""What an earlier process left of a run: a complete record, or a checkpoint to go on from."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from avalanche_peftcl.checkpoints.folder import read_checkpoint
from avalanche_peftcl.errors import CheckpointError, RecordError
from avalanche_peftcl.runs.folder import CHECKPOINTS
from avalanche_peftcl.runs.identity import Identity, settings_of
from avalanche_peftcl.runs.matrix_file import MATRIX_FILE, read_matrix
from avalanche_peftcl.runs.reading import Claim, read_claim, read_record
from avalanche_peftcl.runs.record import RunRecord
from avalanche_peftcl.runs.schema import FORMAT

_PARTS = {"identity", "threads", "standing", "position", "strategy", "random"}
_ANEW = "(--overwrite; in Python, overwrite=True)"


@dataclass(frozen=True)
class SavedRun:
    """A checkpoint: its number and its state."""

    number: int
    state: Mapping[str, Any]


def finished_run(output: Path, identity: Identity) -> RunRecord | None:
    """Return the record of the run in a folder if all of it is finished.

    Raises:
        CheckpointError: If it is a run of another configuration, a record of another version, or
            one without its accuracy matrix.
    """
    claim = read_claim(output)
    if claim is None:
        return None
    if claim.format != FORMAT and not (claim.format == 1 and claim.complete):
        raise CheckpointError(
            f"the record in {output} has format {claim.format!r:.40}, this version of "
            f"avalanche-peftcl writes {FORMAT}; go on with the one that wrote it, or start anew "
            f"{_ANEW}"
        )
    if not claim.complete:
        return None
    if claim.format == FORMAT:
        _read_matrix(output, claim.finished)
    try:
        record = read_record(output)
    except RecordError:
        return None  # spoilt; its checkpoint makes it again
    _check_settings(record.config.model_dump(mode="json"), identity, output)
    return RunRecord(output, record)


def saved_run(output: Path, identity: Identity, *, device: torch.device) -> SavedRun | None:
    """Return the last checkpoint of the run in a folder.

    Args:
        output: The run's output folder.
        identity: As much of it as is known before anything is built.
        device: Where the run computes.

    Returns:
        ``None`` if nothing of the run is finished.

    Raises:
        CheckpointError: If the run in the folder is another one, if its checkpoints are damaged,
            or if it has finished experiences and no checkpoint.
    """
    found, claim = read_checkpoint(output / CHECKPOINTS, device=device), read_claim(output)
    if found is not None:
        number, state = found
        if not isinstance(state, dict) or not state.keys() >= _PARTS:
            raise CheckpointError(f"the checkpoint in {output / CHECKPOINTS} is none of a run")
        if not _of_an_earlier_run(state, claim):
            identity.check(state["identity"], output)
            return SavedRun(number, state)
    if claim is None:
        return None
    _check_settings(claim.config, identity, output)
    if claim.finished:
        why = claim.resume_obstacles
        raise CheckpointError(
            f"the run in {output} left no checkpoint"
            + (f", for {'; '.join(why)}" if why else "")
            + f"; start it anew {_ANEW}"
        )
    return None


def kept_rows(output: Path, saved: SavedRun) -> torch.Tensor:
    """Return the rows of the accuracy matrix that a checkpoint leaves to the record, ``(N, T)``.

    Raises:
        CheckpointError: If they are no longer there as they were.
    """
    kept = saved.state["standing"].get("matrix")
    if kept is None:
        raise CheckpointError(f"the checkpoint in {output / CHECKPOINTS} is of an earlier version")
    if not kept["rows"]:
        return torch.empty(0, 0, dtype=torch.float64)
    rows = _read_matrix(output, kept["rows"], kept["sha256"])
    numbers = [[math.nan if value is None else value for value in row] for row in rows]
    return torch.tensor(numbers, dtype=torch.float64)


def _check_settings(config: Mapping[str, Any], identity: Identity, output: Path) -> None:
    Identity(settings=identity.settings).check({"settings": settings_of(config)}, output)


def _of_an_earlier_run(state: Mapping[str, Any], claim: Claim | None) -> bool:
    """Whether a checkpoint is of the run that this one was about to replace when it was stopped."""
    if claim is None or claim.experiences.get("finished") != 0:
        return False
    return bool(claim.started_at != state["standing"].get("started_at"))


def _read_matrix(output: Path, count: int, sha256: str | None = None) -> list[list[float | None]]:
    try:
        return read_matrix(output, count, sha256=sha256)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"the accuracies of the finished experiences cannot be read from "
            f"{output / MATRIX_FILE}: {error}; put it back as it was, or start anew {_ANEW}"
        ) from error
