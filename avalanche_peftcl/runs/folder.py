"""A run's folder: what in it is ours, and what is somebody else's and stays as it is."""

import os
import stat
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from avalanche_peftcl.checkpoints import folder as checkpoint
from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.export.file import MODEL_FILE
from avalanche_peftcl.files import LOCK, part_of
from avalanche_peftcl.runs.matrix_file import MATRIX_FILE
from avalanche_peftcl.runs.reading import read_claim
from avalanche_peftcl.runs.report import PICTURE
from avalanche_peftcl.runs.schema import FLOORS, RECORD, SEED_FOLDER

FILES = (
    "config.yaml",
    MATRIX_FILE,
    RECORD,
    MODEL_FILE,
    "summary.md",
    PICTURE,
)
CHECKPOINTS = "checkpoint"  # the folder beside them
LOG = "run.log"  # a sweep's; written at its end, never removed
LOGGERS = ("tensorboard", "wandb")  # folders; what is in them stays unless a record lists them
_MOST = 5  # names that one message lists

Stamp = tuple[int, int, int]


def check_output(folder: Path, *, overwrite: bool = False, resume: bool = False) -> Stamp | None:
    """Refuse an output folder that can be none, or in which something would be lost.

    What a record of ours lists in its ``files`` is ours. A link or a folder in the place of one
    of these files is not, nor is a file in the folder of checkpoints that no run wrote. A run of
    which nothing was kept, no experience and no checkpoint, is replaced unasked.

    Args:
        folder: The run's output folder.
        overwrite: Whether an earlier run may be replaced.
        resume: Whether an earlier run may be gone on with; whatever else is there stays.

    Returns:
        What tells the run that is there from a later one; ``None`` if there is none.

    Raises:
        ConfigError: With the ways out; an unfinished run can be gone on with.
    """
    try:
        names = sorted(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        names = []
    except OSError as error:
        raise ConfigError(f"the output folder {folder} cannot be used: {error}") from error
    if not names:
        _check_can_be_made(folder)
    listed = listed_files(folder)
    if listed and not (overwrite or resume or _nothing_yet(folder)):
        raise ConfigError(
            f"the output folder {folder} already holds a run; choose another (output=...) or "
            "replace it (--overwrite; in Python, overwrite=True)" + _way_on(folder)
        )
    mistaken = [f"{name} ({what})" for name in names if (what := _mistaken(folder, name, listed))]
    if listed and CHECKPOINTS in names and not mistaken:
        inside = checkpoint.strangers(folder / CHECKPOINTS, damaged_too=not resume)
        mistaken = [f"{CHECKPOINTS}/{name}" for name in inside]
    others = [] if listed and resume else _others(names, {*listed, *LOGGERS})
    if mistaken or others:
        found = list(dict.fromkeys(mistaken + others))
        more = f" and {len(found) - _MOST} more" if len(found) > _MOST else ""
        raise ConfigError(
            f"the output folder {folder} holds what is not of a run, and might be lost: "
            f"{', '.join(found[:_MOST])}{more}. Choose another folder (output=...) or move that "
            "away"
        )
    if not listed:
        return None
    with suppress(OSError):
        status = os.lstat(folder / RECORD)
        return status.st_ino, status.st_mtime_ns, status.st_size
    return 0, 0, 0


def further_files(folder: Path, *, besides: Collection[str]) -> list[str]:
    """Return what lies in a run's folder beside the files of every run and ``besides``."""
    return _others(os.listdir(folder), {*FILES, CHECKPOINTS, *besides})


def listed_files(folder: Path) -> frozenset[str]:
    """Return the names that belong to a run of ours in ``folder``; none if there is no run.

    Where ``metrics.json`` cannot be read, checkpoints of ours vouch for the files beside them.
    """
    ours = frozenset({*FILES, CHECKPOINTS})
    claim = read_claim(folder)
    if claim is not None:
        return ours | set(claim.files)
    kept = folder / CHECKPOINTS
    with suppress(OSError):
        if not kept.is_symlink() and os.listdir(kept) and not checkpoint.strangers(kept):
            return ours
    return frozenset()


def clear_output(folder: Path) -> None:
    """Remove what an earlier run left: its files but ``metrics.json``, and its checkpoints.

    To be called when :func:`check_output` has found nothing else there and the new run's
    ``metrics.json`` is written, so that at any moment a record lists what is there.
    """
    if not (folder / CHECKPOINTS).is_symlink():
        checkpoint.clear_checkpoints(folder / CHECKPOINTS)
    for name in FILES:
        if name != RECORD and _is_plain(folder / name):
            os.unlink(folder / name)


def remove_parts(folder: Path) -> None:
    """Remove what was left half-written in a run's folder by a process that was killed."""
    with suppress(OSError):
        for name in os.listdir(folder):
            if part_of(name) in FILES and _is_plain(folder / name):
                os.unlink(folder / name)


def _others(names: Collection[str], known: Collection[str]) -> list[str]:
    """Return those of ``names`` that are not known, and not ours in any folder."""
    spared = {LOCK, LOG, FLOORS, *known}
    return sorted(
        n
        for n in names
        if n not in spared and not SEED_FOLDER.fullmatch(n) and part_of(n) not in FILES
    )


def _mistaken(folder: Path, name: str, listed: Collection[str]) -> str | None:
    """Say what lies in the place of a file or folder of ours and is none."""
    if name not in listed and name not in (LOCK, LOG, FLOORS, *LOGGERS):
        return None
    try:
        mode = os.lstat(folder / name).st_mode
    except OSError as error:
        return str(error.strerror)
    if stat.S_ISLNK(mode):
        return "a link"
    if name in (*FILES, LOCK, LOG):
        return None if stat.S_ISREG(mode) else "no file"
    if name in (CHECKPOINTS, FLOORS, *LOGGERS):
        return None if stat.S_ISDIR(mode) else "no folder"
    return None


def _nothing_yet(folder: Path) -> bool:
    """Whether the run in a folder was begun, and nothing that it did was kept."""
    claim = read_claim(folder)
    if claim is None or claim.complete or claim.experiences.get("finished") != 0:
        return False
    try:
        return not os.listdir(folder / CHECKPOINTS)
    except FileNotFoundError:
        return True
    except OSError:
        return False


def _is_plain(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


def _way_on(folder: Path) -> str:
    claim = read_claim(folder)
    if claim is not None and claim.complete:
        return ""
    return (
        f". It is not finished; go on with it by peftcl run --resume {folder} "
        "(in Python, resume=True)"
    )


def _check_can_be_made(folder: Path) -> None:
    """Refuse a folder that cannot be made, or written to."""
    there = folder
    try:
        while not there.exists() and there != there.parent:
            there = there.parent
    except OSError as error:
        raise ConfigError(f"the output folder {folder} cannot be used: {error}") from error
    if not there.is_dir():
        raise ConfigError(f"the output folder {folder} cannot be made: {there} is a file")
    if not os.access(there, os.W_OK):
        raise ConfigError(
            f"the output folder {folder} cannot be made: no right to write to {there}"
        )
