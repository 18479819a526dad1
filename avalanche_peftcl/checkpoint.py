"""Checkpoints on disk: safetensors and JSON, written in one step, read without executing anything.

A folder holds ``000007.safetensors`` and ``000007.json``. The second names the hash of the first
and is written after it, so a checkpoint is there once its JSON is. The one before is kept until
the next one is complete.
"""

import hashlib
import json
import re
import warnings
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from avalanche_peftcl.errors import CheckpointError, CheckpointWarning
from avalanche_peftcl.files import replace_file
from avalanche_peftcl.packing import pack, unpack

FORMAT = 1
_KEPT = 2  # the newest, and one to fall back to
_FILE = re.compile(r"\.?(\d{6,})\.(json|safetensors)(\.part)?")


def write_checkpoint(folder: Path, state: Any, *, number: int) -> None:
    """Write ``state`` as checkpoint ``number`` and remove all but it and the one before.

    Args:
        folder: Where to; it is made if it is not there.
        state: What :func:`~avalanche_peftcl.packing.pack` can take apart.
        number: One more than that of the last checkpoint.

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
    tensors, tree = pack(state)
    try:
        content = save(tensors)
    except (SafetensorError, KeyError, ValueError) as error:
        raise CheckpointError(f"safetensors refuses the state: {error}") from error
    body = json.dumps(tree, allow_nan=False)
    hashes = json.dumps({"tensors": _sha256(content), "state": _sha256(body.encode())})
    document = f'{{"format": {FORMAT}, "sha256": {hashes}, "state": {body}}}\n'
    folder.mkdir(parents=True, exist_ok=True)
    replace_file(folder / f"{number:06d}.safetensors", content, durable=True)
    replace_file(folder / f"{number:06d}.json", document.encode(), durable=True)
    kept = {n for n in _numbers(folder) if n <= number}
    _remove(folder, sorted(kept)[-_KEPT:])


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
    problems: list[str] = []
    for number in sorted(_numbers(folder), reverse=True):
        try:
            state = _read(folder, number, device)
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


def clear_checkpoints(folder: Path) -> None:
    """Remove the checkpoints in ``folder``, and the folder if nothing else is in it."""
    _remove(folder, [])
    with suppress(OSError):
        folder.rmdir()


def _read(folder: Path, number: int, device: str | torch.device) -> Any:
    path = folder / f"{number:06d}.json"
    try:
        document = json.loads(path.read_bytes())
        found, hashes, tree = document["format"], document["sha256"], document["state"]
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise CheckpointError(f"the checkpoint {path} is damaged: {error}") from error
    if found != FORMAT:
        raise CheckpointError(
            f"the checkpoint {path} is of format {found}, this version reads format {FORMAT}"
        )
    content_path = path.with_suffix(".safetensors")
    try:
        content = content_path.read_bytes()
        parts = {path: json.dumps(tree).encode(), content_path: content}
        for part, wanted in zip(parts, (hashes["state"], hashes["tensors"]), strict=True):
            if _sha256(parts[part]) != wanted:
                raise ValueError(f"{part.name} is not what was written ({len(parts[part])} bytes)")
        return unpack(load(content), tree, device=device)
    except (OSError, ValueError, LookupError, TypeError, SafetensorError, CheckpointError) as error:
        raise CheckpointError(f"the checkpoint {path} is damaged: {error}") from error


def _numbers(folder: Path) -> list[int]:
    """Return the numbers of the checkpoints whose second file is there."""
    with suppress(FileNotFoundError, NotADirectoryError):
        found = (_FILE.fullmatch(path.name) for path in folder.iterdir())
        return [int(m[1]) for m in found if m and m[0] == f"{int(m[1]):06d}.json"]
    return []


def _remove(folder: Path, kept: Iterable[int]) -> None:
    """Remove the files of all checkpoints but those of ``kept``, and what was left half-written."""
    names = {f"{number:06d}{end}" for number in kept for end in (".json", ".safetensors")}
    with suppress(FileNotFoundError, NotADirectoryError):
        for path in sorted(folder.iterdir()):  # the JSON first: without it the rest counts nothing
            if _FILE.fullmatch(path.name) and path.name not in names:
                path.unlink(missing_ok=True)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
