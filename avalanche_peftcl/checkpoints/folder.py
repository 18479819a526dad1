"""Checkpoints on disk, written in one step and read without executing anything.

The folder of a run holds ``000007.checkpoint`` and the one before, which is kept until the next is
complete; a script keeps one file of the same kind, see :mod:`.archive`.
"""

import os
import re
import warnings
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from avalanche_peftcl.checkpoints.archive import MAGIC, decode_state, encode_state
from avalanche_peftcl.errors import CheckpointError, CheckpointWarning, ConfigError
from avalanche_peftcl.files import check_writable, make_folder, part_of, replace_file

_FILE = re.compile(r"([0-9]{6,15})\.checkpoint")
_EARLIER = re.compile(r"[0-9]{6,15}\.safetensors")  # of format 1


def write_checkpoint(folder: Path, state: Any, *, number: int, before: int | None = None) -> None:
    """Write ``state`` as checkpoint ``number`` and remove all but it and the one before.

    Args:
        folder: Where to; it is made if it is not there.
        state: What :func:`~avalanche_peftcl.checkpoints.plain.plain_state` takes.
        number: A free one, see :func:`next_number`.
        before: The one to fall back to; ``None`` takes the last one before ``number``.

    Raises:
        CheckpointError: If ``state`` holds what no checkpoint can.
        OSError: If it cannot be written; earlier checkpoints are as they were.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_checkpoint(Path(folder), {"epoch": 3, "w": torch.ones(2)}, number=1)
        ...     read_checkpoint(Path(folder))
        (1, {'epoch': 3, 'w': tensor([1., 1.])})
    """
    content = encode_state(state)
    make_folder(folder)
    replace_file(_path(folder, number), content, durable=True)
    if before is None:
        before = max((n for n in _numbers(folder) if n < number), default=number)
    _remove(folder, {before, number})


def next_number(folder: Path) -> int:
    """Return the first number of a checkpoint that follows whatever is in ``folder``."""
    with suppress(FileNotFoundError):
        found = (_FILE.fullmatch(name) for name in os.listdir(folder))
        return 1 + max((int(m[1]) for m in found if m), default=0)
    return 1


def read_checkpoint(folder: Path, *, device: str | torch.device = "cpu") -> tuple[int, Any] | None:
    """Read the newest checkpoint; if it is damaged, the one before, with a warning.

    Args:
        folder: Where :func:`write_checkpoint` wrote to.
        device: Where tensors go that were not on the CPU.

    Returns:
        Number and state; ``None`` if there is no checkpoint.

    Raises:
        CheckpointError: If there are checkpoints and none can be read; the message names the files.
    """
    if not (numbers := _numbers(folder)) and _names(folder, _EARLIER):
        raise CheckpointError(
            f"the checkpoints in {folder} are of an earlier version, which this one cannot read; "
            "go on with the version that wrote them, or remove that folder and start anew"
        )
    problems: list[str] = []
    for number in sorted(numbers, reverse=True):
        try:
            state = read_state(_path(folder, number), device=device)
        except CheckpointError as error:
            problems.append(str(error))
            continue
        if problems:
            warnings.warn(
                f"{'; '.join(problems)}; going on from the checkpoint before it, {number:06d}",
                CheckpointWarning,
                stacklevel=2,
            )
        return number, state
    if problems:
        raise CheckpointError("; ".join(problems))
    return None


def write_state(path: Path, state: Any) -> None:
    """Write ``state`` to a file of its own, in one step.

    Args:
        path: The file; an earlier one is replaced.
        state: What :func:`~avalanche_peftcl.checkpoints.plain.plain_state` takes.

    Raises:
        CheckpointError: If ``state`` holds what no checkpoint can.
        ConfigError: If the file cannot be written; an earlier one is as it was.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_state(Path(folder) / "a.checkpoint", {"epoch": 3, "w": torch.ones(2)})
        ...     read_state(Path(folder) / "a.checkpoint")
        {'epoch': 3, 'w': tensor([1., 1.])}
    """
    check_writable(path)
    content = encode_state(state)
    try:
        replace_file(path, content, durable=True)
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror or error}") from error


def read_state(path: Path, *, device: str | torch.device = "cpu") -> Any:
    """Read what :func:`write_state` wrote.

    Args:
        path: The file.
        device: Where tensors go that were not on the CPU.

    Raises:
        CheckpointError: If it cannot be read, is another file, of another format or damaged.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error
    return decode_state(content, str(path), device=device)


def clear_checkpoints(folder: Path) -> None:
    """Remove the checkpoints in ``folder``, and the folder if nothing else is in it."""
    _remove(folder, [])
    with suppress(OSError):
        folder.rmdir()


def strangers(folder: Path, *, damaged_too: bool = True) -> list[str]:
    """Return the names of what is in ``folder`` and no checkpoint of ours.

    Args:
        folder: Where checkpoints are, or none.
        damaged_too: Name every file whose head :func:`write_checkpoint` did not write. Otherwise
            only links and folders that are named as a checkpoint's file.
    """
    with suppress(FileNotFoundError):
        names = sorted(os.listdir(folder))
        if damaged_too:
            return [name for name in names if not _is_ours(folder / name)]
        return [name for name in names if _FILE.fullmatch(name) and not _is_plain(folder / name)]
    return []


def _is_plain(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


def _is_ours(path: Path) -> bool:
    """Whether :func:`write_checkpoint` wrote a file, or was killed while it did."""
    found = _FILE.fullmatch(part_of(path.name) or path.name)
    if found is None or not _is_plain(path):
        return False
    if part_of(path.name) is not None:
        return True
    with suppress(OSError), path.open("rb") as file:
        return MAGIC.startswith(file.read(len(MAGIC)))  # cut off, nothing is lost by it
    return False


def _path(folder: Path, number: int) -> Path:
    return folder / f"{number:06d}.checkpoint"


def _names(folder: Path, kind: re.Pattern[str]) -> list[str]:
    """Return the names of the plain files of a kind; none where there is no folder."""
    with suppress(FileNotFoundError, NotADirectoryError):
        return [p.name for p in folder.iterdir() if kind.fullmatch(p.name) and _is_plain(p)]
    return []


def _numbers(folder: Path) -> list[int]:
    """Return the numbers of the checkpoints."""
    return [int(Path(name).stem) for name in _names(folder, _FILE)]


def _remove(folder: Path, kept: Iterable[int]) -> None:
    """Remove all our files but the checkpoints ``kept``; what cannot be removed stays."""
    left = {_path(folder, number) for number in kept}
    with suppress(FileNotFoundError, NotADirectoryError):
        for path in sorted(folder.iterdir()):
            if path not in left and _is_ours(path):
                with suppress(OSError):
                    os.unlink(path)
